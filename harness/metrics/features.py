"""Feature extractors for FID and precision/recall, in torch-fidelity's interface and registered with it by name.

`inception` is torch-fidelity's Inception-V3 with weights from a file. `<data>net` (digitsnet, cifar10net, ...) is a
small classifier trained on the data set's own labels, for machines without those weights. `coordinates` are the raw
values of 2-D data. The name is part of every metric's name, because only the first gives what the papers call FID.
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
from harness.metrics.weights import (
    INCEPTION_VARIABLE,
    inception_weights,
    read_state_dict,
    require_finite,
    require_intact,
)

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_FILE = INCEPTION_URL.rpartition("/")[2]
INCEPTION_SHA256_PREFIX = "6726825d"  # published in the file's name, as torch.hub does it

# Part of the cache key of every <data>net. Raise it with any change to the network or to its training.
CLASSIFIER_VERSION = 1
FEATURE_DIM = 64


@dataclass(frozen=True)
class Extractor:
    """A network that computes features of images, and what must be recorded beside a metric computed with it.

    Attributes:
        name: as registered with torch-fidelity and as written in metric names.
        digest: sha256 of the weights (of the file for `inception`, of the tensors for `<data>net`).
        feature_dim: D.
        accuracy: share of the data set's test images that the classifier labels correctly, None for other networks.
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


def load_extractor(
    name: str | None,
    dataset: Dataset,
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
) -> Extractor:
    """Load an extractor for a data set; the caller's random state is not changed.

    Args:
        name: a key of EXTRACTORS or the data set's `<data>net`. None chooses: `coordinates` for continuous data,
            `inception` where its weights are given, else the data set's own classifier.
        weights: file of Inception's weights; None means HARNESS_INCEPTION_WEIGHTS.

    Raises:
        DataError: no such extractor, or its weights are missing, damaged or of another shape.
    """
    weights = weights or inception_weights()
    if name is None:
        name = "coordinates" if dataset.levels is None else "inception" if weights else f"{dataset.name}net"
    kind = "classifier" if name == f"{dataset.name}net" else name
    if kind not in EXTRACTORS:
        choices = ", ".join([f"{dataset.name}net" if key == "classifier" else key for key in EXTRACTORS])
        raise DataError(f"no feature extractor {name!r} for {dataset.name}; the choices are {choices}")
    with torch.random.fork_rng(devices=[]):  # layers are initialised randomly before their weights are loaded
        return EXTRACTORS[kind](dataset, weights).to(device)


def inception(dataset: Dataset, weights: str | os.PathLike[str] | None) -> Extractor:
    """Load torch-fidelity's Inception-V3 (2,048 features of its last pool) from a file of weights.

    Raises:
        DataError: no file given or found, not the weights of this network, or data that are not images.
    """
    if dataset.levels is None:
        raise DataError(f"inception: needs images, and {dataset.name} has none; use `coordinates`")
    if not weights or not (path := Path(weights).expanduser()).is_file():
        problem = f"no file {Path(weights).absolute()}" if weights else "no weights given"
        raise DataError(
            f"inception: {problem}.\n"
            f"  from: {INCEPTION_URL}\n"
            f"  put it anywhere and set {INCEPTION_VARIABLE} to the file"
        )
    module = _inception_class()("inception", ["2048"], feature_extractor_weights_path=path)
    return Extractor("inception", _file_digest(path), 2048, module, weights_path=path, official=is_official(path))


def is_official(path: Path) -> bool:
    """Return whether a file is the one published for torch-fidelity's Inception."""
    return _file_digest(path).startswith(INCEPTION_SHA256_PREFIX)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_inception_weights(path: Path) -> dict[str, Tensor]:
    """Read torch-fidelity's Inception-V3 from a file, and check that it is this network and that it can be used.

    Raises:
        DataError: it is not.
    """
    try:
        state_dict = read_state_dict(path, _inception_shapes())
        if path.name == INCEPTION_FILE and not is_official(path):
            raise DataError(
                f"{path}: damaged: its sha256 does not start with {INCEPTION_SHA256_PREFIX} as its name says"
            )
        return state_dict
    except DataError as error:
        raise DataError(
            f"{error}\n  needed: the weights of torch-fidelity's Inception-V3\n  from: {INCEPTION_URL}"
        ) from error


def classifier(dataset: Dataset, weights: object = None) -> Extractor:
    """Load the data set's own classifier, trained on its training labels at the first call and cached from then on.

    Raises:
        DataError: the data have no labels.
    """
    if dataset.levels is None or dataset.num_classes is None or dataset.train.labels is None:
        raise DataError(f"{dataset.name} has no labels to train {dataset.name}net on: use the weights of `inception`")
    key = hashlib.sha256(f"{dataset.digest} version {CLASSIFIER_VERSION}".encode()).hexdigest()
    path = cache_folder("classifiers") / f"{dataset.name}net-{key[:16]}.pt"
    if not path.exists():
        network, accuracy = train_classifier(dataset)
        sizes = {"channels": dataset.channels, "image_size": dataset.image_size, "num_classes": dataset.num_classes}
        packed = io.BytesIO()  # torch.save hides a full disk in a RuntimeError
        torch.save({"sizes": sizes, "accuracy": accuracy, "state_dict": network.state_dict()}, packed)
        with publish(path) as temporary:
            temporary.write_bytes(packed.getbuffer())
    name = f"{dataset.name}net"
    module = _one_layer_class(name)(name, ["features"], path)
    network, accuracy = _read_classifier(path)
    return Extractor(name, _tensor_digest(network.state_dict()), FEATURE_DIM, module, accuracy, path)


