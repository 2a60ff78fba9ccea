"""The stratified estimate of a sum over t: a few t for each image, unbiased, with its standard error.

It does not depend on a network: it works on a function `terms`, also on stored values. t is drawn within strata that
have about equal shares of the sum, in proportion to a pilot's curve of L_t, so that L_t / p(t) hardly varies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Terms = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""terms(image, t, draw) -> L_t in bits/dim, all [n]: the same image, t and draw give the same value."""

Progress = Callable[[int, int], None]
"""progress(network evaluations done, total)."""


class Pilot(NamedTuple):
    """Draws that determine the strata and fill the curve's tail; not part of the estimate.

    Attributes:
        timesteps: [G], ascending, with t = 0.
        values: [P, G, 2], L_t of P images, two draws each.
    """

    timesteps: np.ndarray
    values: np.ndarray

    @property
    def L_t(self) -> np.ndarray:
        """Mean over images and draws: [G]."""
        return self.values.mean((0, 2))


class Strata(NamedTuple):
    """The strata of timesteps.

    Attributes:
        edges: [K + 1], stratum k is edges[k] .. edges[k + 1] - 1. The first is t = 0 alone.
        draws: [K], for each image, at least 2.
        density: [T], p(t) within its stratum, where it sums to one.
    """

    edges: np.ndarray
    draws: np.ndarray
    density: np.ndarray


class Drawn(NamedTuple):
    """The result of the draws.

    Attributes:
        image_sum: [N], unbiased for L_0 + ... + L_{T-1} of each image.
        image_variance: [N], unbiased for the variance of image_sum.
        L_0: mean over images.
        sum_at, count_at: [T], of the draws that fell on t.
    """

    image_sum: np.ndarray
    image_variance: np.ndarray
    L_0: float
    sum_at: np.ndarray
    count_at: np.ndarray

    @property
    def mean(self) -> float:
        """Estimate the mean over images of L_0 + ... + L_{T-1}."""
        return float(self.image_sum.mean())

    @property
    def standard_error(self) -> float:
        """Of `mean`, for these images."""
        return math.sqrt(self.image_variance.mean() / len(self.image_variance))

    def L_t(self, pilot: Pilot) -> np.ndarray:
        """Return the mean of all draws at each t, the pilot's included: [T], NaN where there are none."""
        total, count = self.sum_at.copy(), self.count_at.copy()
        total[pilot.timesteps] += pilot.values.sum((0, 2))
        count[pilot.timesteps] += pilot.values.shape[0] * pilot.values.shape[2]
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def curve_timesteps(num_timesteps: int, count: int = 300) -> np.ndarray:
    """Choose at most `count` values of t for a curve of L_t: every t below 50, then spaced logarithmically."""
    if num_timesteps <= count:
        return np.arange(num_timesteps)
    tail = np.geomspace(50, num_timesteps - 1, count - 50)
    return np.unique(np.concatenate([np.arange(50), tail.round().astype(int)]))


def run_pilot(terms: Terms, num_images: int, num_timesteps: int, evaluations_per_image: int, *, seed: int) -> Pilot:
    """Evaluate a few images, at least four, at the curve's timesteps: about a tenth of the estimate's own cost."""
    timesteps = curve_timesteps(num_timesteps)
    affordable = num_images * evaluations_per_image // (10 * 2 * len(timesteps))
    images = np.random.default_rng([seed, 1]).permutation(num_images)[: max(4, affordable)]
    shape = (len(images), len(timesteps), 2)
    image, t, draw = np.broadcast_arrays(images[:, None, None], timesteps[:, None], np.arange(2))
    # Negative indices: the estimate's draws count up from 0, so they never share noise.
    values = terms(image.ravel(), t.ravel(), (-1 - draw - 2 * t).ravel())
    return Pilot(timesteps, values.reshape(shape))


