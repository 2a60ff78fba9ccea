"""A folder of images (jpg, jpeg, png, gif), cropped and scaled as improved-diffusion does it.

The scaled images are kept as one array in the cache folder and memory-mapped, so a large folder is read once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.data.base import Dataset, Split, build, root_folder, stamp
from harness.data.cache import cache_folder, publish
from harness.data.facts import DATASET_FACTS, DatasetFacts
from harness.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".gif"})


def image_folder(
    data_root: str | None = None, *, path: str, image_size: int, test_fraction: float = 0.1, seed: int = 0
) -> Dataset:
    """Load every image below data_root / path, in the order of the relative paths.

    An image's class is the folder it lies in (the first below `path`); in a flat folder, what its name has before the
    first "_". Where some names have none, there are no labels.

    Args:
        test_fraction: share of the images in the test split, drawn by `seed`; at least one image lies in each split.

    Raises:
        DataError: no such folder, fewer than two images, an unreadable image, or a fraction outside (0, 1).
    """
    folder = root_folder(data_root) / path
    if not folder.is_dir():
        raise DataError(f"image_folder: no folder {folder.absolute()} (path is below data_root or HARNESS_DATA)")
    if not 0 < test_fraction < 1:
        raise DataError(f"image_folder: test_fraction must be between 0 and 1, got {test_fraction}")
    paths = (file for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
    files = sorted(paths, key=lambda file: file.relative_to(folder).parts)
    if len(files) < 2:
        raise DataError(
            f"image_folder: {folder.absolute()} has {len(files)} images, needs 2 ({', '.join(sorted(EXTENSIONS))})"
        )

    names = [_class_name(file.relative_to(folder)) for file in files]
    classes = {name: label for label, name in enumerate(sorted({name for name in names if name is not None}))}
    labels = None if None in names else np.array([classes[name] for name in names if name is not None], np.int64)

    shuffled = np.random.default_rng(seed).permutation(len(files))
    num_test = min(max(1, round(test_fraction * len(files))), len(files) - 1)
    order = np.concatenate([np.sort(shuffled[num_test:]), np.sort(shuffled[:num_test])])  # train, then test
    images = _scaled_images([files[index] for index in order], image_size)

    def split(rows: slice) -> Split:
        return Split(images[rows], None if labels is None else labels[order][rows])

    declared = DATASET_FACTS["image_folder"]
    return build(
        "image_folder",
        DatasetFacts(image_size, declared.channels, declared.levels, None if labels is None else len(classes)),
        split(slice(None, -num_test)),
        split(slice(-num_test, None)),
    )


def _class_name(relative: Path) -> str | None:
    if len(relative.parts) > 1:
        return relative.parts[0]
    prefix, underscore, _ = relative.name.partition("_")
    return prefix if underscore else None


def _scaled_images(files: Sequence[Path], image_size: int) -> np.ndarray:
    """Return [N, 3, image_size, image_size] uint8, mapped from the cache folder, where it is written at first."""
    from PIL import Image

    cached = cache_folder("image_folder") / f"{stamp(files, image_size)}.npy"
    if not cached.exists():
        with publish(cached) as temporary:
            images = np.lib.format.open_memmap(temporary, "w+", np.uint8, (len(files), 3, image_size, image_size))
            for row, file in enumerate(files):
                try:
                    with Image.open(file) as image:
                        images[row] = scale_and_crop(image, image_size)
                except (OSError, ValueError) as error:
                    raise DataError(f"{file}: not a readable image: {error}") from error
            images.flush()
    return np.load(cached, mmap_mode="r")


def scale_and_crop(image: "Image.Image", image_size: int) -> np.ndarray:
    """Halve by box averages while twice too large, scale the short side bicubically, crop the centre: uint8 [3, H, W].

    The steps, and the conversion to RGB after them, are those of improved-diffusion's image_datasets.py.
    """
    from PIL.Image import Resampling

    while min(image.size) >= 2 * image_size:
        width, height = image.size
        image = image.resize((width // 2, height // 2), resample=Resampling.BOX)
    scale = image_size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    pixels = np.asarray(image.resize((width, height), resample=Resampling.BICUBIC).convert("RGB"))  # [H, W, 3]
    top, left = (height - image_size) // 2, (width - image_size) // 2
    return pixels[top : top + image_size, left : left + image_size].transpose(2, 0, 1)
