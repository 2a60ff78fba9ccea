"""What an extractor's metrics see and miss: real images, damaged in known ways, measured as if they were samples."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from harness.data.base import Dataset, spread
from harness.errors import DataError
from harness.metrics.divergences import kernel_distance, monge_distance
from harness.metrics.extractors.base import Extractor
from harness.metrics.fidelity import frechet_distance, reference_features
from harness.metrics.memorisation import memorisation
from harness.metrics.neighbours import neighbourhoods

MOST_IMAGES = 2000
K = 3
UNCHANGED = "unchanged"

Damage = Callable[[np.ndarray, float], np.ndarray]
"""Changes uint8 images [N, C, H, W] by a strength."""


@dataclass(frozen=True)
class Row:
    """One line of a probe table: how images were damaged, and what each metric gives."""

    probe: str
    strength: str
    values: dict[str, float]


@dataclass(frozen=True)
class ProbeTable:
    """What an extractor's metrics give for images damaged in known ways.

    Attributes:
        num_samples: test images that were measured, and as many that memorisation is compared with.
        num_reference: training images that they were compared with.
    """

    extractor: Extractor
    data: str
    num_samples: int
    num_reference: int
    rows: tuple[Row, ...]


def blur(images: np.ndarray, share: float) -> np.ndarray:
    """Blur by a Gaussian whose standard deviation is a share of the picture's side."""
    std = share * images.shape[-1]
    reach = max(1, round(3 * std))
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets / std) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    x = torch.from_numpy(images).float()
    for _ in range(2):  # along the rows, then along the columns
        rows = nn.functional.pad(x.flatten(0, 2).unsqueeze(1), (reach, reach), mode="replicate")
        x = nn.functional.conv1d(rows, kernel).view(x.shape).transpose(2, 3)
    return to_bytes(x)


def add_noise(images: np.ndarray, share: float) -> np.ndarray:
    """Add Gaussian noise whose standard deviation is a share of the range of grey levels."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return to_bytes(torch.from_numpy(images).float() + 255 * share * noise)


def jpeg(images: np.ndarray, quality: float) -> np.ndarray:
    """Compress as JPEG and read again."""
    out = np.empty_like(images)
    for row, image in enumerate(images):
        packed = io.BytesIO()
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(pixels).save(packed, "JPEG", quality=round(quality))
        read = np.asarray(Image.open(packed))
        out[row] = read if read.ndim == 2 else read.transpose(2, 0, 1)
    return out


def resize(images: np.ndarray, share: float) -> np.ndarray:
    """Make pictures smaller, and enlarge them again: bilinear, antialiased."""
    x = torch.from_numpy(images).float()
    size = max(1, round(share * x.shape[-1]))
    small = nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)
    return to_bytes(nn.functional.interpolate(small, x.shape[-2:], mode="bilinear"))


def to_bytes(x: Tensor) -> np.ndarray:
    return x.round().clamp(0, 255).to(torch.uint8).numpy()


DAMAGES: dict[str, tuple[Damage, tuple[float, float, float], str]] = {
    "blur": (blur, (1 / 40, 1 / 20, 1 / 10), "σ = {:.3g} of the side"),
    "noise": (add_noise, (0.03, 0.1, 0.3), "σ = {:.0%} of the range"),
    "JPEG": (jpeg, (75, 30, 10), "quality {:.0f}"),
    "resize": (resize, (3 / 4, 1 / 2, 1 / 4), "to {:.3g} of the size and back"),
}
"""Name -> what is done to each picture, its three strengths, and how a strength is written."""

CLASSES_LEFT = (0.9, 0.5, 0.1)
SHARES_COPIED = (0.1, 0.5, 1.0)

METRICS = ("FID", "KID × 1000", "MIND", "precision", "recall", "density", "coverage", "memorisation AUC")


def as_markdown(table: ProbeTable) -> str:
    """Write a probe table as Markdown, with what it was measured on."""
    accuracy = table.extractor.accuracy
    lines = [
        f"{table.extractor.name} on {table.data}: {table.num_samples} test images against {table.num_reference} "
        f"training images, k = {K}{'' if accuracy is None else f'; its accuracy is {accuracy:.1%}'}.",
        "",
        f"| images | strength | {' | '.join(METRICS)} |",
        "|---|---|" + "---:|" * len(METRICS),
    ]
    for row in table.rows:
        lines.append(f"| {row.probe} | {row.strength} | {' | '.join(f'{row.values[name]:.3g}' for name in METRICS)} |")
    return "\n".join(lines) + "\n"


def probe(extractor: Extractor, dataset: Dataset, most_images: int = MOST_IMAGES) -> ProbeTable:
    """Measure test images as samples against training images: unchanged, and damaged in each way at three strengths.

    One half of the test images are the samples, the other half are what the memorisation test compares copying with;
    of each, and of the training images, at most `most_images` are taken. "fewer classes" draws the same number of
    samples from the first classes alone, with repetition where they have fewer, and "memorised" replaces a share of
    the samples by training images of the reference.

    Raises:
        DataError: the data are not images.
    """
    if dataset.levels is None:
        raise DataError(f"{dataset.name} has no images to damage")
    order = np.random.default_rng(0).permutation(len(dataset.test))
    half = min(most_images, len(order) // 2)
    reference = reference_features(extractor, dataset, n=most_images)
    test = extractor.features(dataset.to_images(dataset.test.images[order[half : 2 * half]]))
    rows = tuple(
        Row(name, strength, _measure(reference, test, extractor.features(samples)))
        for name, strength, samples in _samples(dataset, order, half, spread(len(dataset.train), most_images))
    )
    return ProbeTable(extractor, dataset.name, half, len(reference), rows)


def _samples(
    dataset: Dataset, order: np.ndarray, half: int, train: np.ndarray
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Iterate over the table's samples: what was done, how much of it, and the uint8 images.

    Args:
        order: rows of the test images, the first half of which are the samples.
        train: rows of the training images that are the reference.
    """
    images = dataset.to_images(dataset.test.images[order[:half]])
    yield UNCHANGED, "", images
    for name, (damage, strengths, words) in DAMAGES.items():
        for strength in strengths:
            yield name, words.format(strength), damage(images, strength)
    if dataset.test.labels is not None and dataset.num_classes:
        for share in CLASSES_LEFT:
            left = max(1, round(share * dataset.num_classes))
            pool = np.concatenate([order[:half], order[2 * half :]])
            pool = pool[dataset.test.labels[pool] < left]
            drawn = np.random.default_rng(0).choice(pool, half, replace=len(pool) < half)
            yield "fewer classes", f"{left} of {dataset.num_classes}", dataset.to_images(dataset.test.images[drawn])
    copies = dataset.to_images(dataset.train.images[np.random.default_rng(0).choice(train, half, len(train) < half)])
    for share in SHARES_COPIED:
        count = round(share * half)
        yield "memorised", f"{share:.0%} of the samples", np.concatenate([copies[:count], images[count:]])


def _measure(reference: Tensor, test: Tensor, samples: Tensor) -> dict[str, float]:
    near = neighbourhoods(reference, samples, K)
    values = (
        frechet_distance(reference, samples),
        1000 * kernel_distance(reference, samples).value,
        monge_distance(reference, samples),
        near.precision,
        near.recall,
        near.density,
        near.coverage,
        memorisation(reference, test, samples).auc.value,
    )
    return dict(zip(METRICS, values, strict=True))
