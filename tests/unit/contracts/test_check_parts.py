"""`check_parts` passes what is built in, and names the part that is broken."""

import numpy as np
import pytest
import torch

from harness.diffusion import OBJECTIVES, SCHEDULES
from harness.errors import TrainingError
from harness.models import MLP
from harness.registry import MODELS
from harness.testing import check_parts

POINTS = ["data=mog", "model={name: mlp, width: 16, depth: 1}"]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sets", [[], ["model.class_cond=true"], POINTS], ids=["unet", "classes", "mlp"])
def test_what_is_built_in_passes(tiny_study, schedule, sets):
    [run] = tiny_study("", f"diffusion.schedule={schedule}", *sets)
    check_parts(run)


@pytest.mark.parametrize(
    ("objective", "var_type"),
    [("simple", "fixed"), ("vlb", "learned_range"), ("hybrid", "learned"), ("min_snr", "fixed")],
)
def test_each_objective_passes(tiny_study, objective, var_type):
    [run] = tiny_study("", f"objective={objective}", f"diffusion.var_type={var_type}", *POINTS)
    check_parts(run)


class WithBatchNorm(MLP):
    def forward(self, x, timesteps, y=None):
        return super().forward(x - x.mean(0), timesteps, y)


class WithChance(MLP):
    def forward(self, x, timesteps, y=None):
        return super().forward(x, timesteps, y) + torch.randn(())


class WithTwoOutputs(MLP):
    def forward(self, x, timesteps, y=None):
        return super().forward(x, timesteps, y).repeat(1, 2, 1, 1)


def with_the_other_terms(loss, x_0):
    return {"loss": loss, "mse": x_0.flatten(1).mean(1), "vb": x_0.flatten(1).mean(1)}


def a_mean(process, model_output, x_0, x_t, t, noise):
    return with_the_other_terms((model_output - noise).square().mean(), x_0)


def without_gradient(process, model_output, x_0, x_t, t, noise):
    return with_the_other_terms((model_output.sum() * 0 + noise.square().flatten(1).mean(1)), x_0)


def not_finite(process, model_output, x_0, x_t, t, noise):
    return with_the_other_terms(model_output.flatten(1).mean(1) / 0, x_0)


BROKEN = [
    (SCHEDULES, "cosine", lambda T, s: np.full(T - 1, 0.1), r"cosine: betas have the shape \[29\], not \[30\]"),
    (SCHEDULES, "cosine", lambda T, s: np.full(T, 0.1, np.float32), "cosine: betas are float32, not float64"),
    (SCHEDULES, "cosine", lambda T, s: np.linspace(0, 0.5, T), r"cosine: betas lie in 0 \.\. 0.5, not in \(0, 1\)"),
    (MODELS, "mlp", WithTwoOutputs, r"mlp: the output has the shape \[4, 4, 1, 1\], not \[4, 2, 1, 1\]"),
    (MODELS, "mlp", WithChance, "mlp: in eval mode the same input gives another output"),
    (MODELS, "mlp", WithBatchNorm, "mlp: an output depends on the rest of the batch"),
    (OBJECTIVES, "simple", a_mean, r"the objective gives terms of shape .*; one number an example is \[\d+\]"),
    (OBJECTIVES, "simple", not_finite, "simple: the loss is not finite"),
    (OBJECTIVES, "simple", without_gradient, "simple: the loss has no gradient"),
]


@pytest.mark.parametrize(("table", "name", "broken", "message"), BROKEN, ids=[message[:20] for *_, message in BROKEN])
def test_a_broken_part_is_named_with_what_is_wrong(tiny_study, monkeypatch, table, name, broken, message):
    monkeypatch.setitem(table, name, broken)
    [run] = tiny_study("", *POINTS)
    with pytest.raises((AssertionError, TrainingError), match=message):
        check_parts(run)
