"""torch-fidelity's Inception-V3: the network of published FIDs."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.data.base import Dataset
from harness.metrics.extractors.base import Extractor, given_file, packed, shapes_of
from harness.metrics.torchvision_compat import torch_fidelity
from harness.metrics.weights import file_digest, is_official, read_weights


def inception(dataset: Dataset, weights: str | os.PathLike[str] | None) -> Extractor:
    """Load torch-fidelity's Inception-V3 (2,048 features of its last pool) from a file of weights.

    Raises:
        DataError: no file given or found, not the weights of this network, or data that are not images.
    """
    path = given_file("inception", dataset, weights)
    module = _inception_class()("inception", ["2048"], feature_extractor_weights_path=path)
    official = is_official("inception", path)
    return Extractor("inception", file_digest(path), 2048, module, weights_path=path, official=official)


def read_inception_weights(path: Path) -> dict[str, Tensor]:
    """Read torch-fidelity's Inception-V3 from a file, and check that it is this network and that it can be used.

    Raises:
        DataError: it is not.
    """
    return read_weights("inception", path, _shapes())


@functools.cache
def _shapes() -> dict[str, tuple[int, ...]]:
    class Shapes(torch_fidelity().feature_extractor_inceptionv3.FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, state_dict: Any, *arguments: Any, **options: Any) -> None:
            pass

    return shapes_of(lambda: Shapes("shapes", ["2048"], packed({})))


@functools.cache
def _inception_class() -> type:
    """Return torch-fidelity's Inception for grey and colour images, with safe loading, registered as `inception`."""

    class Inception(torch_fidelity().feature_extractor_inceptionv3.FeatureExtractorInceptionV3):  # type: ignore[misc]
        def __init__(
            self, name: str, features_list: list[str], feature_extractor_weights_path: Any = None, **options: Any
        ):
            # Read here, and repacked: torch-fidelity would execute code from the file.
            state_dict = read_inception_weights(Path(feature_extractor_weights_path))
            super().__init__(name, features_list, packed(state_dict), **options)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            return super().forward(images.expand(-1, 3, -1, -1))

    torch_fidelity().register_feature_extractor("inception", Inception)
    return Inception
