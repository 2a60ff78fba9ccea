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

    With --json: {"studies": [{"study", "num_runs", "num_no_longer_asked_for", "states": {STATE: count},
    "last_active_seconds"}]}; of one study {"study", "runs": [{"run_key", "arm", "replicate", "state", "step",
    "num_steps", "last_active_seconds", "run_dir"}]}. Times are Unix seconds, null where no run has reported yet.
    """
    from harness.cli.earlier import earlier_lines
    from harness.records.manifest import Manifests

    name, directories = members(study, runs_folder)
    show_damage(runs_folder, directories)
    if name is None:
        studies = _studies(directories, runs_folder)
        output.document({"studies": studies})
        table = _table_of_studies(studies)
    else:
        runs = _runs(directories, name)
        output.document({"study": name, "runs": runs})
        table = _table_of_runs(runs)
    if output.as_json:
        return
    if not table.rows:
        click.echo(f"no studies in {runs_folder}")
        return
    table.show()
    if name:
        keys = [directory.key for directory in Manifests(runs_folder).earlier_runs(name)]
        for line in earlier_lines(name, keys, [], runs_folder):
            click.echo(line)


def _studies(directories: Sequence[RunDirectory], runs_folder: Path) -> list[dict[str, Any]]:
    """Return a summary of each study, the last active one first."""
    from harness.launch.states import read_run_states
    from harness.records.manifest import Manifests

    run_states = read_run_states([directory.path for directory in directories], recent=True)
    manifests = Manifests(runs_folder)
    statuses: dict[str, list[Any]] = {}
    num_earlier: Counter[str] = Counter()
    for directory in directories:
        asked, earlier = manifests.split(directory)
        num_earlier.update(earlier.keys())
        for name in asked:
            statuses.setdefault(name, []).append(run_states[directory.key].status)
    studies = [
        {
            "study": name,
            "num_runs": len(statuses.get(name, [])),
            "num_no_longer_asked_for": num_earlier[name],
            "states": dict(Counter(status.state for status in statuses.get(name, []))),
            "last_active_seconds": max((status.updated_seconds for status in statuses.get(name, [])), default=0)
            or None,
        }
        for name in statuses.keys() | num_earlier.keys()
    ]
    return sorted(studies, key=lambda row: (-(row["last_active_seconds"] or 0.0), row["study"]))


def _runs(directories: Sequence[RunDirectory], study: str) -> list[dict[str, Any]]:
    from harness.launch.states import read_run_states
    from harness.records.manifest import Manifests

    run_states = read_run_states([directory.path for directory in directories], recent=True)
    manifests = Manifests(directories[0].path.parent)
    runs = []
    for directory in directories:
        place = manifests.split(directory)[0].get(study, {})
        status = run_states[directory.key].status
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

    earlier = any(row["num_no_longer_asked_for"] for row in studies)
    rows = [
        (
            row["study"],
            str(row["num_runs"]),
            state_counts(Counter(row["states"]).elements()),
            *([str(row["num_no_longer_asked_for"] or "-")] if earlier else []),
            _moment(row["last_active_seconds"]),
        )
        for row in studies
    ]
    return Table(("study", "runs", "states", *(["no longer asked for"] if earlier else []), "last active"), rows)


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
