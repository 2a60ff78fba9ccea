"""Score images from elsewhere as a fidelity part scores a run's own samples: same extractor, reference and metrics."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data.base import Dataset
from harness.data.folder import scan, shown
from harness.data.pixels import read_image
from harness.errors import DataError, RecordError
from harness.evaluation.context import EvaluationContext
from harness.evaluation.keeping import array_digest, to_unit
from harness.evaluation.parts.fidelity import fidelity
from harness.metrics.extractors.base import Extractor
from harness.records.reading import read_arrays
from harness.spec.evaluation import Ancestral, AnySampler, Evaluation, Fidelity
from harness.spec.fidelity_metrics import FIDELITY_METRICS, FidelityMetricName
from harness.spec.metrics import fidelity_name

logger = logging.getLogger(__name__)

_FEWEST = 16


def read_images(path: Path, data: Dataset) -> np.ndarray:
    """Read images of the shape that a data set's samples have.

    Args:
        path: a folder of image files, read in the order of their paths; or an npz whose `arr_0` is uint8 [N, H, W, C],
            or float32 where the data are continuous.

    Returns:
        [N, C, H, W].

    Raises:
        DataError: they cannot be read, are of another size or kind, or fewer than 16. Nothing is scaled: FID depends
            on how.
    """
    images = _of_folder(path, data) if path.is_dir() else _of_npz(path, data)
    if len(images) < _FEWEST:
        raise DataError(f"{shown(path)}: has {len(images)} images, but at least {_FEWEST} are needed")
    return images


def read_labels(path: Path, data: Dataset, num_images: int) -> np.ndarray | None:
    """Read the classes of images, `arr_1` of their npz: [N] integers; None if there are none, as in a folder.

    Raises:
        DataError: they are not one class of the data for each image.
    """
    labels = None if path.is_dir() else _arrays(path).get("arr_1")
    if labels is None:
        return None
    count = data.num_classes or 0
    whole = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    if not whole or len(labels) != num_images or not all(0 <= label < count for label in labels.tolist()):
        raise DataError(
            f"{shown(path)}: arr_1 is {labels.dtype} {list(labels.shape)}; for {data.name} it has to be the classes of "
            f"the {num_images} images, integers from 0 to {count - 1}"
        )
    return labels.astype(np.int64)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return read_arrays(path)
    except FileNotFoundError:
        raise DataError(f"no folder or npz {shown(path.absolute())}") from None
    except RecordError as error:
        raise DataError(str(error)) from None


def _of_npz(path: Path, data: Dataset) -> np.ndarray:
    arrays = _arrays(path)
    if "arr_0" not in arrays:
        raise DataError(f"{shown(path)}: has no arr_0, which holds the images; it has {', '.join(arrays) or 'nothing'}")
    images = arrays["arr_0"]
    kind, shape = ("float32" if data.levels is None else "uint8"), (data.image_size, data.image_size, data.channels)
    if str(images.dtype) != kind or images.ndim != 4 or images.shape[1:] != shape:
        raise DataError(
            f"{shown(path)}: arr_0 is {images.dtype} {list(images.shape)}; for {data.name} it has to be {kind} "
            f"[N, {', '.join(map(str, shape))}]"
        )
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _of_folder(path: Path, data: Dataset) -> np.ndarray:
    if data.levels is None:
        raise DataError(f"{shown(path)}: {data.name} is continuous, so its samples are no image files; give an npz")
    files = [path.joinpath(*parts) for parts in scan(path).images]
    return np.stack([_image(file, data) for file in files]) if files else np.empty((0,))


def _image(file: Path, data: Dataset) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as opened:
            width, height = opened.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        width = height = data.image_size  # `read_image` says what is wrong
    if (width, height) != (data.image_size, data.image_size):
        raise DataError(
            f"{shown(file)}: has {width}x{height} pixels; those of {data.name} have {data.image_size}x"
            f"{data.image_size}, and nothing is scaled here, since FID depends on how"
        )
    image = read_image(file, data.image_size)
    if data.channels == 3:
        return image
    if not (image == image[:1]).all():
        raise DataError(f"{shown(file)}: has colours, but the images of {data.name} are grey")
    return image[: data.channels]


class _GivenImages(EvaluationContext):
    """A context whose samples are given, and their classes if there are any; there are no weights."""

    given_labels: Tensor | None = None

    def labels(self, start: int, count: int) -> Tensor | None:
        """Return the classes of given images."""
        return None if self.given_labels is None else self.given_labels[start : start + count]

    def sampled_features(
        self, extractor: Extractor, sampler: AnySampler, num_steps: int, num_samples: int, *, with_samples: bool = False
    ) -> Tensor:
        """Return the features of the given images."""
        assert self.samples is not None
        return self.features(extractor, self.samples)


def score(
    images: np.ndarray, data: Dataset, part: Fidelity, device: torch.device, labels: np.ndarray | None = None
) -> dict[str, Any]:
    """Measure images by a fidelity part; its sampler and number of samples are not used.

    Args:
        images: [N, C, H, W], uint8 or, of continuous data, float32.
        labels: [N], their classes; without them the metrics that compare classes are left out, and a message says so.

    Returns:
        `metrics` by kind (`fid`), and what has to be reported with them: the number and digest of the images, the
        extractor, the reference, and the data.

    Raises:
        DataError: there are no more images than the k of precision and recall, or no metric can be measured.
    """
    metrics = _measurable(part, labels)
    update = {"num_samples": len(images), "sampler": Ancestral(), "num_steps": 1, "seeds": 1, "metrics": metrics}
    part = part.model_copy(update=update)
    nothing: Any = None  # there is no run
    context = _GivenImages(nothing, nothing, data, Evaluation(fidelity=part), device)
    context.given_labels = None if labels is None else torch.from_numpy(labels).to(device)
    samples = torch.from_numpy(images)
    context.samples = samples if data.levels is None else to_unit(samples)
    with torch.inference_mode():
        result = fidelity(context, part)
        extractor = context.extractor(part.extractor).name
    suffix = fidelity_name("", extractor, len(images), part.sampler.name, 1)
    return {
        "metrics": {name.removesuffix(suffix): value for name, value in result.metrics.items()},
        "num_images": len(images),
        "images_sha256": array_digest(images),
        "data": data.name,
        "data_digest": data.digest,
        **result.protocol,
    }


def _measurable(part: Fidelity, labels: np.ndarray | None) -> tuple[FidelityMetricName, ...]:
    """Return the metrics that images with these classes, or without any, have; say which are left out."""
    needing = [name for name in part.metrics if FIDELITY_METRICS[name].needs == "classes"] if labels is None else []
    if not needing:
        return part.metrics
    message = f"{', '.join(needing)}: these images have no classes; an npz has them in arr_1"
    if len(needing) == len(part.metrics):
        raise DataError(message)
    logger.warning("left out: %s", message)
    return tuple(name for name in part.metrics if name not in needing)
