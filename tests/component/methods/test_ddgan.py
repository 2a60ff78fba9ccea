"""DDGAN's step against six iterations of the reference's loop, its random numbers given."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import silu

from harness.diffusion import GaussianDiffusion
from harness.diffusion.adversarial import Verdict
from harness.diffusion.schedules import vp
from harness.methods.adversarial import Draws, Examples
from harness.methods.averages import exponential
from harness.methods.ddgan import DenoisingGan
from harness.methods.learning_rate import learning_rate

FOLDER = Path(__file__).parents[2] / "golden"
GOLDEN = dict(np.load(FOLDER / "ddgan_method.npz"))
ARGS = json.loads((FOLDER / "ddgan_method.json").read_text())


class Generator(nn.Module):
    """tanh(conv2(silu(conv1(x) + Z z + E[t])))"""

    def __init__(self):
        super().__init__()
        channels, width = ARGS["num_channels"], ARGS["generator_width"]
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.z = nn.Linear(ARGS["nz"], width)
        self.t = nn.Embedding(ARGS["num_timesteps"], width)
        self.conv2 = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x, t, y, z):
        return torch.tanh(self.conv2(silu(self.conv1(x) + (self.z(z) + self.t(t))[:, :, None, None])))


class Discriminator(nn.Module):
    """out(mean over pixels of silu(conv2(silu(conv1([x_t, x_next]) + E[t]))))"""

    def __init__(self):
        super().__init__()
        channels, width = ARGS["num_channels"], ARGS["discriminator_width"]
        self.conv1 = nn.Conv2d(2 * channels, width, 3, padding=1)
        self.t = nn.Embedding(ARGS["num_timesteps"], width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Linear(width, 1)

    def forward(self, x_t, t, x_next, y):
        hidden = silu(self.conv1(torch.cat([x_t, x_next], 1)) + self.t(t)[:, :, None, None])
        return Verdict(self.out(silu(self.conv2(hidden)).mean((2, 3))))


def loaded(network, name, dtype):
    prefix = f"state/{name}/"
    state = {
        key.removeprefix(prefix): torch.from_numpy(value) for key, value in GOLDEN.items() if key.startswith(prefix)
    }
    network.load_state_dict(state)
    return network.to(dtype)


def draws(half, iteration, dtype):
    def drawn(name):
        value = torch.from_numpy(GOLDEN[f"{half}/{name}"][iteration])
        return value.to(dtype) if value.is_floating_point() else value

    return Draws(*(drawn(name) for name in ("t", "noise_t", "noise_next", "z", "posterior_noise")))


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture
def game(dtype):
    generator, discriminator = loaded(Generator(), "G", dtype), loaded(Discriminator(), "D", dtype)
    options = {"betas": tuple(ARGS["adam_betas"]), "eps": ARGS["adam_eps"]}
    return DenoisingGan(
        generator,
        discriminator,
        GaussianDiffusion(vp(ARGS["num_timesteps"]), mean_type="x_0", var_type="fixed_small", levels=None),
        torch.optim.Adam(generator.parameters(), **options),
        torch.optim.Adam(discriminator.parameters(), **options),
        learning_rates=tuple(
            partial(
                learning_rate,
                num_steps=ARGS["num_epoch"],
                peak=ARGS[name],
                decay="cosine",
                final=ARGS["lr_eta_min"],
            )
            for name in ("lr_g", "lr_d")
        ),
        latent_dim=ARGS["nz"],
        r1_gamma=ARGS["r1_gamma"],
        r1_every=ARGS["lazy_reg"],
        averages={"ema": exponential(ARGS["ema_decay"])},
    )


def test_six_iterations_are_the_references(game, dtype):
    for step in range(ARGS["iterations"]):
        x_0 = torch.from_numpy(GOLDEN["x_0"][step]).to(dtype)
        losses, _ = game.update(step, Examples(x_0), draws("d", step, dtype), draws("g", step, dtype))
        names = {
            "discriminator_loss_real": "d/loss_real",
            "discriminator_loss_fake": "d/loss_fake",
            "generator_loss": "g/loss",
            "r1_penalty": "d/r1_penalty",
        }
        assert ("r1_penalty" in losses) == GOLDEN["d/r1_applied"][step]
        for name, theirs in names.items():
            if name in losses:
                np.testing.assert_allclose(losses[name].mean(), GOLDEN[theirs][step], rtol=5e-6, atol=1e-12)
        for half, network in (("d", game.discriminator), ("g", game.generator)):
            rate = game.optimizers[{"d": "discriminator", "g": "generator"}[half]].param_groups[0]["lr"]
            assert rate == pytest.approx(GOLDEN[f"{half}/lr"][step], rel=1e-9)
            for name, weight in network.named_parameters():
                np.testing.assert_allclose(weight.detach(), GOLDEN[f"{half}/after/{name}"][step], rtol=0, atol=1e-5)
        for name, weight in game.ema.named_parameters():
            np.testing.assert_allclose(weight, GOLDEN[f"ema/{name}"][step], rtol=0, atol=1e-5)


def test_each_half_moves_its_own_network_alone(game, dtype):
    examples = Examples(torch.from_numpy(GOLDEN["x_0"][0]).to(dtype))
    before = {
        name: [w.detach().clone() for w in getattr(game, name).parameters()] for name in ("generator", "discriminator")
    }
    game._update_discriminator(0, examples, draws("d", 0, dtype))
    assert all(map(torch.equal, game.generator.parameters(), before["generator"]))
    moved = [w.detach().clone() for w in game.discriminator.parameters()]
    assert not any(map(torch.equal, moved, before["discriminator"]))
    game._update_generator(0, examples, draws("g", 0, dtype))
    assert all(map(torch.equal, game.discriminator.parameters(), moved))
    assert not any(map(torch.equal, game.generator.parameters(), before["generator"]))
    assert all(weight.requires_grad for weight in game.discriminator.parameters())
