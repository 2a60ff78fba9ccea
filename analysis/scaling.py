"""Power laws of measurements against training compute, as in IDDPM's figure 10."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PowerLaw:
    """value = a + (b C)^-c, with C in the unit that it was fitted in.

    Attributes:
        a: the limit at infinite compute, in the value's unit.
        b: 1 / compute.
        c: exponent, > 0: more compute, lower value.
        degrees_of_freedom: points minus fitted parameters; 0 means that the curve adds no information to its points.
        c_low, c_high: 2.5 and 97.5 per cent of the bootstrap over replicates; NaN without one.
    """

    a: float
    b: float
    c: float
    degrees_of_freedom: int
    c_low: float = float("nan")
    c_high: float = float("nan")

    def __call__(self, compute: np.ndarray | float) -> np.ndarray:
        return self.a + (self.b * np.asarray(compute, float)) ** -self.c


def fit_power_law(compute: Sequence[float], values: Sequence[float], a: float | None = None) -> PowerLaw | None:
    """Fit value = a + (b C)^-c by least squares in log(value - a).                              (IDDPM, figure 10)

    With four distinct amounts of compute or more, `a` is searched in [0, min(values)) for the least error of the
    values themselves; with three it is 0, because three parameters through three points would fit anything.

    Args:
        compute: [n], > 0.
        values: [n], > 0.
        a: a given asymptote, as IDDPM chose by hand (4.00 for FID, 3.40 for NLL).

    Returns:
        the law, or None where there are fewer than three distinct amounts of compute or the values do not fall.
    """
    x, y = np.log(np.asarray(compute, float)), np.asarray(values, float)
    points = len(np.unique(x))
    if points < 3:
        return None
    free = a is None and points >= 4
    # Searched from 0 up, densely near min(values), where the curvature is largest.
    candidates = y.min() * (1 - np.geomspace(1, 1e-4, 400)) if free else np.array([a or 0.0])
    if candidates[0] >= y.min():
        return None
    logs = np.log(y[:, None] - candidates)  # [n, candidates]
    centred = x - x.mean()
    slopes = centred @ logs / (centred @ centred)
    intercepts = logs.mean(0) - slopes * x.mean()
    errors = ((candidates + np.exp(intercepts + np.outer(x, slopes)) - y[:, None]) ** 2).sum(0)
    falls = slopes < -1e-9  # more than rounding differences of equal values
    if not falls.any():
        return None
    best = int(np.argmin(np.where(falls, errors, np.inf)))
    c = -float(slopes[best])
    return PowerLaw(float(candidates[best]), float(np.exp(-intercepts[best] / c)), c, points - 2 - free)


def bootstrap(
    compute: Sequence[float], replicates: Sequence[Sequence[float]], draws: int = 400, seed: int = 0
) -> list[PowerLaw]:
    """Fit repeatedly to means of replicates drawn with replacement; deterministic.

    Args:
        compute: [n].
        replicates: for each amount of compute the values of its replicates; at least two somewhere.
        draws: number of fits; fits without a law are ignored.
    """
    random = np.random.default_rng(seed)
    laws = []
    for _ in range(draws):
        means = [np.mean(random.choice(np.asarray(values, float), len(values))) for values in replicates]
        law = fit_power_law(compute, means)
        if law:
            laws.append(law)
    return laws
