"""Measure a run's weights by a protocol, part by part, in a shared context.

`spec.Evaluation` defines what is measured; everything here is a function of the weights and that protocol, so it
can be done inside the job, later from a checkpoint, or twice with the same numbers.
"""

from __future__ import annotations

import torch

from harness.evaluation.context import EvaluationContext
from harness.evaluation.parts import PARTS
from harness.evaluation.parts.likelihood import likelihood_terms
from harness.evaluation.result import EvaluationResult


def evaluate(context: EvaluationContext) -> EvaluationResult:
    """Measure every part of the protocol."""
    result = EvaluationResult()
    with torch.inference_mode():
        for part in context.evaluation.parts:
            result.add(part, context.prefix, PARTS[part](context, getattr(context.evaluation, part)))
    return result


def evaluate_during_training(context: EvaluationContext) -> EvaluationResult:
    """Measure the part of an evaluation with `every` that is due during training: the likelihood's numbers only."""
    result = EvaluationResult()
    assert context.evaluation.nll is not None, "every needs an nll"
    with torch.inference_mode():
        result.add("nll", context.prefix, likelihood_terms(context, context.evaluation.nll))
    return result
