"""The arithmetic of a training: counted by the networks' shapes, for the scaling figures and for estimates of cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from harness.data.base import Dataset
from harness.data.facts import DatasetFacts
from harness.errors import TrainingError
from harness.methods.base import Method
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


def training_compute(spec: RunSpec, method: Method, data: Dataset) -> tuple[dict[str, float], str]:
    """Count parameters, multiply-adds and FLOPs of all the networks that are trained.

    Returns:
        numbers by their names in the records, and why the arithmetic is not among them; "" if it is.
    """
    counted = step_compute(method, data)
    compute: dict[str, float] = {}
    if counted.multiply_adds is not None:
        compute["compute/train_multiply_adds"] = counted.multiply_adds * spec.train.steps * spec.train.batch_size
        compute["compute/train_flops"] = 2 * compute["compute/train_multiply_adds"]
    compute["compute/parameters"] = float(counted.parameters)
    return compute, counted.reason
