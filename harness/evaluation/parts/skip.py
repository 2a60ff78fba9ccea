"""FID when the first fraction of the reverse chain is skipped (IDDPM, figure 4)."""

from __future__ import annotations

from harness.evaluation.context import EvaluationContext
from harness.evaluation.parts.fidelity import extractor_protocol
from harness.evaluation.result import PartResult
from harness.metrics.fidelity import frechet_distance
from harness.spec.evaluation import Skip
from harness.spec.metrics import skip_name


def skip(context: EvaluationContext, part: Skip) -> PartResult:
    """Measure FID for each fraction; a curve over per cent."""
    assert part.num_steps is not None, "resolved"
    extractor = context.extractor(part.extractor)
    reference = context.reference(extractor, part.reference)
    curve = []
    for fraction in sorted(part.fractions):
        samples = context.sample(part.sampler, part.num_steps, part.num_samples, skipped=fraction)
        curve.append((round(100 * fraction), frechet_distance(reference, context.features(extractor, samples))))
    name = skip_name(extractor.name, part.num_samples, part.sampler.name, part.num_steps)
    return PartResult(curves={name: curve}, protocol=extractor_protocol(extractor))
