"""ImageNet downsampled to 64x64 (Chrabaszcz et al. 2017) from the official npz batches, memory-mapped.

No checksums of the npz files are published, so the numbers of images are checked against the published ones, and the
digest of the content is recorded. 15.7 GB: the digest is computed once and kept in the cache folder.
"""

import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from harness.data.base import Concatenation, Dataset, Split, build, content_digest, find_files, stamp
from harness.data.cache import allocate, cache_folder, publish
from harness.data.facts import DATASET_FACTS
from harness.errors import DataError

TRAIN = tuple(f"train_data_batch_{batch}.npz" for batch in range(1, 11))
TEST = "val_data.npz"
# What zipfile and NumPy raise on a damaged file, an encrypted member, or one packed by an unknown method.
_DAMAGED = (KeyError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile)


def imagenet64(data_root: str | None = None, *, counts: tuple[int, int] = (1_281_167, 50_000)) -> Dataset:
    """Load ImageNet-64: the ten training batches, and the validation images as the test split.

    Labels count from 1 in the files and from 0 here.

    Args:
        counts: numbers of training and test images that the files must hold.

    Raises:
        DataError: files are missing, not the official batches or incomplete.
    """
    url = "https://image-net.org/download-images, Train(64x64) part1 and part2 and Val(64x64), npz format (unpacked)"
    paths = find_files("imagenet64", data_root, ("imagenet64", "Imagenet64"), [*TRAIN, TEST], url=url)
    facts = DATASET_FACTS["imagenet64"]
    train, test = _split([paths[name] for name in TRAIN]), _split([paths[TEST]])
    if (len(train), len(test)) != counts:
        raise DataError(f"imagenet64: expected {counts} training and test images, found {(len(train), len(test))}")
    remembered = cache_folder("digests") / stamp(list(paths.values()))
    digest = _remembered_digest(remembered)
    if digest is None:
        remembered.unlink(missing_ok=True)
        digest = content_digest(facts.levels, train, test)
        with publish(remembered) as temporary:
            temporary.write_text(digest)
    return build("imagenet64", facts, train, test, digest=digest)


def _remembered_digest(path: Path) -> str | None:
    """Read a digest from the cache; None if it is missing or damaged."""
    text = path.read_text(errors="replace") if path.exists() else ""
    return text if re.fullmatch("[0-9a-f]{64}", text) else None


def _split(paths: Sequence[Path]) -> Split:
    images, labels = [], []
    for path in paths:
        data = _member(path, "data")
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * 64 * 64:
            raise DataError(f"{path}: data are {data.dtype} {data.shape}, expected uint8 [N, 12288]")
        images.append(data.reshape(-1, 3, 64, 64))
        labels.append(np.asarray(_member(path, "labels"), np.int64) - 1)
    return Split(images[0] if len(images) == 1 else Concatenation(images), np.concatenate(labels))


def _member(path: Path, name: str) -> np.ndarray:
    """Map one array of an npz into memory: in place where it is stored, from a copy in the cache where it is packed."""
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{name}.npy")
            if info.compress_type == zipfile.ZIP_STORED:
                return _map_npy(path, _content_offset(path, info))
            unpacked = cache_folder("imagenet64") / f"{stamp([path], name)}.npy"
            if (cached := _map_cached(unpacked)) is None:
                unpacked.unlink(missing_ok=True)
                with publish(unpacked) as temporary, archive.open(info) as packed, temporary.open("wb") as file:
                    allocate(file, info.file_size)
                    while block := packed.read(1 << 24):
                        file.write(block)
                cached = _map_npy(unpacked, 0)
            return cached
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except _DAMAGED as error:
        raise DataError(f"{path}: not an npz batch with arrays 'data' and 'labels': {error}") from error


def _map_cached(path: Path) -> np.ndarray | None:
    """Map an array of the cache; None if it is missing or damaged."""
    try:
        return _map_npy(path, 0)
    except (OSError, *_DAMAGED):
        return None


def _content_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Return the offset of a stored member's bytes: its local header has 30 bytes, then a name and an extra field."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
    return info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _map_npy(path: Path, offset: int) -> np.ndarray:
    with path.open("rb") as file:
        file.seek(offset)
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if dtype.hasobject or fortran:
            raise ValueError(f"an array of {dtype} in {'Fortran' if fortran else 'C'} order")
        return np.memmap(path, dtype, "r", file.tell(), shape)
