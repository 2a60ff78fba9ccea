"""What a run is, as MLflow's params and tags."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.records import snapshot
from harness.records.directory import RunDirectory
from harness.records.journal import Row
from harness.records.layout import CODE
from harness.tracking.store import MAX_PARAM_CHARACTERS, param_name, tag_text


def params_of(spec: dict) -> dict[str, str]:
    """Flatten a resolved spec to MLflow params: dotted names, strings unchanged, other values as JSON."""
    flat: dict[str, str] = {}

    def visit(value: Any, path: str) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                visit(item, f"{path}.{key}" if path else str(key))
            return
        text = tag_text(value) if isinstance(value, str) else json.dumps(value)
        if len(text) > MAX_PARAM_CHARACTERS:
            note = f" ... ({len(text)} characters; whole in spec.yaml)"
            text = text[: MAX_PARAM_CHARACTERS - len(note)] + note
        flat[param_name(path)] = text

    visit(spec, "")
    return flat


_CONSTANTS = re.compile("compute/(parameters|train_flops)|[^/]+/(L_T_bpd|gaussian_baseline_bpd|data_log_density_nats)")
"""What no training changes, of a network, a schedule or the data: as a metric each would be a chart with one dot."""


def is_constant(key: str) -> bool:
    """Return whether a metric of the journal is a tag in MLflow, under the same name, and no metric."""
    return bool(_CONSTANTS.fullmatch(key))


def constants_of(rows: Iterable[Row]) -> dict[str, str]:
    """Return the constants among a run's rows as tags."""
    return {row.key: number_text(row.value) for row in rows if is_constant(row.key)}


def number_text(value: float) -> str:
    return str(int(value)) if value.is_integer() else f"{value:.6g}"


def source_tags(run_directory: RunDirectory, environment: dict[str, Any], file: str) -> dict[str, Any]:
    """Return the tags of MLflow's columns Source, Version and User; None where a value is not known.

    Args:
        environment: of the run's last attempt.
        file: the study's, from which the run was submitted; empty if unknown.
    """
    git = _git(run_directory, environment)
    return {
        "mlflow.source.git.commit": git.get("commit"),
        "mlflow.source.git.branch": git.get("branch"),
        "mlflow.source.git.dirty": git.get("dirty"),
        "mlflow.source.name": file or None,
        "mlflow.source.type": "LOCAL" if file else None,
        "mlflow.project.entryPoint": "harness submit" if file else None,
        "mlflow.user": environment.get("user"),
    }


def _git(run_directory: RunDirectory, environment: dict[str, Any]) -> dict[str, Any]:
    """Return the commit, the branch and whether there were changes; empty if they are not known."""
    git = environment.get("git")
    if git is None:  # of an earlier version
        git = _git_of_snapshot(run_directory.path.parent.absolute() / CODE, str(environment.get("code_snapshot")))
    return git if isinstance(git, dict) else {}


@lru_cache(maxsize=64)
def _git_of_snapshot(store: Path, code_id: str) -> Any:
    frozen = snapshot.find(store, code_id) if re.fullmatch("[0-9a-f]{16}", code_id) else None
    return frozen.manifest.get("git") if frozen else None


def infinite_values(rows: list[Row]) -> str:
    """List the infinite values, which MLflow silently stores as the largest float; it keeps NaN."""
    infinite = [f"{row.key} at step {row.x}: {row.value}" for row in rows if math.isinf(row.value)]
    if not infinite:
        return ""
    more = f"; and {len(infinite) - 20} more" if len(infinite) > 20 else ""
    return "; ".join(infinite[:20]) + more + " (MLflow shows them as 1.8e308)"
