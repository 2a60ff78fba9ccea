"""Metrics of plugins: functions of the context that return one number, or one for each declared name."""

from __future__ import annotations

from collections.abc import Mapping

from harness.errors import HarnessError
from harness.evaluation.context import EvaluationContext
from harness.evaluation.result import PartResult
from harness.registry import implementation, parameters
from harness.spec.evaluation import MetricModel


def metrics(context: EvaluationContext, chosen: tuple[MetricModel, ...]) -> PartResult:
    """Compute each metric in turn.

    Raises:
        HarnessError: a metric returns other names than it declares.
    """
    result = PartResult()
    for metric in chosen:
        values = implementation("metric", metric)(context, **parameters(metric))
        values = dict(values) if isinstance(values, Mapping) else {metric.name: values}
        if set(values) != set(metric.names):
            raise HarnessError(f"metric {metric.name} measured {sorted(values)}, but declares {sorted(metric.names)}")
        result.metrics |= {name: float(value) for name, value in values.items()}
    # The records say what each one measured, so that figures need not execute the plugin to know.
    result.protocol["metrics"] = {metric.name: list(metric.names) for metric in chosen}
    return result
