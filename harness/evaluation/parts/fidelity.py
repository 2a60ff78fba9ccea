"""FID, precision and recall of samples."""

from __future__ import annotations

from typing import Any

from harness.data.base import spread
from harness.evaluation.context import EvaluationContext
from harness.evaluation.result import PartResult
from harness.metrics.features import Extractor
from harness.metrics.fidelity import frechet_distance, precision_recall
from harness.spec.evaluation import Fidelity
from harness.spec.metrics import fidelity_name


def fidelity(context: EvaluationContext, part: Fidelity) -> PartResult:
    """Draw samples and compare their features with those of real images; keep the samples for the grid."""
    assert part.num_steps is not None, "resolved"
    extractor = context.extractor(part.extractor)
    features = context.sampled_features(extractor, part.sampler, part.num_steps, part.num_samples)
    reference = context.reference(extractor, part.reference)
    prc_reference = reference[spread(len(reference), part.prc_reference)]
    values = {
        "fid": frechet_distance(reference, features),
        **precision_recall(prc_reference, features, part.k, device=context.device),
    }
    protocol = (extractor.name, part.num_samples, part.sampler.name, part.num_steps)
    return PartResult(
        {fidelity_name(kind, *protocol): value for kind, value in values.items()},
        protocol=extractor_protocol(extractor)
        | {
            "fidelity": {
                "reference_images": len(reference),
                "reference": part.reference,
                "prc_reference_images": len(prc_reference),
                "k": part.k,
            }
        },
    )


def extractor_protocol(extractor: Extractor) -> dict[str, Any]:
    """Return the description of the feature extractor for the records."""
    return {
        "extractor": {
            "name": extractor.name,
            "weights_sha256": extractor.digest,
            "test_accuracy": extractor.accuracy,
            "official_weights": extractor.official,
        }
    }
