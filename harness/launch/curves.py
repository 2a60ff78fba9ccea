"""The recorded values of what a plan calls by a name."""

from __future__ import annotations

from harness.records.data_digest import recorded_data_digest
from harness.records.directory import RunDirectory
from harness.records.journal import MEASURED
from harness.spec.evaluation import Evaluation
from harness.spec.metrics import recorded_name
from harness.study.model import Run


def recorded_values(directory: RunDirectory, run: Run, prefix: str, name: str) -> dict[int, float]:
    """Return the values by step of what is called `name` in the plan; earlier versions recorded it by that name."""
    if not directory.path.exists():
        return {}
    recorded = recorded_name(name, run.spec.data.name, recorded_data_digest(directory))
    for known in (recorded, name):
        steps, values = directory.history(f"{prefix}/{known}")
        if steps:
            return dict(zip(steps, values, strict=True))
    return {}


def measured_curve(directory: RunDirectory, run: Run, evaluation: Evaluation, name: str) -> dict[int, float]:
    """Return a metric's values during training; the prefix has a suffix if two studies' protocols clashed.

    Values that another protocol of this name measured are left out.
    """
    keys = {
        (event.fields["prefix"], event.fields["step"]): event.fields["key"]
        for event in directory.events(MEASURED)
        if not event.superseded
    }
    for prefix in (f"{evaluation.name}_{evaluation.key[:6]}", evaluation.name):
        curve = recorded_values(directory, run, prefix, name)
        of_protocol = {  # earlier versions did not record which
            step: value for step, value in curve.items() if keys.get((prefix, step), evaluation.key) == evaluation.key
        }
        if of_protocol:
            return of_protocol
    return {}
