"""A test of memorisation: are samples nearer to training images than test images are?

Test images were drawn from the data's distribution without knowing the training images, as samples of a perfect model
are. So between the two nothing needs to be calibrated by hand, whatever the features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from harness.metrics.finite import are_finite
from harness.metrics.frechet import QUANTILE_95, UNDEFINED, Interval
from harness.metrics.neighbours import nearest_neighbours

NUM_NEIGHBOURS = 50
"""Training images whose mean distance the nearest one's is divided by (Carlini et al. 2023)."""

TEST_SHARE = 0.01
"""Of the test images, those nearest to a training image: samples nearer than these count as memorised."""


class Memorisation(NamedTuple):
    """How near samples are to training images, measured by test images.

    Attributes:
        auc: probability that a sample is nearer to a training image than a test image is, with its interval. 0.5 where
            nothing is memorised; the test fires where the interval is above 0.5.
        memorised_share: share of the samples that are nearer than 99 % of the test images; 0.01 where nothing is
            memorised. It sees a few copies among many samples, which the AUC does not.
        nearest_ratios: [N], of each sample.
        nearest: [N, num_shown] rows of the nearest training images of each sample, nearest first.
    """

    auc: Interval
    memorised_share: float
    nearest_ratios: Tensor
    nearest: Tensor


def memorisation(train: Tensor, test: Tensor, samples: Tensor, num_shown: int = 5) -> Memorisation:
    """Compare samples with test images by the distance to the nearest of the training images.

    Args:
        train, test, samples: [M, D], [K, D] and [N, D] features.
        num_shown: neighbours that are returned.

    Returns:
        NaN where a feature is not finite.
    """
    if not are_finite(train, test, samples):
        ratios = torch.full((len(samples),), torch.nan)
        return Memorisation(UNDEFINED, math.nan, ratios, torch.zeros(len(samples), num_shown, dtype=torch.int64))
    of_samples, nearest = nearest_ratios(samples, train)
    of_test, _ = nearest_ratios(test, train)
    threshold = torch.quantile(of_test.double(), TEST_SHARE)
    return Memorisation(
        auc=probability_smaller(of_samples, of_test),
        memorised_share=float((of_samples < threshold).double().mean()),
        nearest_ratios=of_samples,
        nearest=nearest[:, :num_shown],
    )


def nearest_ratios(points: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance to the nearest training image over the mean distance to the nearest 50, and which they are.

    Divided so, a point between many training images is not taken for a copy (Carlini et al. 2023, sec. 4.2).

    Returns:
        [N] ratios in [0, 1], on the CPU, and [N, 50] rows (fewer where there are fewer training images).
    """
    distances, rows = nearest_neighbours(points, train, min(NUM_NEIGHBOURS, len(train)))
    scale = distances.mean(1)
    return torch.where(scale > 0, distances[:, 0] / scale, 0).cpu(), rows.cpu()


def probability_smaller(first: Tensor, second: Tensor) -> Interval:
    """Return P(x < y) + P(x = y) / 2 for x of the first and y of the second values, the area under the ROC curve.

    The interval is DeLong's (1988): the variance of each side's placements among the other side's values.

    Args:
        first, second: [N] and [K] values, at least 2 each.
    """
    of_first = 1 - _placements(first, second)  # [N], P(x < y) for each x
    of_second = _placements(second, first)  # [K], P(x < y) for each y
    value = float(of_first.mean())
    variance = float(of_first.var() / len(first) + of_second.var() / len(second))
    half_width = QUANTILE_95 * math.sqrt(variance)
    return Interval(value, max(0.0, value - half_width), min(1.0, value + half_width))


def _placements(values: Tensor, among: Tensor) -> Tensor:
    """Return for each value the share of `among` that is smaller, equal ones counted half."""
    ascending = among.double().sort().values
    below, up_to = (torch.searchsorted(ascending, values.double(), right=right) for right in (False, True))
    return (below + up_to).double() / (2 * len(among))
