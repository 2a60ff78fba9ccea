import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset as TorchDataset

from harness.data import Split, load_dataset
from harness.errors import DataError
from harness.metrics.features import load_extractor
from harness.metrics.fidelity import fidelity, reference_features
from harness.metrics.torchvision_compat import torch_fidelity


@pytest.fixture(scope="module")
def digits():
    """Digits with 200 training images, so that digitsnet is there at once."""
    whole = load_dataset("digits")
    train = Split(whole.train.images[:200], whole.train.labels[:200])
    return dataclasses.replace(whole, train=train, digest="the first 200 digits")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.delenv("HARNESS_INCEPTION_WEIGHTS", raising=False)


def gaussian(mean, std, count=400):
    """Points of exactly this mean and these (uncorrelated) standard deviations, [count, D] float64."""
    draws = np.random.default_rng(0).standard_normal((count, len(mean)))
    draws -= draws.mean(0)
    whiten = np.linalg.cholesky(np.linalg.inv(np.cov(draws, rowvar=False)))
    return torch.from_numpy(draws @ whiten * std + mean)


def test_the_distance_of_two_known_gaussians_is_exact():
    first = gaussian(mean=[1.0, -2.0, 0.0], std=[1.0, 2.0, 0.5])
    second = gaussian(mean=[0.0, 1.0, 0.5], std=[3.0, 2.0, 1.0])
    # |mu_1 - mu_2|^2 + sum of (sigma_1 - sigma_2)^2 for diagonal covariances
    expected = (1.0 + 9.0 + 0.25) + (4.0 + 0.0 + 0.25)
    assert fidelity(first, second, k=3)["fid"] == pytest.approx(expected, rel=1e-12)
    assert fidelity(second, first, k=3)["fid"] == pytest.approx(expected, rel=1e-12)


def test_equal_sets_have_distance_zero_and_precision_and_recall_one():
    features = torch.from_numpy(np.random.default_rng(1).standard_normal((300, 8)).astype(np.float32))
    for k in (1, 5):
        found = fidelity(features, features, k)
        assert abs(found["fid"]) < 1e-6
        assert (found["precision"], found["recall"]) == (1, 1)


def test_precision_is_of_the_samples_and_recall_of_the_reference():
    on_a_line = torch.tensor([[1.0, 0.0]])
    reference = torch.tensor([[0.0], [1.0], [2.0], [100.0]]) * on_a_line  # radii for k = 1: 1, 1, 1, 98
    samples = torch.tensor([[0.5], [0.6], [1.5], [-50.0], [-50.1]]) * on_a_line  # radii: 0.1, 0.1, 0.9, 0.1, 0.1
    found = fidelity(reference, samples, k=1)
    # The three samples near 1 are inside balls of the reference; only 1 and 2 are inside a ball (1.5's) of the samples.
    assert (found["precision"], found["recall"]) == pytest.approx((3 / 5, 2 / 4))


def test_the_number_of_neighbours_counts():
    draws = np.random.default_rng(2).standard_normal((2, 200, 4)).astype(np.float32)
    reference, samples = torch.from_numpy(draws)
    shares = [fidelity(reference, samples + 1, k) for k in (1, 3, 5)]
    assert shares[0]["precision"] < shares[1]["precision"] < shares[2]["precision"]
    assert shares[0]["recall"] < shares[1]["recall"] < shares[2]["recall"]


def test_too_few_images_for_k_neighbours_are_refused():
    with pytest.raises(DataError, match="k = 5 need more than 5 images on each side; got 9 reference images and 5 sam"):
        fidelity(torch.zeros(9, 2), torch.zeros(5, 2), k=5)


def test_samples_that_diverged_have_no_distance():
    samples = torch.zeros(9, 2)
    samples[3, 0] = math.nan
    assert all(math.isnan(value) for value in fidelity(torch.zeros(9, 2), samples, k=3).values())


class Pictures(TorchDataset):
    def __init__(self, pictures):
        self.pictures = torch.from_numpy(pictures)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.pictures[index]


def by_calculate_metrics(extractor, reference, samples, k, **which):
    found = torch_fidelity().calculate_metrics(
        input1=Pictures(samples),
        input2=Pictures(reference),
        feature_extractor=extractor.name,
        feature_extractor_weights_path=extractor.weights_path and str(extractor.weights_path),
        prc_neighborhood=k,
        **which,
        cuda=False,
        cache=False,
        samples_shuffle=False,
        save_cpu_ram=True,  # no worker processes
        verbose=False,
    )
    return {{"frechet_inception_distance": "fid"}.get(key, key): value for key, value in found.items()}


def test_the_numbers_are_those_of_torch_fidelitys_calculate_metrics(digits):
    extractor = load_extractor("digitsnet", digits)
    reference, samples = digits.to_images(digits.train.images), digits.to_images(digits.test.images)
    ours = fidelity(extractor.features(reference), extractor.features(samples), k=5)
    theirs = by_calculate_metrics(extractor, reference, samples, 5, fid=True, prc=True)
    assert ours == {key: theirs[key] for key in ("fid", "precision", "recall")}


@pytest.mark.slow
def test_the_numbers_with_inception_are_those_of_torch_fidelitys_calculate_metrics(digits, inception_weights):
    extractor = load_extractor("inception", digits, weights=inception_weights)
    reference, samples = digits.to_images(digits.train.images[:8]), digits.to_images(digits.test.images[:7])
    ours = fidelity(extractor.features(reference), extractor.features(samples), k=3)
    theirs = by_calculate_metrics(
        extractor, np.repeat(reference, 3, 1), np.repeat(samples, 3, 1), 3, fid=True, prc=True
    )
    assert ours == {key: theirs[key] for key in ("fid", "precision", "recall")}


def test_reference_features_are_extracted_once_for_each_extractor_data_split_and_number(digits, tmp_path):
    extractor = load_extractor("digitsnet", digits)

    class Counting(torch.nn.Module):
        calls = 0

        def forward(self, images):
            Counting.calls += 1
            return extractor.module(images)

    counting = dataclasses.replace(extractor, module=Counting())
    whole = reference_features(counting, digits)
    assert torch.equal(whole, extractor.features(digits.to_images(digits.train.images)))
    calls = Counting.calls
    assert torch.equal(reference_features(counting, digits), whole)
    assert torch.equal(reference_features(counting, digits, n=10**6), whole)
    assert Counting.calls == calls

    others = [
        (extractor, digits, 50, "train"),
        (extractor, digits, None, "test"),
        (dataclasses.replace(extractor, digest="of other weights"), digits, None, "train"),
        (extractor, dataclasses.replace(digits, digest="of other data"), None, "train"),
    ]
    for count, arguments in enumerate(others, start=2):
        reference_features(*arguments)
        assert len(list((tmp_path / "features").iterdir())) == count


def test_a_part_of_the_reference_is_drawn_from_all_of_it(digits):
    extractor = load_extractor("digitsnet", digits)
    whole, part = reference_features(extractor, digits), reference_features(extractor, digits, n=50)
    rows = torch.cdist(part, whole).argmin(1)
    assert torch.allclose(part, whole[rows], rtol=1e-5, atol=1e-6)
    assert len(set(rows.tolist())) == 50
    assert rows.max() > 150 and rows.min() < 50
