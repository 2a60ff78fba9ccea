"""list: the studies and their runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.common import Output, json_option, members, runs_folder_option, show_damage
from harness.errors import RecordError

if TYPE_CHECKING:
    from harness.cli.tables import Table
    from harness.records.directory import RunDirectory


@click.command("list")
@click.argument("study", required=False)
@json_option
@runs_folder_option
def list_(study: str | None, output: Output, runs_folder: Path) -> None:
    """List the studies, or the runs of one.

    Without STUDY: how many runs each study has in which states, and when one of them last reported. With STUDY, a file
    or a name: its runs.

    With --json: {"studies": [{"study", "num_runs", "states": {STATE: count}, "last_active_seconds"}]}; of one study
    {"study", "runs": [{"run_key", "arm", "replicate", "state", "step", "num_steps", "last_active_seconds",
    "run_dir"}]}. Times are Unix seconds, null where no run has reported yet.
    """
    name, directories = members(study, runs_folder)
    show_damage(runs_folder, directories)
    if name is None:
        studies = _studies(directories)
        output.document({"studies": studies})
        table = _table_of_studies(studies)
    else:
        runs = _runs(directories, name)
        output.document({"study": name, "runs": runs})
        table = _table_of_runs(runs)
    if output.as_json:
        return
    if table.rows:
        table.show()
    else:
        click.echo(f"no studies in {runs_folder}")


def _studies(directories: Sequence[RunDirectory]) -> list[dict[str, Any]]:
    """Return a summary of each study, the last active one first."""
    from harness.launch.states import read_run_states

    run_states = read_run_states([directory.path for directory in directories])
    statuses: dict[str, list[Any]] = {}
    for directory in directories:
        for name in directory.studies():
            statuses.setdefault(name, []).append(run_states[directory.key].status)
    studies = [
        {
            "study": name,
            "num_runs": len(members),
            "states": dict(Counter(status.state for status in members)),
            "last_active_seconds": max(status.updated_seconds for status in members) or None,
        }
        for name, members in statuses.items()
    ]
    return sorted(studies, key=lambda row: (-(row["last_active_seconds"] or 0.0), row["study"]))


def _runs(directories: Sequence[RunDirectory], study: str) -> list[dict[str, Any]]:
    from harness.launch.states import read_run_states

    run_states = read_run_states([directory.path for directory in directories])
    runs = []
    for directory in directories:
        place, status = directory.studies().get(study, {}), run_states[directory.key].status
        runs.append(
            {
                "run_key": directory.key,
                "arm": place.get("arm", "-"),
                "replicate": place.get("replicate", 0),
                "state": status.state,
                "step": status.step,
                "num_steps": _num_steps(directory),
                "last_active_seconds": status.updated_seconds or None,
                "run_dir": str(directory.path),
            }
        )
    return runs


def _num_steps(directory: RunDirectory) -> int:
    """Return the length of a run's training, 0 where its spec cannot be read."""
    try:
        return directory.training_size()[0]
    except RecordError:
        return 0


def _table_of_studies(studies: Sequence[dict[str, Any]]) -> Table:
    from harness.cli.tables import Table, state_counts

    rows = [
        (
            row["study"],
            str(row["num_runs"]),
            state_counts(Counter(row["states"]).elements()),
            _moment(row["last_active_seconds"]),
        )
        for row in studies
    ]
    return Table(("study", "runs", "states", "last active"), rows)


def _table_of_runs(runs: Sequence[dict[str, Any]]) -> Table:
    from harness.cli.tables import Table

    rows = [
        (
            run["run_key"],
            f"{run['arm']} r{run['replicate']}",
            run["state"],
            f"{run['step']}/{run['num_steps']}",
            _moment(run["last_active_seconds"]),
        )
        for run in runs
    ]
    return Table(("run", "arm", "state", "step", "last active"), rows)


def _moment(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
