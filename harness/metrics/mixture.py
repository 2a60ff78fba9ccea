"""Measures of points in the plane against a mixture of Gaussians: which modes are found, and how well. NumPy only.

Frechet's distance and the MMD see two moments alone: one Gaussian with the data's mean and covariance has a distance of
0 and no mode of the data. So `modes` stands beside them.
"""

from typing import NamedTuple

import numpy as np


class Modes(NamedTuple):
    """How samples lie about the modes of a mixture.

    Attributes:
        covered: number of modes with a high-quality sample.
        high_quality: share of samples within `radius` of a mode's centre.
        shares: [K], each mode's share of the high-quality samples; zeros if there are none.
    """

    covered: int
    high_quality: float
    shares: np.ndarray


def modes(samples: np.ndarray, centres: np.ndarray, radius: float) -> Modes:
    """Assign each sample to its nearest mode (Srivastava et al. 2017, section 4.1: within three standard deviations).

    Args:
        samples: [N, D]; one that is not finite is near no mode.
        centres: [K, D].
        radius: of a high-quality sample about its mode.
    """
    squares = ((samples[:, None, :] - centres[None]) ** 2).sum(-1)  # [N, K]
    nearest = squares.argmin(1)
    good = squares[np.arange(len(samples)), nearest] <= radius**2  # False for NaN
    counts = np.bincount(nearest[good], minlength=len(centres))
    return Modes(int((counts > 0).sum()), float(good.mean()), counts / max(1, counts.sum()))


HIGH_QUALITY_STDS = 3
"""A sample is of high quality within so many standard deviations of a mode."""


def log_density(points: np.ndarray, centres: np.ndarray, std: float) -> np.ndarray:
    """Return the log-density of points under equally likely round Gaussians, [N] in nats.

        log p(x) = log sum_k exp(-|x - m_k|^2 / (2 std^2)) - log K - (D / 2) log(2 pi std^2)

    Data whose offsets are clamped, as those of `harness.data.mog`, have no density of their own: 0.3 % of their
    coordinates lie exactly on the bounds. This is that of the mixture before clamping, which differs nowhere else.

    Args:
        points: [N, D]; one that is not finite has NaN.
        centres: [K, D].
        std: standard deviation along each coordinate.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        offsets = points.astype(np.float64)[:, None, :] - centres.astype(np.float64)[None]
        exponents = -(offsets**2).sum(-1) / (2 * std**2)  # [N, K]
        largest = exponents.max(1)
        sums = np.exp(exponents - largest[:, None]).sum(1)
        values = largest + np.log(sums) - np.log(len(centres)) - centres.shape[1] / 2 * np.log(2 * np.pi * std**2)
    return np.where(np.isfinite(points).all(1), values, np.nan)


def mmd2(real: np.ndarray, fake: np.ndarray) -> float:
    """Estimate the squared maximum mean discrepancy without bias, with the kernel k(x, y) = (x.y / 2 + 1)^2.

        E k(x, x') + E k(y, y') - 2 E k(x, y)                                  (Gretton et al. 2012, eq. 3; of degree 2)

    Both sets are standardised by the real points' mean and standard deviation over all coordinates, as in SIDDM's code.
    The kernel's sums need moments alone, so the cost is linear in the number of points.

    Args:
        real, fake: [N, D] and [M, D], at least two points each.
    """
    mean, std = real.mean(), real.std()
    x, y = ((points.astype(np.float64) - mean) / std for points in (real, fake))
    return _mean_of_pairs(x) + _mean_of_pairs(y) - 2 * _sum_of_pairs(x, y) / (len(x) * len(y))


def _sum_of_pairs(x: np.ndarray, y: np.ndarray) -> float:
    """Return the sum of (x.y / 2 + 1)^2 = (x.y)^2 / 4 + x.y + 1 over all pairs."""
    return float(((x.T @ x) * (y.T @ y)).sum() / 4 + x.sum(0) @ y.sum(0) + len(x) * len(y))


def _mean_of_pairs(x: np.ndarray) -> float:
    """Return the kernel's mean over pairs of different points."""
    same = (((x**2).sum(1) / 2 + 1) ** 2).sum()
    return float((_sum_of_pairs(x, x) - same) / (len(x) * (len(x) - 1)))
