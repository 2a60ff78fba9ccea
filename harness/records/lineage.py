"""Continued runs: `continue_from` names a done run, and the new run starts from its final state.

The new run is a separate run. Its run_key includes the parent's, so it differs from that of an uninterrupted training,
even though the same settings give the same bits. Rows before its first step stay with the parent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.errors import SpecError
from harness.records.directory import RunDirectory
from harness.records.files import differences
from harness.records.layout import run_paths
from harness.spec.parts import plugins_of
from harness.spec.run import RunSpec, Simple

MAY_DIFFER = {
    "train": ("steps", "ema_rate", "precision"),
    "optim": ("lr", "warmup_steps", "decay", "final_lr", "grad_clip"),
}
"""What a continued run may change, including the objective: everything else is part of the restored state."""


def parent_of(spec: RunSpec, runs_folder: Path) -> tuple[RunDirectory, int]:
    """Return the run that a spec continues, and the step at which.

    Raises:
        SpecError: the parent is missing or not done, has trained as long already, or differs in what a continued run
            shares with it; the message has the difference, or the possible parents.
    """
    assert spec.continue_from is not None
    parent = RunDirectory(runs_folder / spec.continue_from)
    if not parent.spec_path.exists():
        names = [path.name for path in run_paths(runs_folder) if RunDirectory(path).status().state == "done"]
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        known = f"choices: {', '.join(names[:10])}{more}" if names else "no run there is done"
        raise SpecError(f"continue_from: no run {parent.key} in {runs_folder}; {known}")
    state = parent.status().state
    if state != "done":
        raise SpecError(f"continue_from: run {parent.key} is {state}; only a done run can be trained further")
    stored = parent.spec()
    step = stored["train"]["steps"]
    own = plugins_of(spec.model_copy(update={"objective": Simple()}))
    shared = _shared(stored) | {"plugins": {name: stored.get("plugins", {}).get(name) for name in own}}
    changes = differences(shared, _shared(spec.model_dump(mode="json")) | {"plugins": own})
    if changes:
        raise SpecError("\n  ".join([f"continue_from: run {parent.key} is of another kind:", *changes]))
    if spec.train.steps <= step:
        raise SpecError(
            f"continue_from: run {parent.key} has trained for {step} steps, so train.steps must be more than that, "
            f"not {spec.train.steps}"
        )
    return parent, step


def _shared(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved spec that must be equal in parent and child."""
    parts = {
        part: value for part, value in spec.items() if part not in ("objective", "continue_from", "imported_sha256")
    }
    for part, names in MAY_DIFFER.items():
        parts[part] = {name: value for name, value in parts[part].items() if name not in names}
    return parts
