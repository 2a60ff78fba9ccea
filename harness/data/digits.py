"""scikit-learn's 1,797 real scans of handwritten digits, 8x8, 17 grey levels: embedded, so it needs no files."""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from harness.data.base import Dataset, Split, build
from harness.data.facts import DATASET_FACTS
from harness.errors import DataError

# Over images (uint8) and labels (int64) as scikit-learn orders them.
CONTENT_SHA256 = "65e5b4619795efb40c1082f4c350c049e4ad552200d369b6ae99e21eef5e72c5"


def digits(data_root: str | None = None) -> Dataset:
    """Load the digits; every fifth image of each class, in scikit-learn's order, is the test split (1,442 and 355).

    Raises:
        DataError: scikit-learn's copy is not the one that the split was fixed on.
    """
    table = read_table()
    images = table[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, -1].astype(np.int64)
    actual = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    if actual != CONTENT_SHA256:
        raise DataError(f"digits: scikit-learn's copy has changed: sha256 expected {CONTENT_SHA256}, found {actual}")

    rank = np.zeros(len(labels), np.int64)  # of an image among those of its class
    for label in range(10):
        members = labels == label
        rank[members] = np.arange(members.sum())
    test = rank % 5 == 4
    return build(
        "digits",
        DATASET_FACTS["digits"],
        Split(images[~test], labels[~test]),
        Split(images[test], labels[test]),
        files={"sklearn.datasets.load_digits": f"sha256:{actual}"},
    )


def read_table() -> np.ndarray:
    """Return what `sklearn.datasets.load_digits` reads: a row of 64 grey levels and the label for each image.

    Its file is read directly where it is known to lie, because to import scikit-learn takes 1.6 s in each process.
    """
    package = importlib.util.find_spec("sklearn")
    for folder in (package.submodule_search_locations or []) if package else []:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.exists():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
