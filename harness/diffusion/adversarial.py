"""Losses of adversarial denoisers: DDGAN's game, and SIDDM's auxiliary forward diffusion (AFD).

A discriminator's logit says how real x_{t-1} looks: DDGAN's sees the pair (x_{t-1}, x_t), SIDDM's x_{t-1} alone. SIDDM
then has to be told of x_t by the AFD term, the Kullback-Leibler divergence of p(x_t | x_{t-1}) from q(x_t | x_{t-1}): a
cross-entropy less an entropy, which a regression C_psi bounds.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus


class Verdict(NamedTuple):
    """What a discriminator says of x_t.

    Attributes:
        logits: [B, 1], of x_t being of the data.
        x_0: like x_t, the prediction of the clean image; None without heads. Not bounded: its squared error is least at
            a mean of data, and a tanh would have no slope where data are black or white.
        x_next: like x_t, C_psi(x_t), the prediction of x_{t+1}, not bounded; None without heads, and where the
            discriminator is given x_{t+1}.
    """

    logits: Tensor
    x_0: Tensor | None = None
    x_next: Tensor | None = None


CrossEntropy = Literal["exact", "printed"]
CPsiTarget = Literal["x_t", "renoised"]


def discriminator_loss_real(logits: Tensor) -> Tensor:
    """-log sigmoid(logit) of real examples, [B, ...] like the logits (Goodfellow et al. 2014)."""
    return softplus(-logits)


def discriminator_loss_fake(logits: Tensor) -> Tensor:
    """-log(1 - sigmoid(logit)) of generated examples."""
    return softplus(logits)


def generator_loss(logits: Tensor) -> Tensor:
    """The non-saturating -log sigmoid(logit) of generated examples."""
    return softplus(-logits)


def r1_penalty(logits: Tensor, x_t: Tensor, gamma: float) -> Tensor:
    """Penalise the discriminator's slope at real data: gamma / 2 |grad D(x_t)|^2 (Mescheder et al. 2018, eq. 9).

    The gradient is that of the sum of the logits, so it passes through what couples the examples of a batch.

    Args:
        logits: of real data, made from x_t.
        x_t: [B, ...], the less noisy image of a real pair; it requires a gradient.

    Returns:
        [B], differentiable in the discriminator's parameters.
    """
    (slope,) = torch.autograd.grad(logits.sum(), x_t, create_graph=True)
    return gamma / 2 * _square(slope)


def afd(
    prediction: Tensor,
    x_prev_fake: Tensor,
    x_prev: Tensor,
    x_t: Tensor,
    beta: Tensor,
    *,
    cross_entropy: CrossEntropy = "exact",
    target: CPsiTarget = "x_t",
    renoise: Tensor | None = None,
) -> Tensor:
    """SIDDM's auxiliary forward diffusion term, which the generator minimises and C_psi maximises.

        afd_cross_entropy - |C_psi(x'_{t-1}) - target|^2 / beta

    With the exact cross-entropy, x_t as the target and C_psi at its best, it is twice the mean part of the divergence:
    0, and stationary, at the true generator. The printed one is not; renoised targets leave no entropy.

    Args:
        prediction: C_psi(x'_{t-1}), [B, ...].
        x_prev_fake: x'_{t-1}, [B, ...], drawn from the posterior of the generator's prediction.
        x_prev, x_t: the real pair; the generator was given this x_t.
        beta: [B], of the step from x_{t-1} to x_t.
        cross_entropy: form of the first term.
        target: x_t, or x'_{t-1} diffused forward one step again.
        renoise: noise of that step.

    Returns:
        [B], summed over dimensions.
    """
    first = afd_cross_entropy(x_prev_fake, x_prev, x_t, beta, form=cross_entropy)
    return first - afd_regression(prediction, x_prev_fake, x_t, beta, target=target, renoise=renoise)


def afd_cross_entropy(
    x_prev_fake: Tensor, x_prev: Tensor, x_t: Tensor, beta: Tensor, *, form: CrossEntropy = "exact"
) -> Tensor:
    """Twice the cross-entropy of q(x_t | x'_{t-1}), up to a constant, [B]; arguments as in `afd`.

    exact:   |x_t - sqrt(1 - beta) x'_{t-1}|^2 / beta
    printed: (1 - beta) |x'_{t-1} - x_{t-1}|^2 / beta                                        (SIDDM, objective)
    """
    if form == "exact":
        return _square(x_t - (1 - _column(beta, x_t)).sqrt() * x_prev_fake) / beta
    return _square(x_prev_fake - x_prev) * (1 - beta) / beta


def afd_regression(
    prediction: Tensor,
    x_prev_fake: Tensor,
    x_t: Tensor,
    beta: Tensor,
    *,
    target: CPsiTarget = "x_t",
    renoise: Tensor | None = None,
) -> Tensor:
    """What C_psi minimises: |C_psi(x'_{t-1}) - target|^2 / beta, [B]; arguments as in `afd`."""
    if target == "renoised":
        assert renoise is not None, "a renoised target has noise"
        column = _column(beta, x_t)
        x_t = (1 - column).sqrt() * x_prev_fake + column.sqrt() * renoise
    return _square(prediction - x_t) / beta


def _square(x: Tensor) -> Tensor:
    """The squared norm of each example, [B]."""
    return x.square().flatten(1).sum(1)


def _column(value: Tensor, x: Tensor) -> Tensor:
    return value.view(-1, *[1] * (x.ndim - 1))
