"""FID, precision and recall against the number of sampling steps (IDDPM, figure 8)."""

from __future__ import annotations

from harness.data.base import spread
from harness.evaluation.context import EvaluationContext
from harness.evaluation.parts.fidelity import extractor_protocol
from harness.evaluation.result import PartResult
from harness.metrics.fidelity import frechet_distance, precision_recall
from harness.spec.evaluation import Sweep
from harness.spec.metrics import sweep_name


def sweep(context: EvaluationContext, part: Sweep) -> PartResult:
    """Measure the metrics for each sampler and each number of steps."""
    extractor = context.extractor(part.extractor)
    reference = context.reference(extractor, part.reference)
    prc_reference = reference[spread(len(reference), part.prc_reference)]
    result = PartResult(protocol=extractor_protocol(extractor))
    for sampler in part.samplers:
        for num_steps in sorted(part.num_steps):
            features = context.features(extractor, context.sample(sampler, num_steps, part.num_samples))
            values = {"fid": frechet_distance(reference, features)} if "fid" in part.metrics else {}
            if {"precision", "recall"} & {*part.metrics}:
                values |= precision_recall(prc_reference, features, part.k, device=context.device)
            for kind in part.metrics:
                name = sweep_name(kind, extractor.name, part.num_samples, sampler.name)
                result.curves.setdefault(name, []).append((num_steps, values[kind]))
    return result
