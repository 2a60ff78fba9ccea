"""The arithmetic of a whole training, for the scaling figures."""

from __future__ import annotations

import torch

from harness.data.base import Dataset
from harness.errors import TrainingError
from harness.spec.run import RunSpec
from harness.training.loop import Training


def training_compute(spec: RunSpec, training: Training, data: Dataset) -> tuple[dict[str, float], str]:
    """Count parameters, multiply-adds and FLOPs of all the networks that are trained.

    Returns:
        numbers by their names in the records, and why the arithmetic is not among them; "" if it is.
    """
    from harness.metrics.flops import training_step_compute

    x_0 = torch.empty((1, data.channels, data.image_size, data.image_size), device="meta")
    examples = spec.train.steps * spec.train.batch_size
    networks = training.method.networks()
    multiply_adds = flops = 0.0
    compute: dict[str, float] = {}
    reason = ""
    try:
        for network in networks.values():
            one_pass = training_step_compute(network.module.train(), *network.inputs(x_0))
            multiply_adds += network.passes * one_pass.multiply_adds
            flops += network.passes * one_pass.flops
        compute["compute/train_multiply_adds"] = multiply_adds * examples
        compute["compute/train_flops"] = flops * examples
    except TrainingError as error:
        reason = str(error)
    modules = [network.module for network in networks.values()]
    compute["compute/parameters"] = float(sum(weight.numel() for module in modules for weight in module.parameters()))
    return compute, reason
