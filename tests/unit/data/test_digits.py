import sys

import numpy as np
import pytest

from harness.data import load_dataset
from harness.errors import DataError


def test_the_split_of_digits_is_fixed_and_stratified():
    digits = load_dataset("digits")
    assert (len(digits.train), len(digits.test)) == (1442, 355)
    assert digits.digest == "9ca2c9e0b3ba34d7966ad195bec15dc388daa87580785acf5e6517978cfb2693"
    shares = np.bincount(digits.test.labels) / np.bincount(np.concatenate([digits.train.labels, digits.test.labels]))
    assert np.all((shares > 0.19) & (shares <= 0.2))


def test_no_image_of_digits_is_lost_or_in_both_splits():
    from sklearn.datasets import load_digits

    digits = load_dataset("digits")
    both = np.concatenate([digits.train.images, digits.test.images])[:, 0]
    assert sorted(image.tobytes() for image in both) == sorted(
        image.astype(np.uint8).tobytes() for image in load_digits().images
    )


def test_digits_are_read_without_importing_scikit_learns_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # so that an import fails
    assert len(load_dataset("digits").train) == 1442


def test_where_the_file_of_digits_is_missing_that_is_said(monkeypatch, tmp_path):
    (tmp_path / "sklearn").mkdir()
    (tmp_path / "sklearn" / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"digits\.csv\.gz is missing: install scikit-learn again"):
        load_dataset("digits")
