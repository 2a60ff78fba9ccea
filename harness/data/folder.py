"""What a folder of images holds: walked, accounted for, labelled and split, without opening an image.

Loads no NumPy and no torch, so that `plan` can show the account on a login node. Every file is used, ignored for a
reason that the account counts, or refused by name: seen = used + ignored.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import DataError

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
SYSTEM_FOLDERS = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"))  # thumbnails and leftovers, no data

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "holdout"), "test"),
}
_NO_SPLIT_WORDS = re.compile(r"[\W\d_]+|\b(?:images?|imgs?|set|data|split)\b")
_MOST_NAMED = 1000  # classes listed in an account; of more it says only how many there are


def shown(path: object) -> str:
    """Return a path for a message: in one line, undecodable bytes and control characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(path))


class TooManyFiles(Exception):
    """A folder holds more than a scan was allowed to look at."""


@dataclass(frozen=True)
class Scan:
    """The files below a folder.

    Attributes:
        images: their paths relative to the folder, as parts, in ascending order.
        ignored: reason -> number of files; a suffix is its own reason.
    """

    folder: Path
    images: tuple[tuple[str, ...], ...]
    ignored: Mapping[str, int]

    @property
    def seen(self) -> int:
        return len(self.images) + sum(self.ignored.values())


def listed(counts: Mapping[str, int], most: int = 8) -> str:
    """Format counts, the largest first: `2 .txt, 1 hidden and 3 others`."""
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    others = sum(number for _, number in ordered[most:])
    text = ", ".join(f"{number} {shown(name)}" for name, number in ordered[:most])
    return f"{text} and {others} others" if others else text


def scan(folder: Path, limit: int | None = None) -> Scan:
    """Find every image below a folder; links are followed.

    Args:
        limit: number of entries after which to give up.

    Raises:
        DataError: no such folder, one within it that cannot be read, a link to nothing, or a linked folder that is
            reached twice, whose images would count twice.
        TooManyFiles: there are more entries than `limit`.
    """
    try:
        is_folder = folder.is_dir()
    except OSError as error:
        raise DataError(f"image_folder: {shown(folder.absolute())}: cannot be read: {error.strerror}") from error
    if not is_folder:
        raise DataError(
            f"image_folder: no folder {shown(folder.absolute())} (a path is below data_root or HARNESS_DATA)"
        )
    images: list[tuple[str, ...]] = []
    ignored: Counter[str] = Counter()
    entered: dict[tuple[int, int], Path] = {}
    waiting: list[tuple[str, ...]] = [()]
    num_entries = 0
    while waiting:
        parts = waiting.pop()
        path = folder.joinpath(*parts)
        try:
            status = path.stat()
            earlier = entered.setdefault((status.st_dev, status.st_ino), path)
            if earlier != path:
                raise DataError(
                    f"image_folder: {shown(path)} and {shown(earlier)} are one folder, by a link: its images would "
                    "count twice; remove the link"
                )
            with os.scandir(path) as entries:
                for entry in entries:
                    num_entries += 1
                    if limit is not None and num_entries > limit:
                        raise TooManyFiles
                    if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
                        ignored["hidden"] += _count_files(entry)
                    elif entry.is_dir():
                        waiting.append((*parts, entry.name))
                    elif entry.is_file():
                        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (a Path for each is slow)
                        if suffix in SUFFIXES:
                            images.append((*parts, entry.name))
                        else:
                            ignored[suffix or "without suffix"] += 1
                    elif entry.is_symlink():
                        target = shown(Path(entry.path).readlink())
                        raise DataError(
                            f"image_folder: {shown(entry.path)} is a link to {target}, which cannot be reached: "
                            "mend or remove it"
                        )
                    else:
                        ignored["special (pipe, socket or device)"] += 1
        except OSError as error:
            place = shown(error.filename or path)
            raise DataError(f"image_folder: {place}: cannot be read: {error.strerror}") from error
    return Scan(folder, tuple(sorted(images)), dict(ignored))


def _count_files(entry: os.DirEntry[str]) -> int:
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))


