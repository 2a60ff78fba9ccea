"""A noise schedule, a loss, a network and a metric of one's own."""

import math
from typing import Literal

from harness.plugins import Field, MetricModel, NetworkModel, ObjectiveModel, ScheduleModel


class Sigmoid(ScheduleModel):
    """alpha_bar falls as a sigmoid of t (Jabri et al. 2022)."""

    name: Literal["sigmoid"] = "sigmoid"
    start: float = -3.0
    end: float = 3.0
    tau: float = Field(1.0, gt=0)


def sigmoid(num_timesteps: int, start: float, end: float, tau: float):
    """Return betas [T] of the sigmoid schedule."""
    import numpy as np  # here, so that `harness plan` need not wait for it

    def value(t: float) -> float:
        return 1 / (1 + math.exp(-(t * (end - start) + start) / tau))

    def alpha_bar(t: float) -> float:
        return (value(1) - value(t)) / (value(1) - value(0))

    steps = range(num_timesteps)
    betas = [1 - alpha_bar((t + 1) / num_timesteps) / alpha_bar(t / num_timesteps) for t in steps]
    return np.clip(betas, 0, 0.999)


class P2(ObjectiveModel):
    """L_simple weighted by 1 / (k + SNR)^gamma (Choi et al. 2022)."""

    name: Literal["p2"] = "p2"
    k: float = Field(1.0, gt=0)
    gamma: float = Field(1.0, ge=0)


class DiT(NetworkModel):
    """A small diffusion transformer (after Peebles and Xie 2023)."""

    name: Literal["dit"] = "dit"
    patch_size: int = Field(2, ge=1)
    width: int = Field(64, ge=8)
    depth: int = Field(2, ge=1)
    num_heads: int = Field(4, ge=1)

    def check(self, run):
        if run.data.pixels % self.patch_size:
            raise ValueError(f"model.patch_size {self.patch_size} does not divide images of {run.data.pixels} pixels")
        if self.width % self.num_heads:
            raise ValueError(f"model.num_heads {self.num_heads} does not divide model.width {self.width}")


class Contrast(MetricModel):
    """The standard deviation of sampled pixels, beside that of the data."""

    name: Literal["contrast"] = "contrast"
    num_samples: int = Field(64, ge=1)
    num_steps: int = Field(20, ge=1)
    outputs = ("contrast", "contrast_of_data")


SCHEDULES = {"sigmoid": (Sigmoid, sigmoid)}
OBJECTIVES = {"p2": (P2, "my_torch_parts.py:p2")}
MODELS = {"dit": (DiT, "my_torch_parts.py:DiffusionTransformer")}
METRICS = {"contrast": (Contrast, "my_torch_parts.py:contrast")}
