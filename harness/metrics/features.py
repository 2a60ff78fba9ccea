"""Feature extractors for FID and precision/recall, in torch-fidelity's interface and registered with it by name.

`inception`, `clip` and `vgg` are torch-fidelity's networks and `dinov2` is that of FD_DINOv2, each with weights from a
file. `<data>net` (digitsnet, cifar10net, ...) is a small classifier trained on the data set's own labels, for machines
without those weights, and `random_features` are fixed random convolutions, for images without labels. `coordinates` are
the raw values of 2-D data. The name is part of every metric's name, because only `inception` gives what the papers call
FID.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.data.base import Dataset
from harness.data.facts import classifier_name, usual_extractor
from harness.errors import DataError
from harness.metrics.extractors.base import Extractor
from harness.metrics.extractors.classifier import classifier
from harness.metrics.extractors.clip import clip, read_clip_weights
from harness.metrics.extractors.dinov2 import dinov2, read_dinov2_weights
from harness.metrics.extractors.inception import inception, read_inception_weights
from harness.metrics.extractors.plain import coordinates, random_features
from harness.metrics.extractors.vgg import read_vgg_weights, vgg
from harness.metrics.weights import WEIGHTS, weights_file

EXTRACTORS: dict[str, Callable[[Dataset, Any], Extractor]] = {
    "inception": inception,
    "classifier": classifier,
    "coordinates": coordinates,
    "clip": clip,
    "vgg": vgg,
    "dinov2": dinov2,
    "random_features": random_features,
}

READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "inception": read_inception_weights,
    "clip": read_clip_weights,
    "vgg": read_vgg_weights,
    "dinov2": read_dinov2_weights,
}
"""How the weights of each extractor of `WEIGHTS` are read and checked."""


def load_extractor(
    name: str | None,
    dataset: Dataset,
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
) -> Extractor:
    """Load an extractor for a data set; the caller's random state is not changed.

    Args:
        name: a key of EXTRACTORS or the data set's `<data>net` (`classifier_name`). None means
            the `usual_extractor`.
        weights: file of the extractor's weights; None means the one that its environment variable names.

    Raises:
        DataError: no such extractor, or its weights are missing, damaged or of another shape.
    """
    name = name or _choice(dataset)
    own = classifier_name(dataset.name, dataset.digest)
    kind = "classifier" if name == own else name
    if kind not in EXTRACTORS:
        choices = ", ".join([own if key == "classifier" else key for key in EXTRACTORS])
        raise DataError(f"no feature extractor {name!r} for {dataset.name}; the choices are {choices}")
    if kind in WEIGHTS:
        weights = weights or weights_file(kind)
    with torch.random.fork_rng(devices=[]):  # layers are initialised randomly before their weights are loaded
        return EXTRACTORS[kind](dataset, weights).to(device)


def _choice(dataset: Dataset) -> str:
    name = usual_extractor(
        continuous=dataset.levels is None,
        pixels=dataset.image_size,
        labelled=dataset.train.labels is not None,
        inception=weights_file("inception") is not None,
    )
    return classifier_name(dataset.name, dataset.digest) if name == "classifier" else name