@dataclass(frozen=True)
class Contents:
    """The images of a data set, split and labelled.

    Attributes:
        train, test: their paths.
        train_names, test_names: the class of each image; None where the names tell none.
        scans: of the folder, and of the test images' own folder if there is one.
        note: what else must be known of the split; empty for nothing.
    """

    train: tuple[Path, ...]
    test: tuple[Path, ...]
    train_names: tuple[str, ...] | None
    test_names: tuple[str, ...] | None
    scans: tuple[Scan, ...]
    note: str = ""

    @property
    def classes(self) -> dict[str, int]:
        """Return the number of images of each class, in the order of the labels; empty without labels."""
        if self.train_names is None or self.test_names is None:
            return {}
        return dict(sorted(Counter(self.train_names + self.test_names).items()))

    def account(self) -> dict[str, Any]:
        """Return the account as plain values, for the records."""
        classes = self.classes
        ignored = sum((Counter(part.ignored) for part in self.scans), Counter[str]())
        account: dict[str, Any] = {
            "folders": [str(part.folder) for part in self.scans],
            "seen": sum(part.seen for part in self.scans),
            "used": len(self.train) + len(self.test),
            "ignored": dict(ignored.most_common(100)),
            "num_ignored": ignored.total(),
            "train": len(self.train),
            "test": len(self.test),
            "num_classes": len(classes) or None,
            "classes": classes if len(classes) <= _MOST_NAMED else {},
        }
        return account | ({"note": self.note} if self.note else {})


def describe(account: Mapping[str, Any]) -> str:
    """Describe an account in one line."""
    parts = [f"{account['train']} images to train on, {account['test']} to test"]
    if "seen" in account:
        parts.insert(0, f"{account['seen']} files seen, {account['used']} used, {account['num_ignored']} ignored")
        if account["ignored"]:
            parts[0] += f" ({listed(account['ignored'])})"
    if account.get("num_classes"):
        sizes = account.get("classes") or {}
        few = f": {listed(sizes)}" if sizes else ""
        parts.append(f"{account['num_classes']} class{'es' if account['num_classes'] != 1 else ''}{few}")
    elif "seen" in account and not account.get("note", "").startswith("no labels"):
        parts.append("no labels")
    parts += [str(account[key]) for key in ("note", "duplicates") if account.get(key)]
    return "; ".join(parts)


def contents(
    root: Path,
    path: str,
    *,
    test_fraction: float = 0.1,
    seed: int = 0,
    test_path: str | None = None,
    limit: int | None = None,
) -> Contents:
    """Find, label and split the images of a folder; see `image_folder` for the rules.

    Raises:
        DataError: see `scan`; or the layout is ambiguous, there are too few images, or the two folders overlap.
        TooManyFiles: see `scan`.
    """
    whole, note = scan(root / path, limit), ""
    _require_clear_layout(whole, path)
    if test_path is None:
        if len(whole.images) < 2:
            raise _too_few(whole, 2)
        scans = [whole]
        train, test, note = split(whole.images, test_fraction, seed)
    else:
        own = scan(root / test_path, limit)
        _require_apart(whole.folder, own.folder)
        _require_clear_layout(own, test_path)
        scans = [whole, own]
        for part in scans:
            if not part.images:
                raise _too_few(part, 1)
        train, test = list(whole.images), list(own.images)
    names, num_train = _class_names([*train, *test]), len(train)
    if names is not None and test_path is not None and (unknown := set(names[num_train:]) - set(names[:num_train])):
        note = f"no labels, because {shown(test_path)} has the class {shown(min(unknown))} and {shown(path)} has not"
        names = None
    return Contents(
        tuple(whole.folder.joinpath(*image) for image in train),
        tuple(scans[-1].folder.joinpath(*image) for image in test),
        None if names is None else tuple(names[:num_train]),
        None if names is None else tuple(names[num_train:]),
        tuple(scans),
        note,
    )


def _too_few(found: Scan, needed: int) -> DataError:
    ignored = f"; ignored: {listed(found.ignored)}" if found.ignored else ""
    return DataError(
        f"image_folder: {shown(found.folder.absolute())} has {len(found.images)} images, needs {needed} "
        f"({', '.join(sorted(SUFFIXES))}){ignored}"
    )


