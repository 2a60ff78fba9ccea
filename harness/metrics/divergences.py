"""Distances between sets of features other than Frechet's, and the Inception Score: each a function of whole sets."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harness.metrics.finite import are_finite

KID_DEGREE = 3
KID_OFFSET = 1.0
MIND_DIRECTIONS = 1000
SCORE_SPLITS = 10
SEED = 2020
"""Of torch-fidelity, so that its numbers are met: the order of the splits, and MIND's directions and subsets."""

_BLOCK = 4096


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    standard_error: float


class Score(NamedTuple):
    """An Inception Score and its standard deviation over the splits, which is no error of the mean."""

    value: float
    standard_deviation: float


def kernel_distance(reference: Tensor, samples: Tensor) -> Estimate:
    """Return KID, the unbiased MMD^2 with the kernel (x . y / D + 1)^3, and its standard error.

        mean over i != j of k(x_i, x_j) + mean over i != j of k(y_i, y_j) - 2 mean of k(x_i, y_j)

    (Binkowski et al. 2018, eq. 4), of all samples at once: torch-fidelity's value where its one subset is everything.
    The error is the jackknife over the samples, each left out once, the reference being fixed: exact sums, where the
    usual deviation over overlapping subsets measures the size of the subsets.

    Args:
        reference, samples: [M, D] and [N, D] features; at least 2 and 3.

    Returns:
        NaN if a feature is not finite.
    """
    if not are_finite(reference, samples):
        return Estimate(math.nan, math.nan)
    n, m = len(samples), len(reference)
    within = _kernel_sums(samples, samples) - _kernel(samples, samples)  # [N], without the point itself
    across = _kernel_sums(samples, reference)  # [N]
    of_reference = float((_kernel_sums(reference, reference) - _kernel(reference, reference)).sum()) / (m * (m - 1))
    value = float(within.sum()) / (n * (n - 1)) - 2 * float(across.sum()) / (n * m) + of_reference
    without = (within.sum() - 2 * within) / ((n - 1) * (n - 2)) - 2 * (across.sum() - across) / ((n - 1) * m)
    return Estimate(value, math.sqrt((n - 1) * float(without.var(correction=0))))


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    """Return the kernel of rows with rows of the same place, [N] float64, by blocks."""
    pairs = zip(first.split(_BLOCK), second.split(_BLOCK), strict=True)
    products = torch.cat([(rows.double() * others.double()).sum(1) for rows, others in pairs])
    return (products / first.shape[1] + KID_OFFSET) ** KID_DEGREE


def _kernel_sums(first: Tensor, second: Tensor) -> Tensor:
    """Return the sum of the kernel over `second` for each row of `first`, [N] float64, by blocks."""
    sums = torch.zeros(len(first), dtype=torch.float64, device=first.device)
    for start in range(0, len(first), _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = first[rows].double()
        for others in second.split(_BLOCK):
            sums[rows] += (block @ others.double().T / first.shape[1]).add_(KID_OFFSET).pow_(KID_DEGREE).sum(1)
    return sums


def monge_distance(reference: Tensor, samples: Tensor) -> float:
    """Return MIND, the Monge Inception Distance: 3 D times the mean squared sliced Wasserstein-2 distance.

        3 D / (M N) sum over directions u_i and ranks j of |sort(u_i' X)_j - sort(u_i' Y)_j|^2

    (Berthet et al. 2026, arXiv 2605.06797), with M = 1,000 random directions of length 1. The factor makes it the
    squared distance of the means, were there nothing else, times 3. Of the larger set a random subset of the size of
    the smaller is taken. Directions and subset are drawn as by torch-fidelity (its main branch, 2026-05).

    Args:
        reference, samples: [M, D] and [N, D] features.

    Returns:
        NaN if a feature is not finite.
    """
    if not are_finite(reference, samples):
        return math.nan
    generator, count, dim = torch.Generator().manual_seed(SEED), min(len(reference), len(samples)), samples.shape[1]
    chosen = [
        features if len(features) == count else features[torch.randperm(len(features), generator=generator)[:count]]
        for features in (samples, reference)
    ]
    directions = torch.randn(MIND_DIRECTIONS, dim, generator=generator)
    directions = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)
    total = 0.0
    for some in directions.split(100):
        first, second = ((features.float() @ some.T.to(features.device)).sort(0).values for features in chosen)
        total += float((first - second).double().square().mean(0).sum())
    return 3.0 * dim * total / MIND_DIRECTIONS


def inception_score(logits: Tensor) -> Score:
    """Return the Inception Score: exp of the mean KL divergence of p(y | x) from p(y), the mean over ten splits.

    (Salimans et al. 2016), the splits shuffled as by torch-fidelity.

    Args:
        logits: [N, num_classes] of samples, N >= 10.

    Returns:
        NaN if a logit is not finite.
    """
    if not are_finite(logits):
        return Score(math.nan, math.nan)
    order = torch.from_numpy(np.random.RandomState(SEED).permutation(len(logits)))
    log_p = logits.cpu()[order].double().log_softmax(1)
    bounds = [split * len(log_p) // SCORE_SPLITS for split in range(SCORE_SPLITS + 1)]
    scores = []
    for start, end in itertools.pairwise(bounds):
        part = log_p[start:end]
        marginal = part.exp().mean(0).log()
        scores.append(float((part.exp() * (part - marginal)).sum(1).mean().exp()))
    return Score(float(np.mean(scores)), float(np.std(scores)))
