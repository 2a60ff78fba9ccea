"""Cells of a study's tables without a value: what its file asks for and no run has measured yet."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.analysis.answers import results
from harness.analysis.runs import Measurement, RunRecord
from harness.records.directory import RunDirectory
from harness.records.manifest import Manifest, Manifests
from harness.spec.evaluation import Fidelity
from harness.spec.fidelity_metrics import FIDELITY_METRICS

_NOT_METRICS = ("nll", "fidelity", "metrics", "name", "weights", "every", "split", "guidance", "fixed_variance")


@dataclass(frozen=True)
class MissingCell:
    """A metric of one replicate of an arm that has no value.

    Attributes:
        seed: None if the run is not there.
        state: of the run; `absent` if it is not there.
        command: fills the cell; empty where nothing does, as of a value that is not a number.
    """

    arm: str
    replicate: int
    seed: int | None
    run_key: str
    evaluation: str
    metric: str
    state: str
    command: str


def missing_cells(runs_folder: Path, study: str, runs: Sequence[RunRecord], options: str = "") -> list[MissingCell]:
    """Return the cells of a study without a value, in the order of its runs.

    Args:
        runs: of the study; without a manifest, it asks for these alone.
        options: that a command needs to address the same runs.
    """
    manifests, records = Manifests(runs_folder), {run.run_key: run for run in runs}
    manifest = manifests.of(study)
    submit = f"harness submit {_file(manifest, study)}{options}"
    cells = []
    for key in manifest.runs if manifest else records:
        directory, run = RunDirectory(runs_folder / key), records.get(key)
        place = manifest.runs[key] if manifest else manifests.memberships(directory, complete=True)[study]
        state = run.state if run else "unreadable" if directory.spec_path.exists() else "absent"
        if state == "pruned":  # by its search: it is not asked for more
            continue
        command = f"harness status {shlex.quote(study)}{options}" if state in ("queued", "running") else submit
        for evaluation in place["evaluations"]:
            measurement = _measurement(run, evaluation)
            for metric in _without_value(run, evaluation, measurement):
                seed = run.spec["seed"] if run else None
                arm, replicate, name = place["arm"], place["replicate"], str(evaluation.get("name"))
                shown = "" if measurement else command
                cells.append(MissingCell(arm, replicate, seed, key, name, metric, state, shown))
    return cells


def _file(manifest: Manifest | None, study: str) -> str:
    """Return a study's file as a word of a command, relative to the working folder; its name if the file is gone."""
    path = Path(manifest.file) if manifest and manifest.file else None
    if path is None or not path.is_file():
        return shlex.quote(study)
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)


def _measurement(run: RunRecord | None, evaluation: Mapping[str, Any]) -> Measurement | None:
    finished = run.measurements if run else ()
    return next((measurement for measurement in finished if measurement.evaluation == evaluation), None)


def _without_value(
    run: RunRecord | None, evaluation: Mapping[str, Any], measurement: Measurement | None
) -> Iterator[str]:
    """Return the metrics of an evaluation that have no value; parts without metrics of their own count as one."""
    if run is None or measurement is None:
        yield from ["nll"] if evaluation.get("nll") else []
        fidelity = evaluation.get("fidelity") or {}
        for name in fidelity.get("metrics", Fidelity.model_fields["metrics"].default) if fidelity else ():
            yield from FIDELITY_METRICS[name].outputs if name in FIDELITY_METRICS else [name]
        yield from (str(part.get("name")) for part in evaluation.get("metrics") or ())
        yield from (name for name, part in evaluation.items() if name not in _NOT_METRICS and isinstance(part, dict))
        return
    for model, _, metric, _, value in results.measured_values(run, measurement, ""):
        if model != results.GAUSSIAN and math.isnan(value):
            yield metric
