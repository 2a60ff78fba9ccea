"""Nearest neighbours by blocks, against the whole matrix of distances and torch-fidelity."""

import math

import numpy as np
import pytest
import torch

from harness.errors import DataError
from harness.metrics.neighbours import nearest_neighbours, neighbourhoods, radii
from harness.metrics.torchvision_compat import torch_fidelity


def draws(seed, count, scale=1.0, shift=0.0):
    values = np.random.default_rng(seed).standard_normal((count, 8)) * scale + shift
    return torch.from_numpy(values.astype(np.float32))


def distances(first, second):
    difference = first.double().numpy()[:, None] - second.double().numpy()[None]
    return np.sqrt(np.square(difference).sum(-1))


@pytest.mark.parametrize("block", [64, 100, 10_000])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_and_f_score_are_torch_fidelitys_whatever_the_block(block, k):
    reference, samples = draws(0, 301), draws(1, 250, scale=0.8, shift=0.3)
    theirs = torch_fidelity().metric_prc.prc_features_to_metric(
        samples, reference, prc_neighborhood=k, save_cpu_ram=True, verbose=False
    )
    ours = neighbourhoods(reference, samples, k, block)
    assert (ours.precision, ours.recall, ours.f_score) == pytest.approx(tuple(theirs.values()), abs=1e-9)
    assert 0 < ours.recall < ours.precision < 1


@pytest.mark.parametrize("block", [37, 10_000])
def test_density_and_coverage_are_those_of_an_independent_computation(block):
    reference, samples, k = draws(0, 120), draws(1, 90, scale=0.8), 5
    # Naeem et al. (2020), eqs. 4 and 5
    radius = np.sort(distances(reference, reference), 1)[:, k]
    inside = distances(reference, samples) < radius[:, None]
    ours = neighbourhoods(reference, samples, k, block)
    assert ours.density == pytest.approx(inside.sum(0).mean() / k, rel=1e-12)
    assert ours.coverage == pytest.approx(inside.any(1).mean(), rel=1e-6)


def test_density_and_coverage_of_a_line_are_counted_by_hand():
    reference = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # radii for k = 1: 1, 1, 2, 7
    samples = torch.tensor([[0.5], [2.5], [3.5]])  # within the balls of 0 and 1; of 3; of 3 and 10
    ours = neighbourhoods(reference, samples, 1)
    assert ours.density == pytest.approx((2 + 1 + 2) / 3)
    assert ours.coverage == 1.0


def test_of_equal_sets_density_is_one_on_average():
    ours = neighbourhoods(draws(0, 1500), draws(1, 1500), 5)
    assert ours.density == pytest.approx(1, abs=0.1)
    assert ours.coverage == pytest.approx(1 - 0.5**5, abs=0.03)  # their lemma 2


def test_radii_are_the_distances_to_the_kth_other_point():
    points = draws(2, 75)
    expected = np.sort(distances(points, points), 1)[:, 3]
    for block in (20, 75, 1000):
        assert radii(points, 3, block).numpy() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("block", [16, 1000])
def test_nearest_neighbours_come_in_order_from_all_blocks(block):
    points, among = draws(3, 40), draws(4, 90)
    expected = distances(points, among)
    values, rows = nearest_neighbours(points, among, 20, block)
    assert np.array_equal(rows.numpy(), np.argsort(expected, 1)[:, :20])
    assert values.numpy() == pytest.approx(np.sort(expected, 1)[:, :20], rel=1e-4)


def test_no_block_of_distances_is_larger_than_asked_for(monkeypatch):
    sizes, cdist = [], torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda x, y: sizes.append((len(x), len(y))) or cdist(x, y))
    neighbourhoods(draws(0, 100), draws(1, 70), 3, block=32)
    nearest_neighbours(draws(0, 100), draws(1, 70), 3, block=32)
    assert max(map(max, sizes)) == 32
    # Both triangles of 4 x 4 and of 3 x 3 blocks, and twice the 3 x 4 between the sets: once for the nearest.
    assert len(sizes) == 10 + 6 + 12 + 12


def test_too_few_points_for_k_neighbours_are_refused():
    with pytest.raises(DataError, match="k = 3 need more than 3 images on each side; got 3 reference images and 9 sam"):
        neighbourhoods(draws(0, 3), draws(1, 9), 3)


def test_without_precision_and_recall_the_f_score_is_zero():
    ours = neighbourhoods(draws(0, 50), draws(1, 50, shift=1000.0), 3)
    assert (ours.precision, ours.recall, ours.f_score, ours.density, ours.coverage) == (0, 0, 0, 0, 0)
    assert not math.isnan(ours.f_score)
