"""Ensembles by t: the run whose network an evaluation uses in the middle of another run's chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.errors import SpecError
from harness.records.directory import RunDirectory
from harness.records.files import differences
from harness.spec.run import RunSpec
from harness.text import harness_command


def middle_of(run_key: str, spec: RunSpec, runs_folder: Path) -> RunDirectory:
    """Return the run whose network is used in the middle of a run's chain.

    Raises:
        SpecError: it is missing or not done, or has other data or another chain; the message has the difference.
    """
    middle = RunDirectory(runs_folder / run_key)
    if not middle.spec_path.exists():
        shown = harness_command("list", runs_folder=runs_folder)
        raise SpecError(f"ensemble: no run {run_key} in {runs_folder}: {shown} shows the studies of those that are")
    if (state := middle.status().state) != "done":
        raise SpecError(f"ensemble: run {run_key} is {state}; only a done run can take part")
    own = _shared(spec.model_dump(mode="json"))
    if changes := differences(_shared(middle.spec()), own):
        raise SpecError("\n  ".join([f"ensemble: run {run_key} is of another kind:", *changes]))
    return middle


def _shared(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved spec that both runs must have in common."""
    return {
        **{part: spec.get(part) for part in ("data", "diffusion")},
        "method": spec.get("method", {"name": "gaussian"}),
        "model": {"class_cond": spec["model"].get("class_cond", False)},
    }
