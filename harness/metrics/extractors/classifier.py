"""The data set's own classifier, for machines without Inception's weights."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from harness.data.base import Dataset, Split
from harness.data.cache import cache_folder, publish
from harness.data.facts import classifier_name
from harness.errors import DataError
from harness.metrics.extractors.base import Extractor, one_layer_class, tensor_digest
from harness.metrics.weights import require_finite, require_intact

logger = logging.getLogger(__name__)

# Part of the cache key of every <data>net. Raise it with any change to the network or to its training.
CLASSIFIER_VERSION = 1
FEATURE_DIM = 64


def classifier(dataset: Dataset, weights: object = None) -> Extractor:
    """Load the data set's own classifier, trained on its training labels at the first call and cached from then on.

    Raises:
        DataError: the data have no labels.
    """
    if dataset.levels is None or dataset.num_classes is None or dataset.train.labels is None:
        raise DataError(f"{dataset.name} has no labels to train {dataset.name}net on: use the weights of `inception`")
    assert dataset.test.labels is not None, "a data set has labels or has none"
    key = hashlib.sha256(f"{dataset.digest} version {CLASSIFIER_VERSION}".encode()).hexdigest()
    path = cache_folder("classifiers") / f"{dataset.name}net-{key[:16]}.pt"
    name = classifier_name(dataset.name, dataset.digest)
    if not path.exists():
        logger.info("%s is trained on the labels of %s: once, and it may take minutes", name, dataset.name)
        network, accuracy = train_classifier(dataset)
        sizes = {"channels": dataset.channels, "image_size": dataset.image_size, "num_classes": dataset.num_classes}
        packed = io.BytesIO()  # torch.save hides a full disk in a RuntimeError
        torch.save({"sizes": sizes, "accuracy": accuracy, "state_dict": network.state_dict()}, packed)
        with publish(path) as temporary:
            temporary.write_bytes(packed.getbuffer())
    module = one_layer_class(name, _trunk)(name, ["features"], path)
    network, accuracy = _read_classifier(path)
    majority_share = float(np.bincount(dataset.test.labels).max()) / len(dataset.test)
    digest = tensor_digest(network.state_dict())
    return Extractor(name, digest, FEATURE_DIM, module, accuracy, path, majority_share=majority_share)


def _trunk(path: Path | None) -> nn.Module:
    assert path is not None, "the classifier is cached in a file"
    return _read_classifier(path)[0].trunk


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
