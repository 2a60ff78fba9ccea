"""Files of reference statistics: ours and those of others."""

import dataclasses

import numpy as np
import pytest
import torch

from harness.data import load_dataset
from harness.errors import DataError
from harness.metrics.features import load_extractor
from harness.metrics.fidelity import frechet_distance
from harness.metrics.reference import ReferenceStatistics, read_reference, reference_of, write_reference


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def reference(digits):
    return reference_of(load_extractor("random_features", digits), digits, "test", None)


def samples(reference, n=500):
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(reference.features)[:n] + torch.randn(min(n, 355), 384, generator=generator) / 30


def test_what_is_written_is_read_with_all_facts(reference, digits, tmp_path):
    write_reference(tmp_path / "digits.npz", reference)
    again = read_reference(tmp_path / "digits.npz")
    for name in ("mu", "sigma", "features"):
        assert np.array_equal(getattr(again, name), getattr(reference, name))
    assert again.facts == {
        "num_images": 355,
        "extractor": "random_features",
        "weights_sha256": load_extractor("random_features", digits).digest,
        "data": "digits",
        "data_digest": digits.digest,
        "split": "test",
    }
    assert read_reference(tmp_path / "digits.npz", again.sha256).sha256 == again.sha256
    with pytest.raises(DataError, match="is not the file that the evaluation was planned with"):
        read_reference(tmp_path / "digits.npz", "0" * 64)
    with pytest.raises(DataError, match="exists already"):
        write_reference(tmp_path / "digits.npz", reference)


def test_statistics_alone_give_the_fid_of_the_features_that_they_are_of(reference):
    alone = dataclasses.replace(reference, features=None)
    points = alone.points
    assert np.allclose(points.mean(0), reference.mu, atol=1e-6)  # points are float32, as features are
    assert np.allclose(np.cov(points, rowvar=False), reference.sigma, atol=1e-6)
    expected = frechet_distance(torch.from_numpy(reference.features), samples(reference))
    assert frechet_distance(points, samples(reference)) == pytest.approx(expected, rel=1e-4)


def test_the_layouts_of_adm_and_pytorch_fid_are_taken(tmp_path):
    mu, sigma = np.zeros(2048), np.eye(2048, dtype=np.float32)
    spatial = {"mu_s": np.zeros(2023), "sigma_s": np.eye(2023, dtype=np.float32)}
    np.savez(tmp_path / "adm.npz", mu=mu, sigma=sigma, **spatial)
    np.savez(tmp_path / "fid.npz", mu=mu, sigma=sigma)
    adm, plain = read_reference(tmp_path / "adm.npz"), read_reference(tmp_path / "fid.npz")
    assert (adm.features, adm.facts, adm.sigma.dtype) == (None, {"extractor": "inception"}, np.float64)
    assert plain.facts == {}


def test_a_reference_of_another_network_is_refused(reference, digits, tmp_path):
    extractor = load_extractor("random_features", digits)
    reference.require_extractor(extractor, tmp_path)
    for change, words in (
        ({"name": "clip"}, "is of the features of random_features, not of clip"),
        ({"digest": "0" * 64}, "is of other weights of random_features"),
        ({"feature_dim": 2048}, "has 384 features, and random_features has 2048"),
    ):
        with pytest.raises(DataError, match=words):
            reference.require_extractor(dataclasses.replace(extractor, **change), tmp_path)


class Attack:
    def __reduce__(self):
        return print, ("attacked",)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"arr_0": np.zeros(3)}, "has no mu and no sigma; it has arr_0"),
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, r"mu is \[3\] and sigma \[2, 2\]"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "not finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1, 0], [1, 1]])}, "sigma is not symmetric"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "features": np.zeros((4, 3))}, "features are"),
        ({"mu": np.array([Attack()], dtype=object), "sigma": np.eye(1)}, "cannot be read as an npz of plain arrays"),
    ],
)
def test_what_is_no_reference_is_refused_with_the_reason(tmp_path, arrays, words, capsys):
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(DataError, match=words):
        read_reference(tmp_path / "odd.npz")
    assert capsys.readouterr().out == ""


def test_a_file_that_is_missing_or_damaged_is_refused(reference, tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_reference(tmp_path / "none.npz")
    write_reference(tmp_path / "whole.npz", reference)
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="cannot be read as an npz"):
        read_reference(tmp_path / "half.npz")


def test_statistics_without_an_image_have_a_mean_and_no_facts():
    points = ReferenceStatistics(np.array([1.0, 2.0]), np.diag([4.0, 0.0])).points
    assert points.shape == (4, 2) and points.mean(0).tolist() == [1.0, 2.0]
