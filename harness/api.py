"""The public functions of the package, available as `harness.<name>`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.study.model import Study

if TYPE_CHECKING:
    from harness.analysis.runs import StudyRuns
    from harness.launch.planning import Plan
    from harness.launch.submission import Submission
    from harness.records.directory import RunDirectory


def load_study(path: str | Path, *, sets: Sequence[str] = ()) -> Study:
    """Read a study file, YAML or Python, and expand it into its runs.

    Args:
        sets: overrides `path=value`, such as "train.steps=100".

    Raises:
        SpecError: one line per mistake: `file:line: path: what is wrong; the choices`.
    """
    from harness.cli.common import load

    return load(Path(path), sets)


def plan(study: Study | str | Path, *, runs_folder: str | Path | None = None) -> Plan:
    """Return the state of each run of a study and what is left to do. Changes nothing.

    Args:
        runs_folder: default: HARNESS_RUNS, else `runs`.
    """
    from harness.launch import planning

    return planning.plan(_study(study), _folder(runs_folder))


def submit(study: Study | str | Path, *, runs_folder: str | Path | None = None, **options: Any) -> Submission:
    """Submit whatever is not finished; safe to repeat. Call `wait(lambda: None)` on what it returns.

    Args:
        options: of `harness.launch.submit.submit`, such as cluster="slurm", jobs=2 or sync=False.

    Raises:
        HarnessError: before anything is submitted.
    """
    from harness.launch.submit import submit as submit_plan

    return submit_plan(plan(study, runs_folder=runs_folder), **options)


def open_run(key: str, *, runs_folder: str | Path | None = None) -> RunDirectory:
    """Return the records of the run whose key starts with `prefix`: `spec()`, `rows()`, `history(metric)`, `status()`.

    Raises:
        LaunchError: no run matches, or several; the message lists them.
    """
    from harness.cli.common import find_run

    return find_run(key, _folder(runs_folder))


def load_runs(study: str | None = None, *, runs_folder: str | Path | None = None) -> StudyRuns:
    """Return the records of the runs that a study asks for, or that any study asks for, as tidy pandas frames."""
    from harness.analysis.runs import load_runs as load

    return load(study, runs_folder=_folder(runs_folder))


def _study(study: Study | str | Path) -> Study:
    return study if isinstance(study, Study) else load_study(study)


def _folder(runs_folder: str | Path | None) -> Path:
    from harness.cli.common import default_runs

    return Path(runs_folder or default_runs())
