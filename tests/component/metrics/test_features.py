import dataclasses
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from harness.data import Split, load_dataset
from harness.errors import DataError
from harness.metrics.extractors.inception import read_inception_weights
from harness.metrics.features import load_extractor
from harness.metrics.weights import WEIGHTS


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HARNESS_INCEPTION_WEIGHTS", raising=False)
        patch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def digitsnet(digits, cache):
    return load_extractor(None, digits)


def test_digitsnet_reads_digits(digitsnet):
    assert digitsnet.name == "digitsnet"
    assert digitsnet.accuracy >= 0.97  # 0.9915 when this was written


def test_features_are_one_row_an_image_whatever_the_batches(digitsnet, digits):
    pictures = digits.to_images(digits.test.images)
    features = digitsnet.features(pictures)
    assert features.shape == (355, digitsnet.feature_dim)
    assert features.dtype == torch.float32
    assert torch.allclose(features, digitsnet.features(torch.from_numpy(pictures), batch_size=7), rtol=1e-5, atol=1e-6)


def test_features_tell_classes_apart(digitsnet, digits):
    train = digitsnet.features(digits.to_images(digits.train.images))
    means = torch.stack([train[digits.train.labels == label].mean(0) for label in range(10)])
    nearest = torch.cdist(digitsnet.features(digits.to_images(digits.test.images)), means).argmin(1)
    assert (nearest.numpy() == digits.test.labels).mean() > 0.95


def small(digits, count=100):
    """Digits with fewer images, for trainings that take a fraction of a second."""
    train = Split(digits.train.images[:count], digits.train.labels[:count])
    return dataclasses.replace(digits, train=train, digest=f"the first {count} digits")


@pytest.mark.slow
def test_training_and_loading_are_the_same_each_time_and_leave_random_state_and_threads_alone(
    digits, inception_weights, tmp_path, monkeypatch
):
    dataset, threads, digests = small(digits), torch.get_num_threads(), []
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for folder in ("a", "b"):
        monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / folder))
        with torch.no_grad():  # as an evaluation calls it
            digests.append(load_extractor(None, dataset).digest)
    load_extractor("inception", dataset, weights=inception_weights)
    assert digests[0] == digests[1]
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_a_classifier_is_trained_once_for_each_data_set(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    first = load_extractor("digitsnet", small(digits))
    written = first.weights_path.stat().st_mtime_ns
    again = load_extractor("digitsnet", small(digits))
    assert (again.digest, again.accuracy) == (first.digest, first.accuracy)
    assert again.weights_path.stat().st_mtime_ns == written
    other = load_extractor("digitsnet", small(digits, 120))
    assert other.weights_path != first.weights_path
    assert other.digest != first.digest


def test_the_classifiers_of_two_image_folders_have_two_names_and_know_what_guessing_gives(
    digits, tmp_path, monkeypatch
):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    folders = [dataclasses.replace(small(digits), name="image_folder", digest=digest * 64) for digest in "ab"]
    extractors = [load_extractor(None, folder) for folder in folders]
    assert [extractor.name for extractor in extractors] == ["image_foldernet_aaaaaaaa", "image_foldernet_bbbbbbbb"]
    assert extractors[0].majority_share == np.bincount(digits.test.labels).max() / 355
    assert extractors[0].description["test_majority_share"] < extractors[0].description["test_accuracy"]


@pytest.mark.slow
def test_two_processes_at_once_end_with_the_same_classifier(tmp_path):
    program = (
        "import dataclasses; from harness.data import Split, load_dataset; "
        "from harness.metrics.features import load_extractor; d = load_dataset('digits'); "
        "d = dataclasses.replace(d, train=Split(d.train.images[:100], d.train.labels[:100])); "
        "print(load_extractor(None, d).digest)"
    )
    environment = {**os.environ, "HARNESS_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    digests = [process.communicate()[0] for process in processes]
    assert digests[0] == digests[1] != ""
    assert len(list((tmp_path / "classifiers").iterdir())) == 1


def test_a_damaged_cached_classifier_is_named(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    path = load_extractor(None, small(digits)).weights_path
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=f"{path}: damaged; delete it"):
        load_extractor(None, small(digits))


def test_inception_takes_its_weights_from_the_environment_and_records_their_sha256(
    digits, inception_weights, monkeypatch
):
    monkeypatch.setenv("HARNESS_INCEPTION_WEIGHTS", str(inception_weights))
    extractor = load_extractor(None, dataclasses.replace(digits, image_size=32))  # smaller ones have their classifier
    assert extractor.name == "inception"
    assert extractor.digest == hashlib.sha256(inception_weights.read_bytes()).hexdigest()
    assert not extractor.official  # these are random


@pytest.mark.slow
def test_inception_sees_grey_as_three_equal_channels(digits, inception_weights):
    extractor = load_extractor("inception", digits, weights=inception_weights)
    grey = digits.to_images(digits.test.images[:2])
    features = extractor.features(grey)
    assert features.shape == (2, extractor.feature_dim) == (2, 2048)
    assert torch.equal(features, extractor.features(np.repeat(grey, 3, axis=1)))


def test_weights_of_another_network_are_refused(digits, digitsnet, tmp_path):
    torch.save(digitsnet.module.network.state_dict(), tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"other\.pth: the weights of another network: Conv2d_1a_3x3") as caught:
        load_extractor("inception", digits, weights=tmp_path / "other.pth")
    assert "needed: the weights of torch-fidelity's Inception-V3\n  from: https" in str(caught.value)


@pytest.mark.slow
def test_weights_as_distributed_training_and_old_files_have_them_give_the_same_features(
    digits, inception_weights, tmp_path
):
    state = torch.load(inception_weights, weights_only=True)
    changed = {f"module.{name}": value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert len(changed) < len(state)
    torch.save(changed, tmp_path / "changed.pth")
    images = digits.to_images(digits.test.images[:2])
    plain, other = (
        load_extractor("inception", digits, weights=p) for p in (inception_weights, tmp_path / "changed.pth")
    )
    assert torch.equal(plain.features(images), other.features(images))


def test_weights_that_are_not_finite_or_not_what_their_name_says_are_refused(inception_weights, tmp_path):
    state = torch.load(inception_weights, weights_only=True)
    torch.save(state, tmp_path / WEIGHTS["inception"].file_name)
    with pytest.raises(
        DataError, match="damaged: its sha256 does not start with 6726825d as that of the published file"
    ):
        read_inception_weights(tmp_path / WEIGHTS["inception"].file_name)
    state["fc.bias"][7] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(DataError, match=r"1 of the 1008 values of fc\.bias are not finite"):
        read_inception_weights(tmp_path / "nan.pth")
