"""OpenAI's CLIP ViT-B/32 as torch-fidelity has it: the 512 features of an image that are compared with a text's."""

from __future__ import annotations

import functools
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.data.base import Dataset
from harness.errors import DataError
from harness.metrics.extractors.base import Extractor, given_file, shapes_of
from harness.metrics.torchvision_compat import torch_fidelity
from harness.metrics.weights import WEIGHTS, file_digest, is_official, read_weights

FEATURE_DIM, WIDTH, LAYERS, PATCH_SIZE, RESOLUTION = 512, 768, 12, 32, 224


def clip(dataset: Dataset, weights: str | os.PathLike[str] | None) -> Extractor:
    """Load torch-fidelity's CLIP from the published file, or from a state dict.

    Raises:
        DataError: no file given or found, not the weights of this network, or data that are not images.
    """
    path = given_file("clip", dataset, weights)
    module = _clip_class()("clip", ["clip"], feature_extractor_weights_path=path)
    official = is_official("clip", path)
    return Extractor("clip", file_digest(path), FEATURE_DIM, module, weights_path=path, official=official)


def read_clip_weights(path: Path) -> dict[str, Tensor]:
    """Read the part of CLIP ViT-B/32 that is for images, its names starting with `visual.`, in float32.

    The published file is a TorchScript archive, which holds code beside the tensors: it is read if its sha256 is the
    published one. Any other file has to be a state dict, of which the part for texts is ignored.

    Raises:
        DataError: it is neither.
    """
    shapes = shapes_of(_visual)
    if is_official("clip", path):
        with warnings.catch_warnings(action="ignore"):  # that torch.jit is old
            state = torch.jit.load(path, map_location="cpu").state_dict()
    elif _is_torchscript(path):
        published = WEIGHTS["clip"]
        raise DataError(
            f"{path}: a TorchScript archive, whose code would be run, and not the published one (sha256 "
            f"{file_digest(path)[:12]}, not {published.sha256[:12]}): save its state dict with torch.save, or use\n"
            f"  from: {published.url}"
        )
    else:
        state = read_weights("clip", path, shapes, part="visual.")
    return {name: state[name].float() for name in shapes}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _visual() -> nn.Module:
    return torch_fidelity().feature_extractor_clip.CLIPVisual(FEATURE_DIM, RESOLUTION, LAYERS, WIDTH, PATCH_SIZE)


@functools.cache
def _clip_class() -> type:
    """Return torch-fidelity's CLIP for grey and colour images, with safe loading, registered as `clip`."""
    library = torch_fidelity()

    class CLIP(library.feature_extractor_clip.FeatureExtractorCLIP):  # type: ignore[name-defined]
        def __init__(
            self, name: str, features_list: list[str], feature_extractor_weights_path: Any = None, **options: Any
        ):
            # Not its own constructor, which would run the code of an archive; that wants `text_projection` for a size.
            library.FeatureExtractorBase.__init__(self, name, features_list)
            state_dict = read_clip_weights(Path(feature_extractor_weights_path))
            size = {"text_projection": torch.empty(1, FEATURE_DIM)}
            self.feature_extractor_internal_dtype = torch.float32
            self.model = library.feature_extractor_clip.build_model(state_dict | size, torch.float32)
            self.resolution = RESOLUTION

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            return super().forward(images.expand(-1, 3, -1, -1))

    library.register_feature_extractor("clip", CLIP)
    return CLIP
