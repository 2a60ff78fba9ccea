"""On a GPU nothing in a step makes the host wait for the device; and graphs train as the network that they replay."""

import pytest
import torch

from harness.datasets import make_dataset
from harness.randomness import Streams
from harness.registry import make_method
from harness.spec.methods import METHODS
from harness.spec.resources import Resources
from harness.spec.run import RunSpec
from harness.training import batches as module
from harness.training.batches import Batches
from harness.training.distributed import ProcessGroup
from harness.training.loop import Training

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def steps(values: dict, count: int, *, kernels: str = "fused", may_wait: bool = True) -> list[float]:
    """Return the losses of some steps on the GPU; after the first two none may wait, if asked."""
    spec, device = RunSpec.model_validate({"train": {"steps": 9, "batch_size": 8}} | values), torch.device("cuda")
    data, streams, group = make_dataset(spec.data), Streams(0, device), ProcessGroup()
    training = Training(spec, make_method(spec, data, Resources(kernels=kernels), device), device)
    batches, losses = Batches(spec, data, streams), []
    try:
        for step in range(count):
            if step == 2 and not may_wait:
                torch.cuda.set_sync_debug_mode("error")
            streams.seed_dropout(step)
            output = training.method.step(step, batches(step), streams, group)
            training.window.add(step, output)
            losses.append(output.loss.mean())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [float(loss) for loss in losses]


MIXTURE = {"data": "mog", "model": {"name": "mlp"}}
DIGITS = {
    "data": "digits",
    "diffusion": {"num_timesteps": 30},
    "model": {"channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_resolutions": [4]},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kept", [True, False])
def test_a_step_never_waits_for_the_device(method, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(module, "IN_MEMORY_BYTES", 0)
        monkeypatch.setattr(module, "SHARE_OF_GPU", 0)
    losses = steps(MIXTURE | {"method": {"name": method}}, 4, may_wait=False)
    assert len(losses) == 4


def test_a_step_of_a_network_with_attention_never_waits_either():
    assert len(steps(DIGITS, 4, may_wait=False)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["compiled", "cuda_graphs"])
def test_compiled_and_replayed_networks_train_as_the_one_they_are_made_of(kernels):
    assert steps(DIGITS, 8, kernels=kernels) == pytest.approx(steps(DIGITS, 8), rel=1e-3)
