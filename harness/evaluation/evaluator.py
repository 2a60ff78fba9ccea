"""Measure a run's weights by a protocol: part after part, each with what was computed once for all.

What is measured is decided by `spec.Evaluation`; everything here is a function of the weights and that protocol, so it
can be done inside the job, later from a checkpoint, or twice with the same numbers.
"""

from __future__ import annotations

import torch

from harness.evaluation.context import EvaluationContext
from harness.evaluation.parts import PARTS
from harness.evaluation.parts.likelihood import likelihood_terms
from harness.evaluation.result import EvaluationResult


def evaluate(context: EvaluationContext) -> EvaluationResult:
    """Measure everything that the protocol asks for."""
    result = EvaluationResult()
    with torch.inference_mode():
        for part in context.evaluation.parts:
            result.add(part, context.prefix, PARTS[part](context, getattr(context.evaluation, part)))
    return result


def evaluate_during_training(context: EvaluationContext) -> EvaluationResult:
    """Measure what an evaluation with `every` measures during training: the likelihood's numbers alone."""
    result = EvaluationResult()
    assert context.evaluation.nll is not None, "every needs an nll"
    with torch.inference_mode():
        result.add("nll", context.prefix, likelihood_terms(context, context.evaluation.nll))
    return result
