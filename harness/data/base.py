"""The Dataset that every source returns, and helpers to find files, check them and digest their content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from harness.data.facts import DatasetFacts
from harness.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 1 << 24  # bytes hashed at a time


class Concatenation:
    """Several arrays (memory maps) concatenated along the first axis; rows are read only when indexed."""

    def __init__(self, parts: Sequence[np.ndarray]):
        self.parts = list(parts)
        self._starts = np.cumsum([0] + [len(part) for part in self.parts])
        self.shape = (int(self._starts[-1]), *self.parts[0].shape[1:])
        self.dtype = self.parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        # A batch of plain indices does without the numbers of all rows, which are 10 MB for ImageNet-64.
        rows = index if self._are_rows(index) else np.arange(len(self))[index]
        gathered = np.empty((rows.size, *self.shape[1:]), self.dtype)
        owner = np.searchsorted(self._starts, rows.ravel(), side="right") - 1
        for part in np.unique(owner):
            mask = owner == part
            gathered[mask] = self.parts[part][rows.ravel()[mask] - self._starts[part]]
        return gathered.reshape(rows.shape + self.shape[1:])

    def _are_rows(self, index: int | slice | np.ndarray) -> TypeGuard[np.ndarray]:
        if not isinstance(index, np.ndarray) or index.dtype != np.int64 or not index.size:
            return False
        return bool(index.min() >= 0 and index.max() < len(self))


@dataclass(frozen=True)
class Split:
    """Images and their labels, in a fixed order.

    Attributes:
        images: [N, C, H, W]; uint8 in 0 .. levels - 1 (float32 in [-1, 1] where levels is None). An array, a memory
            map or a `Concatenation`: index it by row, don't assume that it fits in memory.
        labels: [N] int64 in 0 .. num_classes - 1, or None.
    """

    images: np.ndarray | Concatenation
    labels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Dataset:
    """A data set with its fixed split; `digest` names exactly these images, labels, order and split.

    Attributes:
        files: file name -> verified checksum ("md5:..." or "sha256:..."), for the record.
        account: what was seen, used and ignored, as plain values; see `harness.data.folder.describe`.
    """

    name: str
    image_size: int
    channels: int
    levels: int | None
    num_classes: int | None
    train: Split
    test: Split
    digest: str
    padding: int = 0
    padded_share: float = 0.0
    files: Mapping[str, str] = field(default_factory=dict)
    account: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_train(self) -> int:
        return len(self.train)

    @property
    def num_test(self) -> int:
        return len(self.test)

    def __post_init__(self) -> None:
        counts = {"train": len(self.train), "test": len(self.test), "num_classes": self.num_classes}
        object.__setattr__(self, "account", counts | dict(self.account))

    def to_unit(self, images: np.ndarray | Tensor) -> Tensor:
        """Scale stored values to the network's range: 2 x / (levels - 1) - 1, float32 in [-1, 1].

        Continuous data are stored in that range and pass unchanged.
        """
        import torch

        # Copied, because torch warns of memory maps that it could not write to.
        values = (torch.from_numpy(images.copy()) if isinstance(images, np.ndarray) else images).float()
        # Divided by half the range, so that 256 levels give the bits of the usual x / 127.5 - 1.
        return values if self.levels is None else values / ((self.levels - 1) / 2) - 1

    def to_images(self, images: np.ndarray) -> np.ndarray:
        """Scale stored values to uint8 images in 0 .. 255, as feature extractors expect them.

        In integers, so that 256 levels pass unchanged: to_uint8(to_unit(x)) may come out one lower in float32.
        Continuous data pass unchanged.
        """
        if self.levels is None or self.levels == 256:
            return np.array(images)  # a copy, as in the other branch
        return (images.astype(np.uint16) * 255 // (self.levels - 1)).astype(np.uint8)


def to_uint8(x: Tensor) -> Tensor:
    """Convert samples in [-1, 1] to uint8: ((x + 1) * 127.5), clamped to [0, 255], truncated (improved-diffusion)."""
    import torch

    return ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)


def build(
    name: str,
    facts: DatasetFacts,
    train: Split,
    test: Split,
    *,
    files: Mapping[str, str] | None = None,
    digest: str | None = None,
    account: Mapping[str, Any] | None = None,
) -> Dataset:
    """Make a Dataset after checking its shape against its declared facts; compute the digest unless it is given.

    Raises:
        DataError: images of another shape, dtype or range than declared, or labels out of range.
    """
    dtype = np.float32 if facts.levels is None else np.uint8
    for split, part in (("train", train), ("test", test)):
        _, channels, height, width = part.images.shape
        if (channels, height, width) != (facts.channels, facts.image_size, facts.image_size):
            raise DataError(
                f"{name}: {split} images are {channels}x{height}x{width}, "
                f"declared are {facts.channels}x{facts.image_size}x{facts.image_size}"
            )
        if part.images.dtype != dtype:
            raise DataError(f"{name}: {split} images are {part.images.dtype}, declared are {np.dtype(dtype)}")
        if part.labels is None:
            continue
        if len(part.labels) != len(part):
            raise DataError(f"{name}: {len(part)} {split} images but {len(part.labels)} labels")
        if facts.num_classes and len(part) and not 0 <= part.labels.min() <= part.labels.max() < facts.num_classes:
            raise DataError(f"{name}: {split} labels are not all in 0 .. {facts.num_classes - 1}")
    assert facts.image_size is not None
    return Dataset(
        name=name,
        image_size=facts.image_size,
        channels=facts.channels,
        levels=facts.levels,
        num_classes=facts.num_classes,
        train=train,
        test=test,
        digest=digest or content_digest(facts.levels, train, test),
        padding=facts.padding,
        padded_share=facts.padded_share,
        files=dict(files or {}),
        account=dict(account or {}),
    )


def content_digest(levels: int | None, train: Split, test: Split) -> str:
    """sha256 (hex) over the levels and, for both splits, the shape, dtype and bytes of images and labels."""
    digest = hashlib.sha256(f"levels={levels}".encode())
    for split, part in (("train", train), ("test", test)):
        arrays = part.images.parts if isinstance(part.images, Concatenation) else [part.images]
        digest.update(f"|{split} images {part.images.shape} {part.images.dtype.str}|".encode())
        for array in arrays:
            rows = max(1, _CHUNK // max(1, array[:1].nbytes))
            for start in range(0, len(array), rows):
                digest.update(np.ascontiguousarray(array[start : start + rows]).data)
        digest.update(f"|{split} labels|".encode())
        if part.labels is not None:
            digest.update(np.ascontiguousarray(part.labels, dtype="<i8").data)
    return digest.hexdigest()


def root_folder(given: str | os.PathLike[str] | None) -> Path:
    """Return the folder of the data sets: as given, else HARNESS_DATA, else `data` in the working folder.

    Raises:
        DataError: it starts with ~ and no such user has a home folder.
    """
    try:
        return Path(given or os.environ.get("HARNESS_DATA") or "data").expanduser()
    except RuntimeError as error:
        raise DataError(f"data_root or HARNESS_DATA: {error}: write the whole path") from error


def read_file(path: Path) -> bytes:
    """Read a file of a data set whole.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def foreign_content(head: bytes) -> str | None:
    """Say what a file is that is often found in the place of another, by its first bytes; None if it is none of these.

    A download that failed is stored as the server's page, and a clone without git-lfs has pointers instead of files.
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "the file is empty"
    if not head.strip(b"\0"):
        return "nothing but zeros: it was not written to the end"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page, perhaps of a failed download: download the file itself"
    if text.startswith((b"<?xml", b"<error")):
        return "an answer of a server in XML, perhaps of a failed download: download the file itself"
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file: `git lfs pull` fetches it"
    if text.startswith(b"{") and b"error" in text:
        return "an answer of a server in JSON, perhaps of a failed download: download the file itself"
    return None


def find_files(
    dataset: str,
    root: str | os.PathLike[str] | None,
    folders: Sequence[str],
    names: Sequence[str],
    *,
    url: str,
    suffixes: Sequence[str] = ("",),
) -> dict[str, Path]:
    """Find every file of a data set below one of its usual folders.

    Args:
        folders: below the data root, in order of preference; the error message names the first.
        suffixes: endings that a name may carry on disk ("" plain, ".gz" packed).

    Raises:
        DataError: names the missing files, where to get them, where to put them and which folders were searched.
    """
    base = root_folder(root)
    best: list[str] = list(names)  # files missing from the most complete folder
    for folder in folders:
        paths = {
            name: path
            for name in names
            for suffix in reversed(suffixes)
            if _is_file(path := base / folder / (name + suffix))
        }
        if len(paths) == len(names):
            return paths
        best = min(best, [name for name in names if name not in paths], key=len)
    ending = f" (plain or {', '.join(s for s in suffixes if s)})" if any(suffixes) else ""
    looked = ", ".join(str((base / folder).absolute()) for folder in folders)
    raise DataError(
        f"{dataset}: missing {', '.join(best)}{ending}.\n"
        f"  from: {url}\n"
        f"  put into: {(base / folders[0]).absolute()} (another root: data_root in the spec, or HARNESS_DATA)\n"
        f"  looked in: {looked}"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def check_sum(path: Path, content: bytes, expected: str, algorithm: str = "md5") -> str:
    """Check a file's content against its published checksum and return it as "md5:...".

    Raises:
        DataError: names the file, what was expected and what was found.
    """
    actual = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if actual != expected:
        foreign = foreign_content(content[:512])
        raise DataError(
            f"{path}: damaged or not the official file: {algorithm} expected {expected}, found {actual}"
            f"{f' ({foreign})' if foreign else ''}"
        )
    return f"{algorithm}:{actual}"


def spread(count: int, n: int | None) -> np.ndarray:
    """Choose n of `count` rows without replacement, by a fixed seed and in order; all of them if n is None or more."""
    rows = np.arange(count)
    return rows if n is None or n >= count else np.sort(np.random.default_rng(0).permutation(rows)[:n])


def stamp(paths: Sequence[Path], *also: Any) -> str:
    """Hash path, size and modification time of files (sha256, hex): the key under which their content is cached."""
    facts = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(repr((facts, also)).encode()).hexdigest()
