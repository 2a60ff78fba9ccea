"""The metrics that `fidelity` can compute from features: their names, what they leave and what they need. No torch.

`harness.metrics.feature_metrics` has a function for each name; tests/unit/contracts holds both equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FidelityMetricName = Literal[
    "fid",
    "fid_standard_error",
    "fid_infinity",
    "class_fid",
    "kid",
    "mind",
    "inception_score",
    "precision",
    "recall",
    "f_score",
    "density",
    "coverage",
    "memorisation",
]


@dataclass(frozen=True)
class FidelityMetric:
    """What a metric of features leaves and needs.

    Attributes:
        outputs: kinds of its numbers, each with an entry in `METRIC_KINDS`.
        curves: kinds of its curves over the classes.
        pictures: files in `samples/`, where the data are images.
        needs: beyond the features of samples and of real images.
        reference: what it takes of the reference: nothing, its mean and covariance, or its features.
    """

    outputs: tuple[str, ...]
    curves: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    needs: Literal["", "classes", "logits", "training and test images"] = ""
    reference: Literal["", "moments", "features"] = "features"


FIDELITY_METRICS: dict[str, FidelityMetric] = {
    "fid": FidelityMetric(("fid",), reference="moments"),
    "fid_standard_error": FidelityMetric(("fid_standard_error",), reference="moments"),
    "fid_infinity": FidelityMetric(("fid_infinity", "fid_infinity_low", "fid_infinity_high"), reference="moments"),
    "class_fid": FidelityMetric(("class_fid",), curves=("class_fid_by_class",), needs="classes"),
    "kid": FidelityMetric(("kid", "kid_standard_error")),
    "mind": FidelityMetric(("mind",)),
    "inception_score": FidelityMetric(("inception_score", "inception_score_std"), needs="logits", reference=""),
    "precision": FidelityMetric(("precision",)),
    "recall": FidelityMetric(("recall",)),
    "f_score": FidelityMetric(("f_score",)),
    "density": FidelityMetric(("density",)),
    "coverage": FidelityMetric(("coverage",)),
    "memorisation": FidelityMetric(
        ("memorisation_auc", "memorisation_auc_low", "memorisation_auc_high", "memorised_share"),
        pictures=("nearest_training_images",),
        needs="training and test images",
        reference="",
    ),
}

WITH_LOGITS = ("inception", "classifier")
"""The extractors whose features a linear layer turns into logits of classes."""
