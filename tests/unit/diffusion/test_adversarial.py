"""Losses of adversarial denoisers: the reference's values, and SIDDM's term against the divergence it stands for."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.diffusion import adversarial
from harness.diffusion.adversarial import afd, afd_regression, r1_penalty

GOLDEN = dict(np.load(Path(__file__).parents[2] / "golden" / "ddgan_losses.npz"))
AFD = {
    name: torch.from_numpy(np.asarray(value))
    for name, value in np.load(Path(__file__).parents[2] / "golden" / "siddm_afd.npz").items()
}
NAMES = {"exact": "afd_exact", "printed": "afd"}


@pytest.mark.parametrize(
    ("loss", "name"),
    [("discriminator_loss_real", "d_real"), ("discriminator_loss_fake", "d_fake"), ("generator_loss", "g")],
)
def test_a_loss_and_its_gradient_are_the_references(loss, name):
    logits = torch.from_numpy(GOLDEN["logits"]).requires_grad_()
    value = getattr(adversarial, loss)(logits).mean()
    (gradient,) = torch.autograd.grad(value, logits)
    np.testing.assert_allclose(value.detach(), GOLDEN[name], rtol=2e-6)
    reference = GOLDEN[f"{name}_grad"]
    np.testing.assert_allclose(gradient, reference, rtol=0, atol=2e-6 * np.abs(reference).max())


def test_losses_of_extreme_logits_are_finite():
    logits = torch.tensor([-1e4, 1e4])
    assert adversarial.discriminator_loss_real(logits).tolist() == [1e4, 0]
    assert adversarial.discriminator_loss_fake(logits).tolist() == [0, 1e4]
    assert adversarial.generator_loss(logits).tolist() == [1e4, 0]


def test_the_r1_penalty_of_a_quadratic_is_known():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    penalty = r1_penalty(scale * x.square().sum(1), x, gamma=3.0).mean()  # the slope is 2 scale x
    assert penalty.item() == pytest.approx(1.5 * (1 + 4 + 9 + 16) / 2)
    (gradient,) = torch.autograd.grad(penalty, scale)
    assert gradient.item() == pytest.approx(2 * penalty.item() / 0.5)


def c_psi(x, weight=None):
    weight = AFD["c_psi_weight"] if weight is None else weight
    return x + torch.tanh(torch.nn.functional.conv2d(x, weight.to(x), AFD["c_psi_bias"].to(x), padding=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("target", ["x_t", "renoised"])
@pytest.mark.parametrize("cross_entropy", NAMES)
def test_the_four_forms_and_their_gradients_are_the_formulas(cross_entropy, target, dtype):
    x_prev, x_t, beta, renoise = (AFD[name].to(dtype) for name in ("x_prev", "x_t", "beta", "renoise"))
    fake = AFD["x_prev_fake"].to(dtype).requires_grad_()
    value = afd(c_psi(fake), fake, x_prev, x_t, beta, cross_entropy=cross_entropy, target=target, renoise=renoise)
    name = f"{NAMES[cross_entropy]}/{target}"
    (gradient,) = torch.autograd.grad(value.sum(), fake)
    for ours, reference in [(value.detach(), AFD[name]), (gradient, AFD[f"{name}/grad"])]:
        np.testing.assert_allclose(ours, reference, rtol=0, atol=5e-6 * reference.abs().max().item())


@pytest.mark.parametrize("target", ["x_t", "renoised"])
def test_what_c_psi_minimises_is_the_formula(target):
    weight = AFD["c_psi_weight"].double().requires_grad_()
    fake, x_t, beta, renoise = (AFD[name].double() for name in ("x_prev_fake", "x_t", "beta", "renoise"))
    value = afd_regression(c_psi(fake, weight), fake, x_t, beta, target=target, renoise=renoise)
    np.testing.assert_allclose(value.detach(), AFD[f"regression/{target}"], rtol=1e-9)
    (gradient,) = torch.autograd.grad(value.mean(), weight)
    reference = AFD[f"regression/{target}/grad_c_psi_weight"]
    np.testing.assert_allclose(gradient, reference, rtol=0, atol=1e-9 * reference.abs().max().item())


def gaussian_term(slope, beta, variance, *, cross_entropy, target, count=400_000):
    """The mean AFD term of the generator x'_{t-1} = slope x_t + the rest of the right marginal, C_psi at its best.

    x_{t-1} ~ N(0, variance), x_t = sqrt(1 - beta) x_{t-1} + sqrt(beta) noise, and x'_{t-1} has x_{t-1}'s own variance.
    """
    generator = torch.Generator().manual_seed(0)
    x_prev, noise, own, renoise = torch.randn(4, count, 1, generator=generator, dtype=torch.float64)
    x_prev = math.sqrt(variance) * x_prev
    keep = math.sqrt(1 - beta)
    x_t = keep * x_prev + math.sqrt(beta) * noise
    variance_t = (1 - beta) * variance + beta
    fake = slope * x_t + math.sqrt(variance - slope**2 * variance_t) * own
    best = slope * variance_t / variance if target == "x_t" else keep  # the regression of the target on x'_{t-1}
    options = {"cross_entropy": cross_entropy, "target": target, "renoise": renoise}
    return afd(best * fake, fake, x_prev, x_t, torch.full((count,), beta), **options).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.2, 0.85])
def test_only_the_exact_term_with_x_t_is_least_at_the_true_generator(beta):
    variance = 0.3
    truth = math.sqrt(1 - beta) * variance / ((1 - beta) * variance + beta)  # of x_t in E[x_{t-1} | x_t]
    slopes = np.linspace(0.5, 1.3, 9) * truth

    def best_slope(**form):
        return slopes[np.argmin([gaussian_term(slope, beta, variance, **form) for slope in slopes])]

    assert best_slope(cross_entropy="exact", target="x_t") == pytest.approx(truth)
    assert gaussian_term(truth, beta, variance, cross_entropy="exact", target="x_t") == pytest.approx(0, abs=0.01)
    assert best_slope(cross_entropy="exact", target="renoised") == slopes[-1]  # ever less random
    assert best_slope(cross_entropy="printed", target="x_t") < 0.95 * truth
