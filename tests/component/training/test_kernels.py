"""A compiled network trains as the one that it is made of, and is found again."""

import shutil

import pytest
import torch

from harness.datasets import make_dataset
from harness.job.kernels import prepare_compiler
from harness.randomness import Streams
from harness.registry import make_method
from harness.spec.resources import Resources
from harness.spec.run import RunSpec
from harness.training.batches import Batches
from harness.training.distributed import ProcessGroup

CPU = torch.device("cpu")
SPEC = RunSpec.model_validate(
    {"data": "mog", "model": {"name": "mlp", "width": 8, "depth": 1}, "train": {"steps": 4, "batch_size": 8}}
)


def losses(kernels: str) -> list[float]:
    data, streams, group = make_dataset(SPEC.data), Streams(0), ProcessGroup()
    method, batches = make_method(SPEC, data, Resources(kernels=kernels), CPU), Batches(SPEC, data, streams)
    of_steps = [method.step(step, batches(step), streams, group).loss.mean().item() for step in range(4)]
    assert method.sampling_network("raw").state_dict().keys() == method.sampling_network("ema").state_dict().keys()
    return of_steps


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_compiled_network_trains_as_the_one_it_is_made_of_and_is_kept_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    prepare_compiler("compiled", CPU)
    assert losses("compiled") == pytest.approx(losses("reference"), rel=1e-5)
    assert list((tmp_path / "compiled").rglob("*.so"))
