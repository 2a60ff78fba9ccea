"""The simple gradient noise scale: the batch size at which the gradient's signal equals its noise.

    B_simple = tr(Sigma) / |G|^2                                                    (McCandlish et al. 2018, eq. 2.9)

Sigma is the covariance over single examples, G the true gradient; IDDPM's figure 7 compares L_vlb and L_hybrid by it.
Both parts are estimated without bias from gradients at two batch sizes (appendix A.1). Quotients of such estimates
would be biased and unstable: so each part is averaged separately, and the quotient is taken last.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class GradientNoiseScale:
    """A running estimate, updated with squared norms; its fields are its whole state.

        |G|^2     = (B_big |G_big|^2 - B_small |G_small|^2) / (B_big - B_small)
        tr(Sigma) = (|G_small|^2 - |G_big|^2) / (1 / B_small - 1 / B_big)

    Args:
        small_batch, big_batch: examples behind the two gradients, each the gradient of a mean over them.
        decay: of the moving averages, in (0, 1]; 1 weights all updates equally, for fixed network weights.
        signal, noise: sums of |G|^2 and of tr(Sigma), weighted by decay^age. The normalisation cancels out.

    Raises:
        ValueError: batches that are not small < big, or a decay out of range.
    """

    small_batch: int
    big_batch: int
    decay: float = 0.99
    signal: float | Tensor = 0.0
    noise: float | Tensor = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.small_batch < self.big_batch:
            raise ValueError(f"need 0 < small_batch < big_batch; got {self.small_batch} and {self.big_batch}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must lie in (0, 1]; got {self.decay}")

    def update(self, small_squared_norm: float | Tensor, big_squared_norm: float | Tensor) -> None:
        """Add |G_small|^2 (one, or the mean of several) and |G_big|^2. Scalar tensors stay on their device."""
        small, big = self.small_batch, self.big_batch
        signal = (big * big_squared_norm - small * small_squared_norm) / (big - small)
        noise = (small_squared_norm - big_squared_norm) / (1 / small - 1 / big)
        self.signal = self.decay * self.signal + signal
        self.noise = self.decay * self.noise + noise

    @property
    def value(self) -> float:
        """B_simple, in examples; NaN while the estimate of |G|^2 is not above 0. Synchronises with the device."""
        signal = float(self.signal)
        return float(self.noise) / signal if signal > 0 else math.nan


def measure_noise_scale(
    weights: Sequence[Tensor], losses: Iterable[Tensor], *, batch_size: int, small_per_big: int
) -> float:
    """Measure B_simple at fixed weights, from the losses of many batches.

    Each batch's gradient is a small one; the mean of `small_per_big` of them in a row is the big one. A remainder that
    fills no big batch is left out.

    Args:
        weights: parameters of the gradient; they and their .grad are not changed.
        losses: each the mean over batch_size new examples, preferably made on demand by a generator.
    """
    scale = GradientNoiseScale(batch_size, batch_size * small_per_big, decay=1.0)
    total, small_squares = [torch.zeros_like(w) for w in weights], []
    for loss in losses:
        gradient = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        torch._foreach_add_(total, gradient)
        small_squares.append(_squared_norm(gradient))
        if len(small_squares) == small_per_big:
            big = _squared_norm(total) / small_per_big**2
            scale.update(torch.stack(small_squares).mean(), big)
            torch._foreach_zero_(total)
            small_squares = []
    return scale.value


def _squared_norm(gradient: Sequence[Tensor]) -> Tensor:
    return torch.stack([g.double().square().sum() for g in gradient]).sum()
