"""The Frechet distance of Gaussians fitted to features, with its standard error and its limit for many samples.

The distance to the Gaussian of fixed reference features is, as a function of the samples' mean and covariance, smooth
where there are more samples than features. So its standard error follows from its derivative, and what is left of its
bias falls as 1 / N. All in float64: with 2,048 features a distance is a small difference of large traces.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from harness.metrics.finite import are_finite

log = logging.getLogger(__name__)

QUANTILE_95 = 1.959963984540054
"""Of the standard normal distribution: 95 % lie within so many standard deviations."""

_GROUPS = 5


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


UNDEFINED = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D], float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def fit(cls, features: Tensor) -> Gaussian:
        """Fit to features [N, D], N > 1; the covariance is divided by N - 1."""
        rows = features.double()
        mean = rows.mean(0)
        return cls(mean, torch.cov(rows.T).reshape(len(mean), len(mean)))


def frechet(samples: Gaussian, reference: Gaussian) -> float:
    """Return |mu_1 - mu_2|^2 + Tr(C_1 + C_2 - 2 (C_2^(1/2) C_1 C_2^(1/2))^(1/2))    (Heusel et al. 2017, eq. 6).

    The product is made symmetric, which has the eigenvalues of C_1 C_2 and takes a tenth of the time.
    """
    return _distance(samples, reference, _square_root(reference.covariance))


def frechet_standard_error(reference: Tensor, samples: Tensor) -> float:
    """Estimate the standard deviation of the Frechet distance over draws of the samples, the reference being fixed.

    By the influence of each sample (the infinitesimal jackknife, Jaeckel 1972): with
    T = C_2^(1/2) (C_2^(1/2) C_1 C_2^(1/2))^(-1/2) C_2^(1/2), the derivative of the distance by C_1 is I - T, so

        I(x) = 2 (mu_1 - mu_2) . (x - mu_1) + (x - mu_1)' (I - T) (x - mu_1) - mean,    sqrt(sum of I^2) / N

    It measures the spread alone. The bias of the distance, of order D / N and upwards, is not in it: see
    `frechet_infinity`. Where the two distributions are equal it is too large, by up to sqrt(2).

    Args:
        reference, samples: [M, D] and [N, D] features.

    Returns:
        NaN if a feature is not finite, or with D samples or fewer, where the distance is not smooth.
    """
    if not _is_smooth(reference, samples, len(samples), "fid_standard_error"):
        return math.nan
    fitted, target = Gaussian.fit(samples), Gaussian.fit(reference)
    return _standard_error(samples, fitted, target, _square_root(target.covariance))


def frechet_infinity(reference: Tensor, samples: Tensor) -> Interval:
    """Estimate the Frechet distance of infinitely many samples to the reference, with a 95 % interval.

    Extrapolated linearly in 1 / N (Chong and Forsyth 2020), not over overlapping random subsets, but from all samples
    and from all but one of five random groups: 5 F(N) - 4 mean of F(4 N / 5), the jackknife of groups. To second order
    in the error of mean and covariance it is unbiased, and `frechet_standard_error` is its standard error, too large
    where the distributions are equal. The interval covers draws of the samples; the reference is fixed, and the bias of
    its own size remains.

    Args:
        reference, samples: [M, D] and [N, D] features.

    Returns:
        NaN if a feature is not finite, or if 4 N / 5 is not above D.
    """
    if not _is_smooth(reference, samples, len(samples) * (_GROUPS - 1) // _GROUPS, "fid_infinity"):
        return UNDEFINED
    fitted, target = Gaussian.fit(samples), Gaussian.fit(reference)
    root = _square_root(target.covariance)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    group = order.to(samples.device) % _GROUPS
    without = [_distance(Gaussian.fit(samples[group != left_out]), target, root) for left_out in range(_GROUPS)]
    value = _GROUPS * _distance(fitted, target, root) - (_GROUPS - 1) * sum(without) / _GROUPS
    half_width = QUANTILE_95 * _standard_error(samples, fitted, target, root)
    return Interval(value, value - half_width, value + half_width)


def frechet_by_class(reference: Tensor, reference_labels: Tensor, samples: Tensor, labels: Tensor) -> dict[int, float]:
    """Return the Frechet distance of the samples of each class to the reference images of that class.

    Args:
        reference, samples: [M, D] and [N, D] features.
        reference_labels, labels: [M] and [N] integers.

    Returns:
        class -> distance, of the reference's classes in order; NaN where a side has fewer than two of them or a
        feature is not finite.
    """
    distances = {}
    for label in torch.unique(reference_labels).tolist():
        real, made = reference[reference_labels == label], samples[labels == label]
        enough = min(len(real), len(made)) >= 2 and are_finite(real, made)
        distances[int(label)] = frechet(Gaussian.fit(made), Gaussian.fit(real)) if enough else math.nan
    return distances


def _is_smooth(reference: Tensor, samples: Tensor, num_fitted: int, metric: str) -> bool:
    if num_fitted <= samples.shape[1]:
        log.warning(
            f"{metric} is NaN: {len(samples)} samples of {samples.shape[1]} features; a Gaussian is fitted to "
            f"{num_fitted} of them, which must be more than there are features"
        )
        return False
    return are_finite(reference, samples)


def _square_root(covariance: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    return (vectors * eigenvalues.clamp_min(0).sqrt()) @ vectors.T


def _distance(samples: Gaussian, reference: Gaussian, root: Tensor) -> float:
    """Return the distance; `root` is the square root of the reference's covariance."""
    eigenvalues = torch.linalg.eigvalsh(root @ samples.covariance @ root)
    traces = samples.covariance.trace() + reference.covariance.trace() - 2 * eigenvalues.clamp_min(0).sqrt().sum()
    return float((samples.mean - reference.mean).square().sum() + traces)


def _standard_error(samples: Tensor, fitted: Gaussian, reference: Gaussian, root: Tensor) -> float:
    eigenvalues, vectors = torch.linalg.eigh(root @ fitted.covariance @ root)
    # Directions in which there is no variance have no influence; a feature that is always 0 is one.
    smallest = eigenvalues[-1] * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps
    inverse_root = torch.where(eigenvalues > smallest, eigenvalues.clamp_min(smallest), torch.inf).rsqrt()
    map_root = (root @ vectors) * inverse_root.sqrt()  # T = map_root map_root'
    total = 0.0, 0.0
    for rows in samples.split(4096):
        centred = rows.double() - fitted.mean
        influence = 2 * centred @ (fitted.mean - reference.mean)
        influence += centred.square().sum(1) - (centred @ map_root).square().sum(1)
        total = total[0] + float(influence.sum()), total[1] + float(influence.square().sum())
    count = len(samples)
    return math.sqrt(max(0.0, total[1] / count - (total[0] / count) ** 2) / count)
