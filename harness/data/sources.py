"""The registry of data sets."""

from collections.abc import Callable
from typing import Any

from harness.data.base import Dataset
from harness.data.cifar10 import cifar10
from harness.data.digits import digits
from harness.data.idx import fashion_mnist, mnist
from harness.data.image_folder import image_folder
from harness.data.imagenet64 import imagenet64
from harness.data.mog import mog
from harness.errors import DataError


def load_dataset(name: str, *, data_root: str | None = None, **options: Any) -> Dataset:
    """Load a registered data set.

    Args:
        data_root: folder that holds the data sets; None means HARNESS_DATA, else `data` in the working folder.
        options: those of the source's own function (`batches` for cifar10, `path` and `image_size` for image_folder).

    Raises:
        DataError: no such data set, or its files are missing or damaged.
    """
    if name not in DATASETS:
        raise DataError(f"no data set {name!r}; the choices are {', '.join(DATASETS)}")
    return DATASETS[name](data_root, **options)


DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "imagenet64": imagenet64,
    "image_folder": image_folder,
    "mog": mog,
}
