import dataclasses
import os

import numpy as np
import pytest
import torch

from harness.data import Split, load_dataset
from harness.errors import DataError
from harness.metrics.features import load_extractor


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HARNESS_INCEPTION_WEIGHTS", raising=False)
        patch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def test_data_without_labels_have_random_features_and_no_classifier(digits):
    unlabelled = dataclasses.replace(digits, train=Split(digits.train.images, None), num_classes=None)
    assert load_extractor(None, unlabelled).name == "random_features"
    with pytest.raises(DataError, match="digits has no labels to train digitsnet on: use the weights of `inception`"):
        load_extractor("digitsnet", unlabelled)


def test_another_data_sets_classifier_is_refused_with_the_choices(digits):
    with pytest.raises(
        DataError, match="no feature extractor 'cifar10net' for digits; the choices are inception, digi"
    ):
        load_extractor("cifar10net", digits)


def test_another_image_folders_classifier_is_refused_with_the_name_of_this_ones(digits):
    folder = dataclasses.replace(digits, name="image_folder", digest="ab" * 32)
    with pytest.raises(DataError, match=r"no feature extractor 'image_foldernet_cdcdcdcd' .* image_foldernet_abababab"):
        load_extractor("image_foldernet_cdcdcdcd", folder)


def test_coordinates_are_the_values_of_continuous_data():
    mog = load_dataset("mog")
    extractor = load_extractor(None, mog)
    points = mog.test.images[:100]
    assert (extractor.name, extractor.feature_dim) == ("coordinates", 2)
    assert np.array_equal(extractor.features(mog.to_images(points)).numpy(), points[:, :, 0, 0])
    with pytest.raises(DataError, match="inception: needs images, and mog has none"):
        load_extractor("inception", mog)


def test_missing_inception_weights_say_from_where_and_how(digits, tmp_path):
    with pytest.raises(DataError, match=r"no weights given\.\n  from: https://.*pth\n.*HARNESS_INCEPTION_WEIGHTS"):
        load_extractor("inception", digits)
    with pytest.raises(DataError, match=f"no file {tmp_path / 'absent.pth'}"):
        load_extractor("inception", digits, weights=tmp_path / "absent.pth")


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def test_a_file_of_weights_that_carries_code_is_refused(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Attack()}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match=r"evil\.pth: not a file of weights"):
        load_extractor("inception", digits, weights=tmp_path / "evil.pth")
    assert not (tmp_path / "attacked").exists()
