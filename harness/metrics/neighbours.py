"""Nearest neighbours between sets of features, by blocks: the matrix of all distances is never in memory.

Distances are those of `torch.cdist` in float32, as torch-fidelity takes them, and a point counts among its own
neighbours, at distance 0. Computed on the device of the features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.errors import DataError
from harness.metrics.finite import are_finite

BLOCK = 8192
"""Points on each side of a block: 256 MiB of distances, of which at most three are in memory at a time."""


@dataclass(frozen=True)
class Neighbourhoods:
    """How the k-NN balls of reference images and of samples lie to each other.

    Attributes:
        precision: share of the samples within the ball of some reference image (Kynkaanniemi et al. 2019, eq. 2).
        recall: share of the reference images within the ball of some sample.
        density: mean number of balls of reference images that a sample is within, over k (Naeem et al. 2020, eq. 4).
        coverage: share of the reference images whose ball has a sample within (their eq. 5).
    """

    precision: float
    recall: float
    density: float
    coverage: float

    @property
    def f_score(self) -> float:
        """The harmonic mean of precision and recall, 0 where both are."""
        return 2 * self.precision * self.recall / max(1e-5, self.precision + self.recall)


def neighbourhoods(reference: Tensor, samples: Tensor, k: int, block: int = BLOCK) -> Neighbourhoods:
    """Compare two sets of features by balls around each point that reach to its k-th neighbour of the same set.

    For precision and recall a ball contains its surface, as in torch-fidelity; for density and coverage it does not, as
    in the code of Naeem et al.

    Args:
        reference, samples: [N, D] and [M, D] features.
        k: neighbours that make a radius, the point itself not counted.
        block: points on each side of a block of distances.

    Returns:
        NaN where a feature is not finite.

    Raises:
        DataError: k or fewer points on one side.
    """
    if min(len(reference), len(samples)) <= k:
        raise DataError(
            f"precision and recall with k = {k} need more than {k} images on each side; "
            f"got {len(reference)} reference images and {len(samples)} samples"
        )
    if not are_finite(reference, samples):
        return Neighbourhoods(math.nan, math.nan, math.nan, math.nan)
    reference_radii, sample_radii = radii(reference, k, block), radii(samples, k, block)
    num_balls = torch.zeros(len(samples), dtype=torch.int64, device=samples.device)
    precise, recalled, covered = (
        torch.zeros(len(points), dtype=torch.bool, device=points.device) for points in (samples, reference, reference)
    )
    for rows, columns, distances in _blocks(samples, reference, block):
        radius = reference_radii[columns]
        precise[rows] |= (distances <= radius).any(1)
        recalled[columns] |= (distances <= sample_radii[rows].unsqueeze(1)).any(0)
        inside = distances < radius
        num_balls[rows] += inside.sum(1)
        covered[columns] |= inside.any(0)
    return Neighbourhoods(
        precision=_share(precise),
        recall=_share(recalled),
        density=float(num_balls.sum()) / (k * len(samples)),
        coverage=_share(covered),
    )


def radii(points: Tensor, k: int, block: int = BLOCK) -> Tensor:
    """Return the distance of each of [N, D] points to its k-th neighbour among the others, [N]."""
    nearest = torch.full((len(points), k + 1), torch.inf, dtype=points.dtype, device=points.device)
    for rows, columns, distances in _blocks(points, points, block, upper=True):  # the distances are symmetric
        nearest[rows] = _smallest(nearest[rows], distances)
        if rows != columns:
            nearest[columns] = _smallest(nearest[columns], distances.T.contiguous())
    return nearest[:, k]


def nearest_neighbours(points: Tensor, among: Tensor, count: int, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Return the distances to the nearest neighbours and which they are, nearest first, each [N, count].

    Args:
        points, among: [N, D] and [M, D] features, M >= count.
    """
    distances_of_all, rows_of_all = [], []
    for start in range(0, len(points), block):
        queries = points[start : start + block]
        nearest = torch.full((len(queries), 0), torch.inf, dtype=points.dtype, device=points.device)
        which = torch.empty((len(queries), 0), dtype=torch.int64, device=points.device)
        for _, columns, distances in _blocks(queries, among, block):
            values, indices = _topk(distances, count)
            values, indices = torch.cat([nearest, values], 1), torch.cat([which, indices + columns.start], 1)
            nearest, order = _topk(values, count)
            which = indices.gather(1, order)
        distances_of_all.append(nearest)
        rows_of_all.append(which)
    return torch.cat(distances_of_all), torch.cat(rows_of_all)


def _blocks(first: Tensor, second: Tensor, block: int, *, upper: bool = False) -> Iterator[tuple[slice, slice, Tensor]]:
    """Give the distances of each block, with its rows and columns; of those on and above the diagonal if `upper`."""
    for top in range(0, len(first), block):
        rows = slice(top, min(top + block, len(first)))
        for left in range(top if upper else 0, len(second), block):
            columns = slice(left, min(left + block, len(second)))
            yield rows, columns, torch.cdist(first[rows], second[columns])


def _smallest(nearest: Tensor, distances: Tensor) -> Tensor:
    """Return the smallest of both in each row, as many as `nearest` has, ascending."""
    values, _ = _topk(distances, nearest.shape[1])
    return _topk(torch.cat([nearest, values], 1), nearest.shape[1])[0]


def _topk(distances: Tensor, count: int) -> tuple[Tensor, Tensor]:
    values, indices = torch.topk(distances, min(count, distances.shape[1]), dim=1, largest=False, sorted=True)
    return values, indices


def _share(members: Tensor) -> float:
    return float(members.float().mean())
