"""Recognise a collapsed model by what an evaluation measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.evaluation.result import EvaluationResult
from harness.spec.evaluation import Evaluation

SAMPLES_PER_MODE = 10
"""With fewer a good model may miss a mode by chance; with 10 the probability is 0.1 % for 25 modes."""


def collapse_signs(evaluation: Evaluation, prefix: str, result: EvaluationResult) -> Iterator[dict[str, Any]]:
    """Give the fields of an event for each sign in the result, with the numbers that show it; none if untrained."""
    if evaluation.weights == "untrained":
        return
    if zero := {name: value for name, value in _metrics(result, prefix, "recall") if value == 0}:
        yield {"sign": "recall_zero", "metrics": zero}
    part, num_modes = evaluation.modes, result.protocol.get("modes", {}).get("num_modes", 0)
    if part and part.num_samples >= SAMPLES_PER_MODE * num_modes:
        lost = {name: value for name, value in _metrics(result, prefix, "modes_covered") if value < num_modes}
        if lost:
            yield {"sign": "modes_lost", "metrics": lost, "of": num_modes}


def _metrics(result: EvaluationResult, prefix: str, kind: str) -> list[tuple[str, float]]:
    return [(name, value) for name, value in result.metrics.items() if name.startswith(f"{prefix}/{kind}_")]
