"""MNIST and Fashion-MNIST from their IDX files, gz or plain, padded from 28x28 to 32x32.

Checksums are taken over the unpacked content: gz files of the same content are packed differently on the mirrors.
"""

import gzip
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from harness.data.base import Dataset, Split, build, check_sum, find_files, read_file
from harness.data.facts import DATASET_FACTS
from harness.errors import DataError

MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}


def mnist(data_root: str | None = None, *, checksums: Mapping[str, str] = MNIST_MD5) -> Dataset:
    """Load MNIST: 60,000 training and 10,000 test images of digits.

    Args:
        checksums: md5 of each unpacked file.

    Raises:
        DataError: files are missing, damaged or not IDX.
    """
    url = "https://ossci-datasets.s3.amazonaws.com/mnist/"
    return _load("mnist", data_root, ("mnist", "MNIST/raw"), checksums, url)


def fashion_mnist(data_root: str | None = None, *, checksums: Mapping[str, str] = FASHION_MNIST_MD5) -> Dataset:
    """Load Fashion-MNIST: 60,000 training and 10,000 test images of clothes.

    Args:
        checksums: md5 of each unpacked file.

    Raises:
        DataError: files are missing, damaged or not IDX.
    """
    url = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
    return _load("fashion_mnist", data_root, ("fashion-mnist", "FashionMNIST/raw"), checksums, url)


def _load(
    name: str, data_root: str | None, folders: tuple[str, ...], checksums: Mapping[str, str], url: str
) -> Dataset:
    facts = DATASET_FACTS[name]
    paths = find_files(name, data_root, folders, list(checksums), url=url, suffixes=("", ".gz"))
    files: dict[str, str] = {}
    arrays: dict[str, np.ndarray] = {}
    for file, path in paths.items():
        content = _unpack(path)
        files[file] = check_sum(path, content, checksums[file])
        arrays[file] = read_idx(path, content)

    def split(prefix: str) -> Split:
        images = arrays[f"{prefix}-images-idx3-ubyte"]  # [N, 28, 28]
        sides = (facts.padding, facts.padding)
        labels = arrays[f"{prefix}-labels-idx1-ubyte"].astype(np.int64)
        return Split(np.pad(images, ((0, 0), sides, sides))[:, None], labels)  # [N, 1, 32, 32]

    return build(name, facts, split("train"), split("t10k"), files=files)


def _unpack(path: Path) -> bytes:
    content = read_file(path)
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gz file: {error}") from error


def read_idx(path: Path, content: bytes) -> np.ndarray:
    """Read an IDX array of bytes: two zeros, type 8, the number of axes, each length (big-endian), the values.

    Raises:
        DataError: not IDX, or of another length than its header says.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path}: not an IDX file of unsigned bytes (starts with {content[:4].hex()})")
    start = 4 + 4 * content[3]  # of the values
    if len(content) < start:
        raise DataError(f"{path}: cut short within its header")
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    values = np.frombuffer(content[start:], np.uint8)
    if values.size != math.prod(shape):
        raise DataError(f"{path}: the header says {shape}, the file holds {values.size} values")
    return values.reshape(shape)