def split(
    images: Sequence[tuple[str, ...]], test_fraction: float, seed: int
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]], str]:
    """Split images by a hash of each one's path and the seed: no image moves when others come or go.

    About `test_fraction` of the images are for testing. Where one split would be empty, as may be in a tiny folder, the
    image whose hash is nearest goes there, and a note says so: that image alone may move when the folder grows.

    Returns:
        the images to train on, those to test, and the note.
    """
    scores = {image: _score(image, seed) for image in images}
    train = [image for image in images if scores[image] >= test_fraction]
    test = [image for image in images if scores[image] < test_fraction]
    if train and test:
        return train, test, ""
    moved = min(images, key=scores.__getitem__) if train else max(images, key=scores.__getitem__)
    source, target = (train, test) if train else (test, train)
    source.remove(moved)
    target.append(moved)
    kind = "test" if target is test else "train"
    note = f"too few images for test_fraction {test_fraction:g}: {shown('/'.join(moved))} was put into the {kind} split"
    return train, test, f"{note} and may leave it when the folder grows (test_path names test images of their own)"


def _score(image: tuple[str, ...], seed: int) -> float:
    """Hash a relative path to [0, 1); in Unicode's composed form, since a copy to a Mac may decompose names."""
    name = unicodedata.normalize("NFC", "/".join(image))
    digest = hashlib.sha256(f"{seed}|".encode() + name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def _class_names(images: Sequence[tuple[str, ...]]) -> list[str] | None:
    """Return each image's class: its first folder, or what a flat name has before its first "_"; None if some lack it.

    Images lie either all in folders or all at the top (`_require_clear_layout`).
    """
    names = []
    for image in images:
        prefix, underscore, _ = image[-1].partition("_")
        if len(image) == 1 and not underscore:
            return None
        names.append(image[0] if len(image) > 1 else prefix)
    return names


def _require_clear_layout(found: Scan, path: str) -> None:
    """Raise DataError if it is not clear what the folders mean."""
    at_top = [image for image in found.images if len(image) == 1]
    if at_top and len(at_top) < len(found.images):
        raise DataError(
            f"image_folder: {shown(found.folder)} has {len(at_top)} images at its top ({shown(at_top[0][0])}, ...) and "
            f"{len(found.images) - len(at_top)} in folders, which are classes: move them all into folders, or all to "
            "the top"
        )
    folders = dict.fromkeys(image[0] for image in found.images if len(image) > 1)
    _require_no_split_names(found, list(folders), path, every=True)
    inner: dict[str, dict[str, None]] = {}
    for image in found.images:
        if len(image) > 2:
            inner.setdefault(image[0], {})[image[1]] = None
    for folder, names in inner.items():
        _require_no_split_names(found, list(names), f"{path}/{folder}", every=False)
    alike: dict[str, str] = {}
    for name in folders:
        earlier = alike.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if earlier != name:
            raise DataError(
                f"image_folder: {shown(found.folder)} has class folders {shown(earlier)} and {shown(name)}, which "
                "differ only in case or in the form of a letter: rename one, or put their images into one"
            )


def _require_no_split_names(found: Scan, names: list[str], path: str, *, every: bool) -> None:
    """Raise DataError if folders are named like splits: several kinds of them, or all of them if `every`."""
    kinds = {name: kind for name in names if (kind := _split_kind(name))}
    several = len(set(kinds.values())) > 1
    if several or (every and kinds and len(kinds) == len(names)):
        train = next((name for name, kind in kinds.items() if kind == "train"), next(iter(kinds)))
        test = next((name for name, kind in kinds.items() if kind != "train"), None)
        second = f" and test_path: {shown(path)}/{shown(test)}" if test else ""
        raise DataError(
            f"image_folder: {shown(found.folder)}: {', '.join(map(shown, kinds))} look like splits, not like classes; "
            f"say which is which, path: {shown(path)}/{shown(train)}{second}; or rename what is a class"
        )


def _split_kind(name: str) -> str | None:
    """Return train, val or test for a folder named like a split: Train, val2017, test_images, ILSVRC2012_img_val."""
    words = _NO_SPLIT_WORDS.sub(" ", re.sub(r"[\W\d_]+", " ", name.lower())).split()
    words = [word for word in words if word not in ("ilsvrc", "imagenet", "coco", "lsun")]
    return _SPLITS.get(words[0]) if len(words) == 1 else None


def _require_apart(folder: Path, test_folder: Path) -> None:
    train, test = folder.resolve(), test_folder.resolve()
    if train.is_relative_to(test) or test.is_relative_to(train):
        raise DataError(
            f"image_folder: test_path {shown(test_folder)} and path {shown(folder)} lie within each other: test images "
            "would be trained on; name two separate folders"
        )
