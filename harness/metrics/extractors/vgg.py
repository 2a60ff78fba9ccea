"""VGG-16 as torch-fidelity has it: 4,096 features of its second fully connected layer, after the ReLU."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.data.base import Dataset
from harness.metrics.extractors.base import Extractor, given_file, packed, shapes_of
from harness.metrics.torchvision_compat import torch_fidelity, vgg16
from harness.metrics.weights import file_digest, is_official, read_weights

FEATURE_DIM = 4096


def vgg(dataset: Dataset, weights: str | os.PathLike[str] | None) -> Extractor:
    """Load torch-fidelity's VGG-16 from a file of torchvision's weights.

    Raises:
        DataError: no file given or found, not the weights of this network, or data that are not images.
    """
    path = given_file("vgg", dataset, weights)
    module = _vgg_class()("vgg", ["fc2_relu"], feature_extractor_weights_path=path)
    return Extractor(
        "vgg", file_digest(path), FEATURE_DIM, module, weights_path=path, official=is_official("vgg", path)
    )


def read_vgg_weights(path: Path) -> dict[str, Tensor]:
    """Read torchvision's VGG-16 from a file, and check that it is this network and that it can be used.

    Raises:
        DataError: it is not.
    """
    return read_weights("vgg", path, shapes_of(vgg16))


@functools.cache
def _vgg_class() -> type:
    """Return torch-fidelity's VGG-16 for grey and colour images, with safe loading, registered as `vgg`."""

    class VGG(torch_fidelity().feature_extractor_vgg16.FeatureExtractorVGG16):  # type: ignore[misc]
        def __init__(
            self, name: str, features_list: list[str], feature_extractor_weights_path: Any = None, **options: Any
        ):
            # Read here, and repacked: torch-fidelity would execute code from the file.
            state_dict = read_vgg_weights(Path(feature_extractor_weights_path))
            super().__init__(name, features_list, packed(state_dict), **options)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            return super().forward(images.expand(-1, 3, -1, -1))

    torch_fidelity().register_feature_extractor("vgg", VGG)
    return VGG
