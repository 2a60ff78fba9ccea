"""The figures of networks that are trained or loaded for it."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset as TorchDataset

from harness.data import Split, load_dataset
from harness.metrics.divergences import inception_score, kernel_distance
from harness.metrics.features import load_extractor
from harness.metrics.fidelity import fidelity, reference_features
from harness.metrics.logits import class_logits
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


def by_calculate_metrics(extractor, reference, samples, k, **which):
    found = torch_fidelity().calculate_metrics(
        input1=Pictures(samples),
        input2=Pictures(reference),
        feature_extractor=extractor.name,
        feature_extractor_weights_path=extractor.weights_path and str(extractor.weights_path),
        prc_neighborhood=k,
        **{"samples_shuffle": False, **which},
        cuda=False,
        cache=False,
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
    assert ours["fid"] > 0.1
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


class Pictures(TorchDataset):
    def __init__(self, pictures):
        self.pictures = torch.from_numpy(pictures)

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.pictures[index]


@pytest.mark.slow
def test_kid_and_the_inception_score_with_inception_are_torch_fidelitys(digits, inception_weights):
    extractor = load_extractor("inception", digits, weights=inception_weights)
    reference, samples = digits.to_images(digits.train.images[:12]), digits.to_images(digits.test.images[:12])
    features = extractor.features(samples)
    theirs = by_calculate_metrics(
        extractor,
        np.repeat(reference, 3, 1),
        np.repeat(samples, 3, 1),
        3,
        kid=True,
        isc=True,
        samples_shuffle=True,  # as is its default: of the splits
        kid_subsets=1,
        kid_subset_size=12,
    )
    kid = kernel_distance(extractor.features(reference), features)
    score = inception_score(class_logits(extractor, features))
    assert abs(kid.value) > 1e-3 and score.value > 1.001
    assert kid.value == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-6)
    assert score.value == pytest.approx(theirs["inception_score_mean"], abs=1e-6)
    assert score.standard_deviation == pytest.approx(theirs["inception_score_std"], abs=1e-6)
