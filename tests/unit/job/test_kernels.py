"""Which kernels a run is computed with, and what they need."""

import resource
import shutil

import pytest
import torch

from harness.errors import HarnessError
from harness.job.kernels import keep_freed_memory, prepare_compiler
from harness.job.request import as_begun
from harness.spec.resources import Resources

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "environments", "kernels"),
    [
        ("fused", [], "fused"),
        ("compiled", [{"kernels": "fused"}], "compiled"),
        ("fused", [{"torch": "2.9"}], "reference"),  # begun by an earlier version
        ("compiled", [{"torch": "2.9"}, {"kernels": "reference"}], "reference"),
    ],
)
def test_an_older_run_goes_on_with_the_reference_kernels(asked, environments, kernels):
    assert as_begun(Resources(kernels=asked), environments).kernels == kernels


def test_the_default_kernels_are_not_written_so_that_what_earlier_versions_wrote_stays_the_same():
    assert "kernels" not in Resources().model_dump()
    assert Resources(kernels="reference").model_dump()["kernels"] == "reference"


@pytest.mark.parametrize("other", [{"device": "cpu"}, {"microbatch": 4}])
def test_cuda_graphs_are_refused_where_there_can_be_none(other):
    with pytest.raises(ValueError, match="choose kernels: compiled"):
        Resources(kernels="cuda_graphs", **other)


def test_compiling_without_a_compiler_or_a_gpu_is_refused_before_the_training(monkeypatch):
    with pytest.raises(HarnessError, match="no CUDA device: take compiled"):
        prepare_compiler("cuda_graphs", CPU)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(HarnessError, match=r"needs a C\+\+ compiler .* kernels: fused"):
        prepare_compiler("compiled", CPU)
    prepare_compiler("fused", CPU)  # needs none


def test_memory_that_is_freed_is_not_mapped_anew():
    def page_faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(num_mib << 18) for num_mib in (64, 4, 4, 4, 4)]  # 20,480 pages in all
        del blocks
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_freed_memory()
    assert min(page_faults() for _ in range(4)) < 1000
