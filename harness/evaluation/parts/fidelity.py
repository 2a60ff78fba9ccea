"""FID, precision, recall and other metrics of the features of samples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data.base import spread, to_uint8
from harness.evaluation.context import EvaluationContext
from harness.evaluation.images import image_grid
from harness.evaluation.result import PartResult
from harness.metrics.feature_metrics import CONSTANTS, Features, measure
from harness.metrics.features import Extractor
from harness.metrics.frechet import frechet_standard_error
from harness.metrics.logits import class_logits
from harness.spec.evaluation import Fidelity
from harness.spec.fidelity_metrics import FIDELITY_METRICS
from harness.spec.metrics import by_seed_kind, fidelity_name

NUM_SHOWN = 10
"""Samples in the picture of nearest training images."""


def fidelity(context: EvaluationContext, part: Fidelity) -> PartResult:
    """Draw samples and compare their features with those of real images; keep the first seed's samples for the grid.

    With several sampling seeds each number is the mean over them, and a curve has its values by seed.
    """
    assert part.num_steps is not None, "resolved"
    extractor = context.extractor(part.extractor)
    shows_copies = "memorisation" in part.metrics and context.data.levels is not None
    protocol = (extractor.name, part.num_samples, part.sampler.name, part.num_steps)
    result = PartResult(protocol=extractor_protocol(extractor))
    values: list[dict[str, float]] = []
    errors, distances_by_class = list[float](), list[dict[int, float]]()
    for index in range(part.seeds):
        seeded = context.sampling_seed(index, part.seeds)
        is_first = index == 0
        sampled = seeded.sampled_features(
            extractor, part.sampler, part.num_steps, part.num_samples, with_samples=shows_copies and is_first
        )
        features = features_of(context, part, extractor, sampled)
        values.append(measure(features, part.metrics))
        errors.append(_error_of_fid(part, features))
        if "class_fid" in part.metrics:
            distances_by_class.append(features.fid_by_class)
        if is_first:
            context.samples = seeded.samples
            result.protocol["fidelity"] = _protocol(part, features)
        if is_first and shows_copies:
            assert context.samples is not None
            result.pictures["nearest_training_images"] = _nearest_training_images(context, features, context.samples)
    result.metrics = {fidelity_name(kind, *protocol): _mean(of[kind] for of in values) for kind in values[0]}
    if distances_by_class:
        curve = [(label, _mean(of[label] for of in distances_by_class)) for label in distances_by_class[0]]
        result.curves[fidelity_name("class_fid_by_class", *protocol)] = curve
    if part.seeds > 1:
        result.curves |= {
            fidelity_name(by_seed_kind(kind), *protocol): [(index, of[kind]) for index, of in enumerate(values)]
            for kind in values[0]
        }
    if not math.isnan(error := _mean(errors)):
        result.protocol["fidelity"]["fid_standard_error"] = error
    return result


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _error_of_fid(part: Fidelity, features: Features) -> float:
    """Return FID's standard error over draws of the samples, from their features; NaN where it is not defined.

    It belongs to the number as the number of samples does, so it is recorded with every FID, asked for or not.
    """
    if "fid" not in part.metrics or len(features.samples) <= features.samples.shape[1]:
        return math.nan
    return frechet_standard_error(features.reference, features.samples)


def features_of(context: EvaluationContext, part: Fidelity, extractor: Extractor, samples: Tensor) -> Features:
    """Put what the metrics of a protocol need beside the features of its samples, [N, D]."""
    reference = context.reference(extractor, part.reference).to(context.device)
    more: dict[str, Tensor | None] = {}
    needs = {FIDELITY_METRICS[name].needs for name in part.metrics}
    if "classes" in needs:
        split = context.data.train if part.reference == "train" else context.data.test
        more |= {
            "labels": context.labels(0, len(samples)),
            "reference_labels": torch.from_numpy(split.labels).to(context.device),
        }
    if "logits" in needs:
        more["logits"] = class_logits(extractor, samples)
    if "training and test images" in needs:
        more |= {split: context.reference(extractor, split).to(context.device) for split in ("train", "test")}
    prc_reference = reference[spread(len(reference), part.prc_reference)]
    return Features(samples.to(context.device), reference, prc_reference, part.k, **more)


def _protocol(part: Fidelity, features: Features) -> dict[str, Any]:
    protocol = {
        "reference_images": len(features.reference),
        "reference": part.reference,
        **({"reference_sha256": part.reference_sha256} if part.reference_sha256 else {}),
        "prc_reference_images": len(features.prc_reference),
        "k": part.k,
    }
    constants = {name: CONSTANTS[name] for name in part.metrics if name in CONSTANTS}
    if features.train is not None and features.test is not None:
        images = {"train_images": len(features.train), "test_images": len(features.test)}
        constants["memorisation"] = constants["memorisation"] | images
    return protocol | ({"constants": constants} if constants else {})


def _nearest_training_images(context: EvaluationContext, features: Features, samples: Tensor) -> np.ndarray:
    """Draw the samples that are most likely copies, one a row, each beside its nearest training images in order."""
    memorised = features.memorisation
    rows = memorised.nearest_ratios.argsort(stable=True)[:NUM_SHOWN]
    tiles = []
    for row in rows.tolist():
        neighbours = context.data.to_images(context.data.train.images[memorised.nearest[row].numpy()])
        tiles.append(np.concatenate([to_uint8(samples[row : row + 1]).numpy(), neighbours]))
    return image_grid(np.concatenate(tiles), columns=len(tiles[0]))


def extractor_protocol(extractor: Extractor) -> dict[str, Any]:
    """Return the description of the feature extractor for the records."""
    return {"extractor": extractor.description}
