"""How often gradients go over the network: once a parameter and step, whatever else a step is made of."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from harness.datasets import make_dataset
from harness.methods import gaussian
from harness.methods.base import Method
from harness.randomness import Streams
from harness.registry import make_method
from harness.spec.resources import Resources
from harness.spec.run import RunSpec
from harness.training.batches import Batches
from harness.training.distributed import ProcessGroup

CPU = torch.device("cpu")
MLP = {"name": "mlp", "width": 8, "depth": 1}


@pytest.fixture(autouse=True)
def group_of_one() -> Iterator[None]:
    """Let this process be a group, in which everything is sent, to itself."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def step_twice(values: dict, **resources: int) -> Method:
    """Take two steps as one of two processes does; after the first, DistributedDataParallel orders its buckets anew."""
    spec = RunSpec.model_validate({"data": "mog", "model": MLP, "train": {"steps": 2, "batch_size": 16}} | values)
    data, streams = make_dataset(spec.data), Streams(0)
    method, batches = make_method(spec, data, Resources(**resources), CPU), Batches(spec, data, streams)
    method.distribute(2)
    for step in range(2):
        method.step(step, batches(step), streams, ProcessGroup())
    return method


def num_parameters(method: Method) -> dict[str, int]:
    return {name: sum(p.numel() for p in network.module.parameters()) for name, network in method.networks().items()}


@pytest.mark.parametrize("microbatch", [None, 16, 8, 3])
def test_microbatches_send_gradients_no_more_often_than_a_whole_batch(monkeypatch, microbatch):
    sent: list[int] = []

    def count(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sent.append(bucket.buffer().numel())
        returned: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        returned.set_result(bucket.buffer())
        return returned

    class Counted(DistributedDataParallel):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.register_comm_hook(None, count)

    monkeypatch.setattr(gaussian, "DistributedDataParallel", Counted)
    method = step_twice({}, **({"microbatch": microbatch} if microbatch else {}))
    assert sum(sent) == 2 * num_parameters(method)["network"]


def test_gradients_are_kept_once():
    """Not once more in the buckets that they are sent from: 4 bytes a parameter, of some 20 that a training keeps."""
    weights = list(step_twice({}).networks()["network"].module.parameters())
    assert len({weight.grad.untyped_storage().data_ptr() for weight in weights}) == 1 < len(weights)


@pytest.mark.parametrize("name", ["ddgan", "siddm"])
def test_two_networks_send_their_gradients_once_each(monkeypatch, name):
    sent, all_reduce = [], dist.all_reduce
    monkeypatch.setattr(dist, "all_reduce", lambda flat: sent.append(flat.numel()) or all_reduce(flat))
    method = step_twice({"method": {"name": name}})
    numbers = num_parameters(method)
    assert sent == [numbers["discriminator"], numbers["generator"]] * 2
