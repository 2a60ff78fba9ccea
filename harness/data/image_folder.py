"""A folder of images, cropped and scaled as improved-diffusion does it.

What is found is accounted for by `folder.py`, and what an image becomes is said in `pixels.py`. The scaled images are
kept as one array in the cache folder and memory-mapped, so a large folder is read once.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.base import Dataset, Split, build, root_folder, stamp
from harness.data.cache import allocate, cache_folder, publish
from harness.data.facts import DATASET_FACTS, DatasetFacts
from harness.data.folder import contents
from harness.data.pixels import CONVERSIONS_VERSION, read_image
from harness.errors import DataError

_MOST_REFUSED = 10  # files named in one message


def image_folder(
    data_root: str | None = None,
    *,
    path: str,
    image_size: int,
    test_fraction: float = 0.1,
    seed: int = 0,
    test_path: str | None = None,
) -> Dataset:
    """Load every image below data_root / path, in the order of the relative paths.

    An image's class is the folder it lies in (the first below `path`); in a flat folder, what its name has before the
    first "_". Where some names have none, there are no labels. Linked folders are entered, hidden files ignored.

    Args:
        test_fraction: share of the images in the test split: those whose hash of relative path and `seed` is below it,
            so that no image changes sides when others are added or removed. At least one lies in each split.
        test_path: a folder below data_root with the test images; then every image below `path` is trained on.

    Raises:
        DataError: no such folder, an ambiguous layout, too few images, an image that is unreadable or of a kind that is
            refused, or a fraction outside (0, 1).
    """
    if not 0 < test_fraction < 1:
        raise DataError(f"image_folder: test_fraction must be between 0 and 1, got {test_fraction}")
    found = contents(root_folder(data_root), path, test_fraction=test_fraction, seed=seed, test_path=test_path)
    images, duplicates = _scaled_images([*found.train, *found.test], len(found.train), image_size)
    labels_of = {name: label for label, name in enumerate(found.classes)}

    def labels(names: Sequence[str] | None) -> np.ndarray | None:
        return np.array([labels_of[name] for name in names], np.int64) if labels_of and names is not None else None

    account = found.account()
    if duplicates:
        account["duplicates"] = f"{duplicates} test images are equal to one that is trained on"
    declared = DATASET_FACTS["image_folder"]
    return build(
        "image_folder",
        DatasetFacts(image_size, declared.channels, declared.levels, len(labels_of) or None),
        Split(images[: len(found.train)], labels(found.train_names)),
        Split(images[len(found.train) :], labels(found.test_names)),
        account=account,
    )


def _scaled_images(files: Sequence[Path], num_train: int, image_size: int) -> tuple[np.ndarray, int]:
    """Return [N, 3, image_size, image_size] uint8, mapped from the cache, where it is written at first.

    Returns:
        the images; and how many of those from `num_train` on are equal to an earlier one of training.
    """
    shape = (len(files), 3, image_size, image_size)
    cached = cache_folder("image_folder") / f"{stamp(files, image_size, num_train, CONVERSIONS_VERSION)}.npy"
    facts = cached.with_suffix(".json")
    if (images := _mapped(cached, shape)) is not None and (duplicates := _duplicates(facts)) is not None:
        return images, duplicates
    cached.unlink(missing_ok=True)
    facts.unlink(missing_ok=True)
    digests: list[bytes] = []
    problems: list[str] = []
    with publish(cached) as temporary, temporary.open("wb") as out:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        allocate(out, out.tell() + int(np.prod(shape)))
        for file in files:
            try:
                image = np.ascontiguousarray(read_image(file, image_size))
            except DataError as error:
                problems.append(str(error))
                if len(problems) == _MOST_REFUSED:
                    break
                continue
            out.write(image.data)
            digests.append(hashlib.sha256(image.data).digest())
        if problems:
            raise DataError("\n".join(problems))
    trained = set(digests[:num_train])
    duplicates = sum(digest in trained for digest in digests[num_train:])
    with publish(facts) as temporary:
        temporary.write_text(json.dumps({"duplicates": duplicates}))
    images = _mapped(cached, shape)
    if images is None:
        raise DataError(f"{cached}: was changed while it was written; try again")
    return images, duplicates


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Map a cached array; None if it is missing or damaged."""
    try:
        images = np.load(path, mmap_mode="c")  # writable in memory alone: torch warns of arrays that are not
    except (OSError, ValueError, EOFError):
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _duplicates(path: Path) -> int | None:
    try:
        content: Any = json.loads(path.read_text())
        return int(content["duplicates"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
