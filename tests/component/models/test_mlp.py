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
