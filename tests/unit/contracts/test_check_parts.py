"""`check_parts` passes what is built in, and names the part that is broken."""

import numpy as np
import pytest
import torch

from harness.diffusion import OBJECTIVES, SCHEDULES
from harness.methods.base import StepOutput
from harness.models import MLP
from harness.registry import MODELS
from harness.testing import check_parts

POINTS = ["data=mog", "model={name: mlp, width: 16, depth: 1}"]


@pytest.mark.slow
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


@pytest.mark.parametrize("method", ["ddgan", "siddm"])
def test_a_method_without_an_objective_passes_by_a_step(tiny_study, method):
    [run] = tiny_study("", f"method={method}", "diffusion.schedule=vp", *POINTS)
    check_parts(run)


def test_a_step_that_gives_other_terms_than_declared_is_named(tiny_study, monkeypatch):
    [run] = tiny_study("", "method=ddgan", "diffusion.schedule=vp", *POINTS)
    monkeypatch.setattr("harness.methods.ddgan.DenoisingGan.terms_logged", ("generator_loss", "luck"))
    monkeypatch.setattr(
        "harness.methods.ddgan.DenoisingGan.step",
        lambda self, *_: StepOutput(torch.zeros(16), torch.zeros(16), {"generator_loss": torch.zeros(16)}),
    )
    with pytest.raises(AssertionError, match=r"method ddgan: a step gives the terms \['generator_loss'\], not"):
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


def terms(loss):
    return dict.fromkeys(("loss", "mse", "vb"), loss)


def a_mean(process, model_output, x_0, x_t, t, noise):
    return terms((model_output - noise).square().mean())


def without_gradient(process, model_output, x_0, x_t, t, noise):
    return terms(model_output.sum() * 0 + noise.square().flatten(1).mean(1))


def not_finite(process, model_output, x_0, x_t, t, noise):
    return terms(model_output.flatten(1).mean(1) / 0)


def of_another_name(process, model_output, x_0, x_t, t, noise):
    return {"l1": (model_output - noise).abs().flatten(1).mean(1)}


BROKEN = [
    (SCHEDULES, "cosine", lambda T, s: np.full(T - 1, 0.1), r"cosine: betas have the shape \[29\], not \[30\]"),
    (SCHEDULES, "cosine", lambda T, s: np.full(T, 0.1, np.float32), "cosine: betas are float32, not float64"),
    (SCHEDULES, "cosine", lambda T, s: np.linspace(0, 0.5, T), r"cosine: betas lie in 0 \.\. 0.5, not in \(0, 1\)"),
    (MODELS, "mlp", WithTwoOutputs, r"mlp: the output has the shape \[4, 4, 1, 1\], not \[4, 2, 1, 1\]"),
    (MODELS, "mlp", WithChance, "mlp: in eval mode the same input gives another output"),
    (MODELS, "mlp", WithBatchNorm, "mlp: an output depends on the rest of the batch"),
    (OBJECTIVES, "simple", a_mean, r"simple: the objective gives terms of shape \{'loss': \[\]"),
    (
        OBJECTIVES,
        "simple",
        of_another_name,
        r"simple: the objective gives \['l1'\], but declares \['loss', 'mse', 'vb'\]",
    ),
    (OBJECTIVES, "simple", not_finite, "simple: the loss is not finite"),
    (OBJECTIVES, "simple", without_gradient, "simple: the loss has no gradient"),
]


@pytest.mark.parametrize(("table", "name", "broken", "message"), BROKEN, ids=[message[:30] for *_, message in BROKEN])
def test_a_broken_part_is_named_with_what_is_wrong(tiny_study, monkeypatch, table, name, broken, message):
    monkeypatch.setitem(table, name, broken)
    [run] = tiny_study("", *POINTS)
    with pytest.raises(AssertionError, match=message):
        check_parts(run)
