import sys

import numpy as np

from harness.data import load_dataset


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


def test_where_scikit_learn_keeps_its_file_elsewhere_it_reads_it_itself(monkeypatch):
    expected = load_dataset("digits").digest
    monkeypatch.setattr("harness.data.digits.importlib.util.find_spec", lambda name: None)
    assert load_dataset("digits").digest == expected
