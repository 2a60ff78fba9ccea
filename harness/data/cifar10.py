"""CIFAR-10 from the official Python batches.

The batches are pickles, and a pickle may run code. So a file is read only after its checksum, and then by an unpickler
that can rebuild NumPy arrays and plain containers and nothing else.
"""

import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.base import Dataset, Split, build, check_sum, find_files, read_file
from harness.data.facts import DATASET_FACTS
from harness.errors import DataError

CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


def cifar10(
    data_root: str | None = None,
    *,
    batches: Sequence[int] = (1, 2, 3, 4, 5),
    checksums: Mapping[str, str] = CIFAR10_MD5,
) -> Dataset:
    """Load CIFAR-10: 10,000 training images in each named batch, and the 10,000 of the test batch.

    Args:
        batches: which of the training batches 1 .. 5, in this order; a subset is another data set, with its own digest.
        checksums: md5 of each file.

    Raises:
        DataError: no such batch, or files are missing, damaged or not CIFAR batches.
    """
    if not batches or len(set(batches)) != len(batches) or not set(batches) <= {1, 2, 3, 4, 5}:
        raise DataError(f"cifar10: batches are some of 1, 2, 3, 4, 5, each once; got {list(batches)}")
    names = [f"data_batch_{batch}" for batch in batches] + ["test_batch"]
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz (unpacked)"
    paths = find_files("cifar10", data_root, ("cifar-10-batches-py",), names, url=url)
    files: dict[str, str] = {}
    splits: dict[str, Split] = {}
    for name in names:
        content = read_file(paths[name])
        files[name] = check_sum(paths[name], content, checksums[name])
        splits[name] = _read_batch(paths[name], content)
    train = [splits[name] for name in names[:-1]]
    return build(
        "cifar10",
        DATASET_FACTS["cifar10"],
        Split(np.concatenate([part.images for part in train]), np.concatenate([part.labels for part in train])),
        splits["test_batch"],
        files=files,
    )


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds NumPy arrays, bytes, numbers, lists and dicts; any other name in the pickle is refused unread."""

    def __init__(self, path: Path, content: bytes):
        super().__init__(io.BytesIO(content), encoding="bytes")  # the batches were written by Python 2
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        raise DataError(f"{self.path}: refused: the pickle asks for {module}.{name}, which no CIFAR batch needs")


def _read_batch(path: Path, content: bytes) -> Split:
    try:
        batch = _ArrayUnpickler(path, content).load()
        images = np.asarray(batch[b"data"]).reshape(-1, 3, 32, 32)  # rows are planes of red, green, blue
        labels = np.asarray(batch[b"labels"], np.int64)
    except DataError:
        raise
    except Exception as error:  # a pickle can fail in any way that its bytes ask for
        raise DataError(f"{path}: not a CIFAR-10 batch: {type(error).__name__}: {error}") from error
    return Split(images, labels)
