"""What every extractor is, and how one is registered with torch-fidelity."""

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

from harness.data.base import Dataset
from harness.errors import DataError
from harness.metrics.torchvision_compat import torch_fidelity
from harness.metrics.weights import require_weights_file


@dataclass(frozen=True)
class Extractor:
    """A network that computes features of images, and what must be recorded beside a metric computed with it.

    Attributes:
        name: as registered with torch-fidelity and as written in metric names.
        digest: sha256 of the weights (of the file where they are from one, else of the tensors).
        feature_dim: D.
        accuracy: share of the data set's test images that the classifier labels correctly, None for other networks.
        weights_path: what torch-fidelity's `feature_extractor_weights_path` takes, None where there are no weights.
        official: whether the weights are the published ones; None where no checksum of these is published.
        majority_share: share of the data set's test images in their most frequent class, where there is an accuracy.
    """

    name: str
    digest: str
    feature_dim: int
    module: nn.Module
    accuracy: float | None = None
    weights_path: Path | None = None
    official: bool | None = False
    majority_share: float | None = None

    @property
    def description(self) -> dict[str, Any]:
        """What the records have of it."""
        facts: dict[str, Any] = {
            "name": self.name,
            "weights_sha256": self.digest,
            "test_accuracy": self.accuracy,
            "official_weights": self.official,
        }
        return facts if self.majority_share is None else facts | {"test_majority_share": self.majority_share}

    def to(self, device: str | torch.device) -> Extractor:
        """Move the network, in place, and return the extractor."""
        self.module.to(device)
        return self

    @torch.no_grad()
    def features(self, images: np.ndarray | Tensor, batch_size: int = 64) -> Tensor:
        """Extract the features of every image, once, in order.

        Args:
            images: [N, C, H, W] uint8 images in 0 .. 255 (`Dataset.to_images` or `to_uint8`); grey is repeated to
                three channels where the network needs colour. Float for `coordinates`.

        Returns:
            [N, feature_dim] float32, on the CPU.
        """
        device = next(self.module.parameters(), torch.empty(0)).device
        out = []
        for start in range(0, len(images), batch_size):
            batch = torch.as_tensor(images[start : start + batch_size])
            out.append(self.module(batch.to(device))[0].float())
        return torch.cat(out).cpu()


def given_file(extractor: str, dataset: Dataset, weights: str | os.PathLike[str] | None) -> Path:
    """Return the file of an extractor's weights, by default the one that its environment variable names.

    Raises:
        DataError: no file is given or found, or the data are not images.
    """
    if dataset.levels is None:
        raise DataError(f"{extractor}: needs images, and {dataset.name} has none; use `coordinates`")
    if not weights:
        return require_weights_file(extractor)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise DataError(f"{extractor}: no file {path.absolute()}")
    return path


def packed(state_dict: Mapping[str, Tensor]) -> io.BytesIO:
    """Return a state dict as a file in memory, for constructors that load one."""
    file = io.BytesIO()
    torch.save(dict(state_dict), file)
    file.seek(0)
    return file


def tensor_digest(state_dict: Mapping[str, Tensor]) -> str:
    """Return sha256 (hex) over names, shapes and values, independent of the file."""
    digest = hashlib.sha256()
    for name, value in state_dict.items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()


def shapes_of(make: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each entry of a network's state dict; no memory is taken for it."""
    with torch.device("meta"):
        network = make()
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


@functools.cache
def one_layer_class(name: str, make: Callable[[Path | None], nn.Module]) -> type:
    """Return an extractor class with the one layer `features`, registered with torch-fidelity once per process.

    Args:
        make: returns the network [B, C, H, W] -> [B, D] for a file of weights.
    """

    class OneLayer(torch_fidelity().FeatureExtractorBase):  # type: ignore[misc]
        def __init__(
            self, name: str, features_list: list[str], feature_extractor_weights_path: Any = None, **options: Any
        ):
            super().__init__(name, features_list)
            self.network = make(feature_extractor_weights_path and Path(feature_extractor_weights_path))
            self.requires_grad_(False).eval()

        def forward(self, images: Tensor) -> tuple[Tensor]:
            return (self.network(images),)

        @staticmethod
        def get_provided_features_list() -> tuple[str]:
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    torch_fidelity().register_feature_extractor(name, OneLayer)
    return OneLayer
