"""The arithmetic of a training: counted by the networks' shapes, for the scaling figures and for estimates of cost.

Torch's meta device, on which it is counted, imports torch._dynamo and sympy, a second of each job. So what was counted
is kept in the cache, and other jobs that train the same networks by the same code read it:

    step_compute/<digest of what is counted, and by which code>.json
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness import PACKAGE_ROOT
from harness.data.base import Dataset
from harness.data.cache import cache_folder
from harness.data.facts import DatasetFacts
from harness.errors import DataError, RecordError, TrainingError
from harness.methods.base import Method
from harness.records.files import replace_file
from harness.records.reading import Fields, read_json
from harness.spec.base import digest
from harness.spec.resources import Resources
from harness.spec.run import RunSpec

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class StepCompute:
    """The size of all networks that are trained, and the arithmetic of one example's share of a step.

    Attributes:
        multiply_adds: of a step and example; None if they cannot be counted.
        reason: why not.
    """

    parameters: int
    multiply_adds: float | None
    reason: str = ""


def step_compute(method: Method, data: Dataset | DatasetFacts) -> StepCompute:
    """Count parameters and multiply-adds of the networks of a method, on whatever device they are."""
    from harness.metrics.flops import training_step_compute

    networks = method.networks()
    modules = [network.module for network in networks.values()]
    parameters = sum(weight.numel() for module in modules for weight in module.parameters())
    x_0, multiply_adds = one_example(data), 0.0
    try:
        for network in networks.values():
            one_pass = training_step_compute(network.module.train(), *network.inputs(x_0))
            multiply_adds += network.passes * one_pass.multiply_adds
    except TrainingError as error:
        return StepCompute(parameters, None, str(error))
    return StepCompute(parameters, multiply_adds)


def one_example(data: Dataset | DatasetFacts) -> Tensor:
    assert data.image_size is not None, "only image_folder leaves it open, and its spec says it"
    return torch.empty((1, data.channels, data.image_size, data.image_size), device="meta")


def training_compute(
    spec: RunSpec, resources: Resources, method: Method, data: Dataset | DatasetFacts
) -> tuple[dict[str, float], str]:
    """Count parameters, multiply-adds and FLOPs of all the networks that are trained.

    Returns:
        numbers by their names in the records, and why the arithmetic is not among them; "" if it is.
    """
    counted = _kept(spec, resources, method, data)
    compute: dict[str, float] = {}
    if counted.multiply_adds is not None:
        compute["compute/train_multiply_adds"] = counted.multiply_adds * spec.train.steps * spec.train.batch_size
        compute["compute/train_flops"] = 2 * compute["compute/train_multiply_adds"]
    compute["compute/parameters"] = float(counted.parameters)
    return compute, counted.reason


def _kept(spec: RunSpec, resources: Resources, method: Method, data: Dataset | DatasetFacts) -> StepCompute:
    """Return what was counted for the same networks, and count where nothing was."""
    networks = method.networks()
    shapes = [[list(weight.shape) for weight in network.module.parameters()] for network in networks.values()]
    what = [spec.cost_key, resources.activation_checkpointing, list(one_example(data).shape), shapes]
    try:
        kept = cache_folder("step_compute") / f"{digest([*what, torch.__version__, _code()])}.json"
    except DataError:  # no folder for it
        return step_compute(method, data)
    try:
        fields = Fields(read_json(kept), str(kept))
        return StepCompute(fields.integer("parameters"), fields.finite("multiply_adds", low=0))
    except (FileNotFoundError, RecordError):
        counted = step_compute(method, data)
    if counted.multiply_adds is not None:
        numbers = {"parameters": counted.parameters, "multiply_adds": counted.multiply_adds}
        with contextlib.suppress(RecordError):  # a full or read-only disk: it is counted again the next time
            replace_file(kept, json.dumps(numbers), durable=False)
    return counted


@cache
def _code() -> str:
    """Return a digest of the code that builds networks and counts."""
    package = PACKAGE_ROOT / "harness"
    paths = [*package.glob("models/*.py"), *package.glob("methods/*.py"), package / "metrics/flops.py"]
    contents = map(Path.read_bytes, sorted([*paths, package / "registry.py", Path(__file__)]))
    return hashlib.sha256(b"\0".join(contents)).hexdigest()