def make_strata(pilot: Pilot, num_timesteps: int, evaluations_per_image: int) -> Strata:
    """Cut 1 .. T-1 into strata of equal shares of the pilot's L_t, and divide the draws by its standard deviations.

    Two draws per stratum; t = 0 gets its share by Neyman's rule, n_k proportional to the standard deviation of the
    stratum's contribution. The estimate is unbiased for any pilot; a poor one only increases the variance.

    Raises:
        ValueError: fewer than 4 evaluations, too few for two draws in each of two strata.
    """
    budget = evaluations_per_image
    if budget < 4:
        raise ValueError(f"evaluations_per_image must be at least 4, two in each of two strata; got {budget}")
    mass = _interpolated_curve(pilot, num_timesteps)
    strata = _cut(mass, budget // 2 - 1)
    std = np.sqrt(_variances(pilot, strata))
    at_0 = int(np.clip(round(budget * std[0] / max(std.sum(), 1e-30)), 2, budget - 2))
    strata = _cut(mass, (budget - at_0) // 2)
    variance = _variances(pilot, strata)
    for _ in range(budget - int(strata.draws.sum())):
        strata.draws[np.argmax(variance / (strata.draws * (strata.draws + 1)))] += 1
    return strata


def draw_strata(
    terms: Terms,
    num_images: int,
    strata: Strata,
    *,
    seed: int,
    images_at_once: int = 1000,
    progress: Progress | None = None,
) -> Drawn:
    """Draw every stratum's timesteps for every image and sum up.

        sum_k 1/n_k sum_j L_{t_kj} / p(t_kj),   each t_kj drawn from p within stratum k, independently

    The same strata and seed give the same t, and draw j of an image has number j in `terms`.
    """
    edges, draws, density = strata
    num_draws, starts = int(draws.sum()), np.cumsum(draws) - draws
    stratum = np.repeat(np.arange(len(draws)), draws)  # [m]
    cumulative = np.cumsum(density)  # k at the start of stratum k
    uniform = np.random.default_rng(seed)
    image_sum, image_variance = np.zeros(num_images), np.zeros(num_images)
    sum_at, count_at, L_0 = np.zeros(len(density)), np.zeros(len(density), int), 0.0
    for images in chunks(num_images, images_at_once):
        position = stratum + uniform.random((len(images), num_draws))
        t = np.searchsorted(cumulative, position, side="right").clip(edges[stratum], edges[stratum + 1] - 1)
        image, draw = np.broadcast_arrays(images[:, None], np.arange(num_draws))
        L = terms(image.ravel(), t.ravel(), draw.ravel()).reshape(t.shape)
        contribution = L / density[t]
        mean = np.add.reduceat(contribution, starts, axis=1) / draws  # [b, K]
        deviation = contribution - mean[:, stratum]
        variance = np.add.reduceat(deviation**2, starts, axis=1) / (draws - 1)
        image_sum[images], image_variance[images] = mean.sum(1), (variance / draws).sum(1)
        L_0 += float(mean[:, 0].sum()) / num_images
        sum_at += np.bincount(t.ravel(), L.ravel(), minlength=len(density))
        count_at += np.bincount(t.ravel(), minlength=len(density))
        if progress is not None:
            progress(int(images[-1] + 1) * num_draws, num_images * num_draws)
    return Drawn(image_sum, image_variance, L_0, sum_at, count_at)


def _interpolated_curve(pilot: Pilot, num_timesteps: int) -> np.ndarray:
    """Interpolate the pilot's L_t to every t, [T], linearly on logarithmic axes, always above 0."""
    known = np.nan_to_num(pilot.L_t, nan=0.0, posinf=0.0)
    known = np.maximum(known, max(1e-9 * known.max(), 1e-30))
    return np.exp(np.interp(np.log1p(np.arange(num_timesteps)), np.log1p(pilot.timesteps), np.log(known)))


def _cut(mass: np.ndarray, count: int) -> Strata:
    """Split into t = 0 and at most `count` strata of equal mass, with two draws in each."""
    cumulative = np.cumsum(mass[1:])
    inner = 2 + np.searchsorted(cumulative, cumulative[-1] * np.arange(1, count) / count)
    edges = np.unique(np.concatenate([[0, 1], inner.clip(max=len(mass)), [len(mass)]]))
    size = np.diff(edges)
    share = mass / np.repeat(np.add.reduceat(mass, edges[:-1]), size)
    # A tenth of each stratum is drawn uniformly: no draw then weighs more than 10 times as much as without a pilot.
    density = 0.9 * share + 0.1 / np.repeat(size, size)
    return Strata(edges, np.full(len(size), 2), density)


def _variances(pilot: Pilot, strata: Strata) -> np.ndarray:
    """Return the variance of one draw's contribution within each stratum, averaged over the pilot's images: [K]."""
    contribution = pilot.values / strata.density[pilot.timesteps][:, None]
    stratum = np.searchsorted(strata.edges, pilot.timesteps, side="right") - 1
    inside = (contribution[:, stratum == k].reshape(len(contribution), -1) for k in range(len(strata.draws)))
    with np.errstate(invalid="ignore"):  # a network that overflows
        return np.nan_to_num([x.var(1, ddof=1).mean() if x.shape[1] else 0.0 for x in inside], posinf=0.0)


def chunks(count: int, size: int) -> list[np.ndarray]:
    """Cut 0 .. count - 1 into arrays of `size`, the last one shorter."""
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
