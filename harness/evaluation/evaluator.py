"""Measure a run's weights by a protocol, part by part, in a shared context.

`spec.Evaluation` defines what is measured; everything here is a function of the weights and that protocol, so it
can be done inside the job, later from a checkpoint, or twice with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from harness.evaluation.context import EvaluationContext
from harness.evaluation.parts import PARTS
from harness.evaluation.parts.fidelity import fidelity
from harness.evaluation.parts.likelihood import likelihood_terms
from harness.evaluation.result import EvaluationResult, PartResult


def evaluate(context: EvaluationContext) -> EvaluationResult:
    """Measure every part of the protocol."""
    result = EvaluationResult()
    with torch.inference_mode():
        for part in context.evaluation.parts:
            result.add(part, context.prefix, PARTS[part](context, getattr(context.evaluation, part)))
    return result


def evaluate_during_training(context: EvaluationContext) -> dict[str, float]:
    """Measure the parts of an evaluation that are due during training too; return their numbers alone."""
    result = EvaluationResult()
    with torch.inference_mode():
        for part in context.evaluation.during_training:
            result.add(part, context.prefix, _DURING_TRAINING[part](context, getattr(context.evaluation, part)))
    return result.metrics


_DURING_TRAINING: dict[str, Callable[[EvaluationContext, Any], PartResult]] = {
    "nll": likelihood_terms,  # without the arrays
    "fidelity": fidelity,
}
