"""Every metric of `fidelity`, as one function of features that were extracted once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from harness.metrics import divergences
from harness.metrics.fidelity import frechet_distance
from harness.metrics.frechet import frechet_by_class, frechet_infinity, frechet_standard_error
from harness.metrics.memorisation import NUM_NEIGHBOURS, TEST_SHARE, Memorisation, memorisation
from harness.metrics.neighbours import Neighbourhoods, neighbourhoods


@dataclass(frozen=True)
class Features:
    """Features of samples and of real images by one extractor, on the device that is to compare them.

    Attributes:
        samples: [N, D].
        reference: [M, D], of real images.
        prc_reference: [K, D], those of them that precision, recall, density and coverage are measured with.
        k: neighbours of these.
        labels, reference_labels: [N] and [M], classes; for the metric by class.
        logits: [N, num_classes] of the samples; for the Inception Score.
        train, test: features of all training and of all test images; for memorisation.
    """

    samples: Tensor
    reference: Tensor
    prc_reference: Tensor
    k: int
    labels: Tensor | None = None
    reference_labels: Tensor | None = None
    logits: Tensor | None = None
    train: Tensor | None = None
    test: Tensor | None = None

    @cached_property
    def neighbourhoods(self) -> Neighbourhoods:
        """Precision, recall, density and coverage, from one pass over all distances."""
        return neighbourhoods(self.prc_reference, self.samples, self.k)

    @cached_property
    def memorisation(self) -> Memorisation:
        """The test of memorisation, with the nearest training images of each sample."""
        assert self.train is not None and self.test is not None
        return memorisation(self.train, self.test, self.samples)

    @cached_property
    def fid_by_class(self) -> dict[int, float]:
        """The Frechet distance within each class."""
        assert self.labels is not None and self.reference_labels is not None
        return frechet_by_class(self.reference, self.reference_labels, self.samples, self.labels)


def measure(features: Features, metrics: tuple[str, ...]) -> dict[str, float]:
    """Compute metrics: {kind of number: value}, in the order of the metrics.

    Args:
        metrics: keys of FEATURE_METRICS.
    """
    return {kind: value for metric in metrics for kind, value in FEATURE_METRICS[metric](features).items()}


def _fid(features: Features) -> dict[str, float]:
    return {"fid": frechet_distance(features.reference, features.samples)}


def _fid_standard_error(features: Features) -> dict[str, float]:
    return {"fid_standard_error": frechet_standard_error(features.reference, features.samples)}


def _fid_infinity(features: Features) -> dict[str, float]:
    limit = frechet_infinity(features.reference, features.samples)
    return {"fid_infinity": limit.value, "fid_infinity_low": limit.low, "fid_infinity_high": limit.high}


def _class_fid(features: Features) -> dict[str, float]:
    return {"class_fid": float(np.mean(list(features.fid_by_class.values())))}


def _kid(features: Features) -> dict[str, float]:
    kid = divergences.kernel_distance(features.reference, features.samples)
    return {"kid": kid.value, "kid_standard_error": kid.standard_error}


def _mind(features: Features) -> dict[str, float]:
    return {"mind": divergences.monge_distance(features.reference, features.samples)}


def _inception_score(features: Features) -> dict[str, float]:
    assert features.logits is not None
    score = divergences.inception_score(features.logits)
    return {"inception_score": score.value, "inception_score_std": score.standard_deviation}


def _precision(features: Features) -> dict[str, float]:
    return {"precision": features.neighbourhoods.precision}


def _recall(features: Features) -> dict[str, float]:
    return {"recall": features.neighbourhoods.recall}


def _f_score(features: Features) -> dict[str, float]:
    return {"f_score": features.neighbourhoods.f_score}


def _density(features: Features) -> dict[str, float]:
    return {"density": features.neighbourhoods.density}


def _coverage(features: Features) -> dict[str, float]:
    return {"coverage": features.neighbourhoods.coverage}


def _memorisation(features: Features) -> dict[str, float]:
    auc = features.memorisation.auc
    values = {"memorisation_auc": auc.value, "memorisation_auc_low": auc.low, "memorisation_auc_high": auc.high}
    return values | {"memorised_share": features.memorisation.memorised_share}


FEATURE_METRICS: dict[str, Callable[[Features], dict[str, float]]] = {
    "fid": _fid,
    "fid_standard_error": _fid_standard_error,
    "fid_infinity": _fid_infinity,
    "class_fid": _class_fid,
    "kid": _kid,
    "mind": _mind,
    "inception_score": _inception_score,
    "precision": _precision,
    "recall": _recall,
    "f_score": _f_score,
    "density": _density,
    "coverage": _coverage,
    "memorisation": _memorisation,
}

CONSTANTS: dict[str, dict[str, Any]] = {
    "kid": {"kernel_degree": divergences.KID_DEGREE, "kernel_offset": divergences.KID_OFFSET},
    "mind": {"directions": divergences.MIND_DIRECTIONS, "seed": divergences.SEED},
    "inception_score": {"splits": divergences.SCORE_SPLITS, "seed": divergences.SEED},
    "memorisation": {"neighbours": NUM_NEIGHBOURS, "test_share": TEST_SHARE},
}
"""What decides a metric beyond its features and the protocol's fields; it is recorded beside the numbers."""
