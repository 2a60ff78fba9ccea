"""The arithmetic of a training: counted once for all jobs with the same networks and the same code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.errors import TrainingError
from harness.job import compute
from harness.metrics import flops
from harness.registry import make_method
from harness.spec.resources import Resources
from harness.spec.run import RunSpec

UNET = {"name": "unet", "channels": 8, "channel_mult": (1, 2), "attention_resolutions": (), "num_heads": 1}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "step_compute"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kind of each network that was counted, as long as the test runs."""
    kinds, count = [], flops.training_step_compute

    def noted(network: torch.nn.Module, *inputs: torch.Tensor) -> flops.Compute:
        kinds.append(type(network).__name__)
        return count(network, *inputs)

    monkeypatch.setattr(flops, "training_step_compute", noted)
    return kinds


def compute_of(steps: int = 10, channels: int = 8, resources: Resources | None = None) -> dict[str, float]:
    spec = RunSpec(
        data={"name": "digits"}, model=UNET | {"channels": channels}, train={"steps": steps, "batch_size": 4}
    )
    resources = resources or Resources(device="cpu")
    method = make_method(spec, spec.data.facts, resources, torch.device("cpu"))
    numbers, reason = compute.training_compute(spec, resources, method, spec.data.facts)
    assert not reason
    return numbers


def test_a_network_is_counted_once_and_of_every_length_of_training(counted):
    first, second, longer = compute_of(), compute_of(), compute_of(steps=20)
    assert first == second and counted == ["UNet"]
    assert longer["compute/train_flops"] == 2 * first["compute/train_flops"] > 1e6
    assert longer["compute/parameters"] == first["compute/parameters"]


def test_another_network_more_recomputation_and_other_code_are_counted_anew(counted, monkeypatch):
    first, wider = compute_of(), compute_of(channels=16)
    again = compute_of(resources=Resources(device="cpu", activation_checkpointing=True))
    assert len(counted) == 3
    names = ("compute/train_flops", "compute/parameters")
    assert all(wider[name] > first[name] for name in names)
    assert again["compute/train_flops"] > first["compute/train_flops"]
    monkeypatch.setattr(compute, "_code", lambda: "of another version")
    assert compute_of() == first and len(counted) == 4


def test_a_count_that_cannot_be_kept_or_read_is_made_anew(counted, cache, monkeypatch):
    first = compute_of()
    (kept,) = cache.iterdir()
    kept.write_text('{"parameters": 7}')
    assert compute_of() == first and len(counted) == 2
    monkeypatch.setenv("HARNESS_CACHE", "/proc/nowhere")
    assert compute_of() == first and len(counted) == 3


def test_what_cannot_be_counted_is_not_kept(cache, monkeypatch):
    def refuse(*_):
        raise TrainingError("cannot be counted by shapes alone")

    monkeypatch.setattr(flops, "training_step_compute", refuse)
    spec = RunSpec(data={"name": "digits"}, model=UNET, train={"steps": 1})
    method = make_method(spec, spec.data.facts, Resources(device="cpu"), torch.device("cpu"))
    numbers, reason = compute.training_compute(spec, Resources(device="cpu"), method, spec.data.facts)
    assert set(numbers) == {"compute/parameters"} and "shapes alone" in reason
    assert not list(cache.iterdir())


SCRIPT = """
import sys, torch
from harness.job.compute import training_compute
from harness.registry import make_method
from harness.spec.resources import Resources
from harness.spec.run import RunSpec
unet = {"name": "unet", "channels": 8, "channel_mult": (1,), "attention_resolutions": (), "num_heads": 1}
spec, resources = RunSpec(data={"name": "digits"}, model=unet, train={"steps": 1}), Resources(device="cpu")
method = make_method(spec, spec.data.facts, resources, torch.device("cpu"))
numbers, _ = training_compute(spec, resources, method, spec.data.facts)
print(numbers["compute/train_flops"], *(name for name in ("torch._dynamo", "sympy") if name in sys.modules))
"""


@pytest.mark.process
@pytest.mark.slow
def test_a_later_job_imports_no_compiler_to_count():
    command = [sys.executable, "-c", SCRIPT]
    first, later = (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(2)
    )
    assert first[0] == later[0] and len(later) == 1, (first, later)
