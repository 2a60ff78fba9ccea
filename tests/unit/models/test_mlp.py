"""The denoiser for points of the plane."""

import pytest
import torch

from harness.models import MLP


def test_it_learns_to_find_the_noise_on_two_points():
    torch.manual_seed(0)
    mlp = MLP(width=64)
    optimizer = torch.optim.Adam(mlp.parameters(), lr=3e-3)
    losses = []
    for _ in range(200):
        x_0 = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])[torch.randint(2, (256,))][:, :, None, None]
        noise, level = torch.randn_like(x_0), torch.rand(256)
        x_t = (1 - level)[:, None, None, None].sqrt() * x_0 + level[:, None, None, None].sqrt() * noise
        loss = (mlp(x_t, 1000 * level) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1.0, abs=0.2)  # it starts by predicting nothing
    assert sum(losses[-20:]) / 20 < 0.25


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
