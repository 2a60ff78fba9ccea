"""The denoiser for points of the plane."""

import pytest
import torch

from harness.models import MLP


@torch.no_grad()
def test_the_output_depends_on_time_and_class_and_has_the_channels_asked_for():
    torch.manual_seed(0)
    mlp = MLP(out_channels=4, width=32, num_classes=3)
    torch.nn.init.normal_(mlp.out.weight)
    x, t, y = torch.randn(5, 2, 1, 1), torch.zeros(5), torch.zeros(5, dtype=torch.long)
    output = mlp(x, t, y)
    assert output.shape == (5, 4, 1, 1)
    assert not torch.allclose(output, mlp(x, t + 500, y))
    assert not torch.allclose(output, mlp(x, t, y + 1))


@torch.no_grad()
def test_a_larger_scale_sees_the_points_enlarged():
    torch.manual_seed(0)
    plain, enlarging = MLP(width=32), MLP(width=32, input_scale=16.0)
    torch.nn.init.normal_(plain.out.weight)
    enlarging.load_state_dict(plain.state_dict())
    x, t = torch.randn(5, 2, 1, 1), torch.zeros(5)
    assert torch.equal(enlarging(x, t), plain(16 * x, t))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((4, 3, 1, 1), None, r"x must be \[B, 2, H, W\]"),
        ((4, 2, 8, 8), None, r"x must be points, \[B, 2, 1, 1\]"),
        ((4, 2, 1, 1), (4,), "y was given to a network without classes"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        MLP()(torch.zeros(x), torch.zeros(4), None if y is None else torch.zeros(y, dtype=torch.long))
