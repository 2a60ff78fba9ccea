"""What a line of the log says of the steps in its window."""

import math

import pytest
import torch

from harness.methods.base import StepOutput
from harness.training.window import Window

CPU = torch.device("cpu")


def test_terms_are_logged_by_quartile_of_t():
    window = Window(8, ("loss", "mse", "vb"), ("grad_norm_preclip",), CPU)
    loss = torch.tensor([1.0, 3.0, 5.0, 7.0])
    terms = {"loss": loss, "mse": torch.zeros(4), "vb": torch.ones(4)}
    weighted = loss * torch.tensor([1.0, 1.0, 1.0, 2.0])
    window.add(0, StepOutput(torch.tensor([0, 1, 4, 7]), weighted, terms, {"grad_norm_preclip": torch.tensor(2.0)}))
    values = window.flush()
    assert values["train/loss"] == (1 + 3 + 5 + 14) / 4  # weighted, as it is minimised
    assert (values["train/loss_q0"], values["train/loss_q2"], values["train/loss_q3"]) == (2.0, 5.0, 7.0)
    assert "train/loss_q1" not in values
    assert values["train/vb"] == 1.0 and values["train/grad_norm_preclip"] == 2.0


@pytest.mark.parametrize("bad", ["loss", "critic_loss"])
def test_the_first_step_at_which_a_loss_or_a_scalar_is_not_finite_is_remembered(bad):
    window = Window(4, ("mse",), ("critic_loss",), CPU)
    for step in range(3):
        values = {"loss": torch.ones(2), "critic_loss": torch.tensor(1.0)}
        if step:
            values[bad] = values[bad] * math.inf
        scalars = {"critic_loss": values["critic_loss"]}
        window.add(step, StepOutput(torch.tensor([0, 3]), values["loss"], {"mse": torch.ones(2)}, scalars))
    assert window.first_bad_step() == 1
