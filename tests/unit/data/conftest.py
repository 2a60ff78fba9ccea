"""Writers of the official file formats, so that the loaders read real files without the real data."""

import gzip
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def write_idx() -> Callable[..., dict[str, str]]:
    """Write the four IDX files of a data set; returns the md5 of each one's unpacked content."""

    def write(folder: Path, arrays: dict[str, np.ndarray], packed: bool) -> dict[str, str]:
        folder.mkdir(parents=True)
        checksums = {}
        for name, array in arrays.items():
            header = bytes([0, 0, 8, array.ndim]) + b"".join(length.to_bytes(4, "big") for length in array.shape)
            content = header + array.astype(np.uint8).tobytes()
            checksums[name] = hashlib.md5(content).hexdigest()
            path = folder / (name + ".gz" * packed)
            path.write_bytes(gzip.compress(content) if packed else content)
        return checksums

    return write


@pytest.fixture
def idx_arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0).integers
    return {
        "train-images-idx3-ubyte": draw(256, size=(5, 28, 28)),
        "train-labels-idx1-ubyte": draw(10, size=5),
        "t10k-images-idx3-ubyte": draw(256, size=(3, 28, 28)),
        "t10k-labels-idx1-ubyte": draw(10, size=3),
    }


@pytest.fixture
def write_cifar() -> Callable[..., dict[str, str]]:
    """Write batches (name -> content) as pickles; returns the md5 of each."""

    def write(root: Path, batches: dict[str, object]) -> dict[str, str]:
        folder = root / "cifar-10-batches-py"
        folder.mkdir(parents=True, exist_ok=True)
        for name, batch in batches.items():
            (folder / name).write_bytes(pickle.dumps(batch, protocol=4))
        return {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in batches}

    return write


def cifar_batch(seed: int, count: int = 4) -> dict[bytes, object]:
    draw = np.random.default_rng(seed).integers
    return {
        b"data": draw(256, size=(count, 3072), dtype=np.uint8),
        b"labels": draw(10, size=count).tolist(),
        b"batch_label": b"a batch",
    }


@pytest.fixture
def cifar_batches() -> dict[str, dict[bytes, object]]:
    names = [f"data_batch_{batch}" for batch in range(1, 6)] + ["test_batch"]
    return {name: cifar_batch(seed) for seed, name in enumerate(names)}
