"""Feature extractors for FID and precision/recall, as torch-fidelity's own, registered with it under their names.

`inception` is torch-fidelity's Inception-V3 with weights from a file. `<data>net` (digitsnet, cifar10net, ...) is a small
classifier trained on the data set's own labels: what a machine without those weights compares images by. `coordinates`
are the raw values of 2-D data. The name stands in every metric, because only the first gives what the papers call FID.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.data.base import Dataset, Split
from harness.data.cache import cache_folder, publish
from harness.errors import DataError
from harness.metrics.torchvision_compat import torch_fidelity

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256_PREFIX = "6726825d"  # published in the file's name, as torch.hub does it

# Written into the cache key of every <data>net. Raise it with any change to the network or to its training.
CLASSIFIER_VERSION = 1
FEATURE_DIM = 64


@dataclass(frozen=True)
class Extractor:
    """A network that turns pictures into features, and what must be recorded beside a number made with it.

    Attributes:
        name: as registered with torch-fidelity and as written in metric names.
        digest: sha256 of the weights (of the file for `inception`, of the tensors for `<data>net`).
        feature_dim: D.
        accuracy: share of the data set's test images that the classifier gets right, None where it is none.
        weights_path: what torch-fidelity's `feature_extractor_weights_path` takes, None where there are no weights.
        official: whether the weights are those published for torch-fidelity's Inception.
    """

    name: str
    digest: str
    feature_dim: int
    module: nn.Module
    accuracy: float | None = None
    weights_path: Path | None = None
    official: bool = False

    def to(self, device: str | torch.device) -> Extractor:
        """Move the network, in place, and return the extractor."""
        self.module.to(device)
        return self

    @torch.no_grad()
    def features(self, images: np.ndarray | Tensor, batch_size: int = 64) -> Tensor:
        """Extract the features of every image, once, in order.

        Args:
            images: [N, C, H, W] uint8 pictures in 0 .. 255 (`Dataset.pictures` or `to_uint8`); grey is repeated to three
                channels where the network needs colour. Float for `coordinates`.

        Returns:
            [N, feature_dim] float32, on the CPU.
        """
        weight = next(self.module.parameters(), torch.empty(0))
        out = []
        for start in range(0, len(images), batch_size):
            batch = torch.as_tensor(np.array(part) if isinstance(part := images[start : start + batch_size], np.ndarray) else part)
            out.append(self.module(batch.to(weight.device))[0].float().cpu())
        return torch.cat(out)


def load_extractor(
    name: str | None, dataset: Dataset, *, weights: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu"
) -> Extractor:
    """Make an extractor for the data at hand.

    Args:
        name: a key of EXTRACTORS or the data set's `<data>net`. None chooses: `coordinates` for continuous data,
            `inception` where its weights are given, else the data set's own classifier.
        weights: file of Inception's weights; None means HARNESS_INCEPTION_WEIGHTS.

    Raises:
        DataError: no such extractor, or its weights are missing, damaged or of another shape.
    """
    weights = weights or os.environ.get("HARNESS_INCEPTION_WEIGHTS")
    if name is None:
        name = "coordinates" if dataset.levels is None else "inception" if weights else f"{dataset.name}net"
    kind = "classifier" if name == f"{dataset.name}net" else name
    if kind not in EXTRACTORS:
        choices = ", ".join([f"{dataset.name}net" if key == "classifier" else key for key in EXTRACTORS])
        raise DataError(f"no feature extractor {name!r} for {dataset.name}; the choices are {choices}")
    return EXTRACTORS[kind](dataset, weights).to(device)
