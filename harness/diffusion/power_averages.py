"""Power-function averages of weights, and how other widths are made of them (Karras et al. 2024, EDM2, section 3).

The average of exponent gamma at time t weighs the weights of time s by p(s) = (gamma + 1) s^gamma / t^(gamma + 1), so
it covers the same share of the training at any time. Its width is the standard deviation of p as a fraction of t.
Averages of two exponents, stored at several times, span a space of such profiles; that of another width is the closest
in it in the sense of least squares. Needs no torch, and NumPy only for the least squares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Profile = tuple[float, float]
"""The time t and the exponent gamma of a power-function average."""


def width_of(exponent: float) -> float:
    """Return the width of the average of an exponent (EDM2's sigma_rel)."""
    return math.sqrt((exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3)))


def exponent_of(width: float) -> float:
    """Return the exponent of at least 0 whose average has a width in (0, 1 / sqrt(12)]."""
    low, high = 0.0, 1.0
    while width_of(high) > width:
        high *= 2
    while low < (middle := (low + high) / 2) < high:  # until no float lies between
        low, high = (middle, high) if width_of(middle) > width else (low, middle)
    return low


def weight_of_newest(exponent: float, time: int) -> float:
    """Return 1 - beta(t) = 1 - (1 - 1 / t)^(gamma + 1), the share of the newest weights at t = 1, 2, ..."""
    return 1.0 if time == 1 else -math.expm1((exponent + 1) * math.log1p(-1 / time))


def fit(width: float, time: int, stored: Sequence[Profile]) -> tuple[list[float], float]:
    """Return how to combine stored averages into that of another width at a time.

    Args:
        width: in (0, 1 / sqrt(12)].
        time: not before any of the stored ones.
        stored: different from each other.

    Returns:
        the coefficient of each stored average, and the distance of the combined profile from the one asked for, as a
        fraction of the latter's norm.
    """
    import numpy as np

    t, gamma = np.array(stored, dtype=np.float64).T
    target = np.float64(time), np.float64(exponent_of(width))
    products = _inner_products(t[:, None], gamma[:, None], t[None], gamma[None])
    with_target = _inner_products(t, gamma, *target)
    norm = _inner_products(*target, *target)
    # Scaled to profiles of norm 1, since those of early times are far larger than those of late ones.
    scale = np.sqrt(np.diag(products))
    scaled = np.linalg.lstsq(products / np.outer(scale, scale), with_target / scale / np.sqrt(norm), rcond=None)[0]
    coefficients = scaled / scale * np.sqrt(norm)
    distance = norm - 2 * coefficients @ with_target + coefficients @ products @ coefficients
    return coefficients.tolist(), math.sqrt(max(0.0, distance / norm))


def _inner_products(t_a, gamma_a, t_b, gamma_b):
    """Return the integral of p_a p_b over all times (EDM2, appendix C)."""
    import numpy as np

    ratio = (t_a / t_b) ** np.where(t_a < t_b, gamma_b, -gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) * ratio / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))
