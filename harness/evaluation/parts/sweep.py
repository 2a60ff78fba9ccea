"""FID against the number of sampling steps (IDDPM, figure 8)."""

from __future__ import annotations

from harness.evaluation.context import EvaluationContext
from harness.evaluation.parts.fidelity import extractor_protocol
from harness.evaluation.result import PartResult
from harness.metrics.fidelity import frechet_distance
from harness.spec.evaluation import Sweep
from harness.spec.metrics import sweep_name


def sweep(context: EvaluationContext, part: Sweep) -> PartResult:
    """Measure FID for each sampler and each number of steps."""
    extractor = context.extractor(part.extractor)
    reference = context.reference(extractor, part.reference)
    result = PartResult(protocol=extractor_protocol(extractor))
    for sampler in part.samplers:
        curve = result.curves[sweep_name(extractor.name, part.num_samples, sampler.name)] = []
        for num_steps in sorted(part.num_steps):
            features = context.features(extractor, context.sample(sampler, num_steps, part.num_samples))
            curve.append((num_steps, frechet_distance(reference, features)))
    return result