def coordinates(dataset: Dataset, weights: object = None) -> Extractor:
    """Use the values themselves as features: the Frechet distance of 2-D data, as SIDDM reports it on its mixture."""
    module = _one_layer_class("coordinates")("coordinates", ["features"])
    return Extractor("coordinates", "none", dataset.channels * dataset.image_size**2, module)


class Classifier(nn.Module):
    """A small convolutional classifier of uint8 images; `trunk` returns its FEATURE_DIM penultimate features."""

    def __init__(self, channels: int, image_size: int, num_classes: int):
        super().__init__()
        layers: list[nn.Module] = [_ToUnit(), *_convolution(channels, 32)]
        width, size = 32, image_size
        while size > 4:
            layers += _convolution(width, FEATURE_DIM, stride=2)
            width, size = FEATURE_DIM, (size + 1) // 2
        layers += [*_convolution(width, FEATURE_DIM), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.trunk = nn.Sequential(*layers)  # [B, C, H, W] -> [B, FEATURE_DIM]
        self.head = nn.Linear(FEATURE_DIM, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))  # [B, num_classes]


class _ToUnit(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float() / 127.5 - 1


def _convolution(channels_in: int, channels_out: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]


def train_classifier(dataset: Dataset) -> tuple[Classifier, float]:
    """Train a Classifier on the training labels and return it with its accuracy on the test split, in [0, 1].

    AdamW, cosine decay from 3e-3, 20 epochs of batches of 64, at most 1,500 steps. On the CPU, with one thread and seed
    0, so that a machine always gets the same bits; the caller's random state and threads are not changed.
    """
    labels = dataset.train.labels
    assert labels is not None and dataset.num_classes is not None
    num_steps = min(1500, 20 * len(labels) // 64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            torch.manual_seed(0)
            network = Classifier(dataset.channels, dataset.image_size, dataset.num_classes)
            optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
            order = np.random.default_rng(0)
            for _ in range(num_steps):
                rows = order.integers(len(labels), size=64)
                logits = network(torch.from_numpy(dataset.to_images(dataset.train.images[rows])))
                loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels[rows]))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            network.eval()
            return network, _accuracy(network, dataset, dataset.test)
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _accuracy(network: Classifier, dataset: Dataset, split: Split) -> float:
    assert split.labels is not None
    right = 0
    for start in range(0, len(split), 256):
        rows = slice(start, start + 256)
        guesses = network(torch.from_numpy(dataset.to_images(split.images[rows]))).argmax(1)
        right += int((guesses == torch.from_numpy(split.labels[rows])).sum())
    return right / len(split)


def _read_classifier(path: str | os.PathLike[str]) -> tuple[Classifier, float]:
    try:
        require_intact(Path(path))
        stored = torch.load(path, map_location="cpu", weights_only=True)
        network = Classifier(**stored["sizes"])
        network.load_state_dict(stored["state_dict"])
        require_finite(stored["state_dict"], str(path))
        return network.eval(), float(stored["accuracy"])
    except Exception as error:  # torch.load has no exception of its own for a damaged file
        raise DataError(f"{path}: damaged; delete it, and it is trained again") from error


def _tensor_digest(state_dict: Mapping[str, Tensor]) -> str:
    """Return sha256 (hex) over names, shapes and values, independent of the file."""
    digest = hashlib.sha256()
    for name, value in state_dict.items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.contiguous().numpy().data)
    return digest.hexdigest()


@functools.cache
def _inception_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of each entry of the state dict of torch-fidelity's Inception."""

    class Shapes(torch_fidelity().feature_extractor_inceptionv3.FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, state_dict: Any, *arguments: Any, **options: Any) -> None:
            pass

    with torch.device("meta"):
        network = Shapes("shapes", ["2048"], _packed({}))
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


@functools.cache
def _inception_class() -> type:
    """Return torch-fidelity's Inception for grey and colour images, with safe loading, registered as `inception`."""

    class Inception(torch_fidelity().feature_extractor_inceptionv3.FeatureExtractorInceptionV3):  # type: ignore[misc]
        def __init__(
            self, name: str, features_list: list[str], feature_extractor_weights_path: Any = None, **options: Any
        ):
            # Read here, and repacked: torch-fidelity would execute code from the file.
            state_dict = read_inception_weights(Path(feature_extractor_weights_path))
            super().__init__(name, features_list, _packed(state_dict), **options)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            return super().forward(images.expand(-1, 3, -1, -1))

    torch_fidelity().register_feature_extractor("inception", Inception)
    return Inception


def _packed(state_dict: Mapping[str, Tensor]) -> io.BytesIO:
    packed = io.BytesIO()
    torch.save(dict(state_dict), packed)
    packed.seek(0)
    return packed


@functools.cache
def _one_layer_class(name: str) -> type:
    """Return an extractor class with the one layer `features`, registered with torch-fidelity once per process."""

    class OneLayer(torch_fidelity().FeatureExtractorBase):  # type: ignore[misc]
        def __init__(
            self, name: str, features_list: list[str], feature_extractor_weights_path: Any = None, **options: Any
        ):
            super().__init__(name, features_list)
            path = feature_extractor_weights_path
            self.network = nn.Flatten() if path is None else _read_classifier(path)[0].trunk
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


EXTRACTORS: dict[str, Callable[[Dataset, Any], Extractor]] = {
    "inception": inception,
    "classifier": classifier,
    "coordinates": coordinates,
}
