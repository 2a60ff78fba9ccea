"""Extractors without weights from elsewhere and without labels: coordinates, and fixed random features of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from harness.data.base import Dataset
from harness.errors import DataError
from harness.metrics.extractors.base import Extractor, one_layer_class, tensor_digest

STAGES, CHANNELS, GRID = 3, 32, 2
RANDOM_FEATURES_DIM = STAGES * CHANNELS * GRID**2
RANDOM_FEATURES_VERSION = 1  # part of the digest: raise it with any change to the network


def coordinates(dataset: Dataset, weights: object = None) -> Extractor:
    """Use the values themselves as features: the Frechet distance of 2-D data, as SIDDM reports it on its mixture."""
    module = one_layer_class("coordinates", _flatten)("coordinates", ["features"])
    return Extractor("coordinates", "none", dataset.channels * dataset.image_size**2, module)


def _flatten(path: Path | None) -> nn.Module:
    return nn.Flatten()


def random_features(dataset: Dataset, weights: object = None) -> Extractor:
    """Make the network of fixed random convolutions, for images without labels.

    Raises:
        DataError: the data are not images.
    """
    if dataset.levels is None:
        raise DataError(f"random_features: needs images, and {dataset.name} has none; use `coordinates`")
    module = one_layer_class("random_features", _random)("random_features", ["features"])
    return Extractor("random_features", tensor_digest(module.state_dict()), RANDOM_FEATURES_DIM, module)


def _random(path: Path | None) -> nn.Module:
    return RandomFeatures()


class RandomFeatures(nn.Module):
    """Fixed random convolutions: [B, C, H, W] uint8 images -> [B, RANDOM_FEATURES_DIM].

    Each stage is a convolution of 3 x 3 with weights of variance 2 / fan-in and a ReLU; its features are the means over
    the four quarters of the picture, and the next stage sees it at half the size. So they have contrast, texture at
    three scales and a rough layout, and nothing of what is in the picture.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("version", torch.tensor(RANDOM_FEATURES_VERSION))
        # NumPy's legacy generator, because its numbers are promised never to change.
        generator = np.random.RandomState(0)
        self.convolutions = nn.ModuleList()
        for stage in range(STAGES):
            convolution = nn.Conv2d(CHANNELS if stage else 3, CHANNELS, 3, padding=1, padding_mode="replicate")
            fan_in = convolution.in_channels * 9
            for values, std in ((convolution.weight, (2 / fan_in) ** 0.5), (convolution.bias, 0.1)):
                assert values is not None
                values.data = torch.from_numpy(std * generator.standard_normal(tuple(values.shape))).float()
            self.convolutions.append(convolution)

    def forward(self, images: Tensor) -> Tensor:
        x = images.expand(-1, 3, -1, -1).float() / 127.5 - 1
        features = []
        for stage, convolution in enumerate(self.convolutions):
            if stage:
                x = nn.functional.avg_pool2d(x, 2, ceil_mode=True)
            x = nn.functional.relu(convolution(x))
            features.append(nn.functional.adaptive_avg_pool2d(x, GRID).flatten(1))
        return torch.cat(features, 1)
