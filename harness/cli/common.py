"""What several verbs share: options, and the ways to name a study or a run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.errors import CheckpointError, LaunchError

if TYPE_CHECKING:
    from harness.records.directory import RunDirectory
    from harness.slurm.profile import Profile
    from harness.study.model import Study

MIN_PREFIX = 4


def default_runs() -> str:
    return os.environ.get("HARNESS_RUNS") or "runs"


study_file = click.argument("study", type=click.Path(path_type=Path))
set_option = click.option(
    "--set", "sets", multiple=True, metavar="PATH=VALUE", help="Set any field for once, as in --set train.steps=100."
)
runs_folder_option = click.option(
    "--runs",
    "runs_folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_runs,
    show_default="HARNESS_RUNS, else ./runs",
    help="Folder of the run directories.",
)
profile_option = click.option(
    "--profile", type=click.Path(path_type=Path), metavar="NAME|FILE", help="Facts of the SLURM cluster."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for other programs.")


def read_profile(profile: Path | None, cluster: str = "slurm") -> Profile | None:
    """Read the facts of a cluster; `mine` stands for slurm/clusters/mine.yaml.

    Raises:
        LaunchError: the file cannot be read or is wrong, or the runs would not go to a SLURM cluster.
    """
    from harness.slurm.profile import load_profile

    if profile is None:
        return None
    if cluster != "slurm":
        raise LaunchError("--profile describes a SLURM cluster; add --cluster slurm")
    named = Path("slurm", "clusters", f"{profile}.yaml")
    return load_profile(named if not profile.exists() and named.exists() else profile)


def load(study: Path, sets: Sequence[str] = ()) -> Study:
    from harness.study.expand import load_study

    return load_study(study, sets=sets, inception=has_inception())


def has_inception() -> bool:
    """Tell whether Inception's weights are at hand."""
    weights = os.environ.get("HARNESS_INCEPTION_WEIGHTS")
    return bool(weights) and Path(str(weights)).is_file()


step_option = click.option(
    "--step", metavar="STEP|best", help="Of a kept checkpoint, or the best by records.best.  [default: the newest]"
)


def checkpoint_step(directory: RunDirectory, wanted: str | None) -> int | None:
    """Return the step that `--step` means; None is the newest checkpoint's.

    Raises:
        CheckpointError: it is no step, or no checkpoint of the run has been scored.
    """
    if wanted is None:
        return None
    if wanted != "best":
        if not wanted.isdecimal():
            raise CheckpointError(f"--step {wanted}: a number of steps, or best")
        return int(wanted)
    from harness.records.disk import best_step

    step = best_step(directory.checkpoints_folder)
    if step is None:
        raise CheckpointError(f"run {directory.key} has no best checkpoint: its studies name no metric in records.best")
    return step


def same_runs(runs_folder: Path) -> str:
    """Return what a proposed command needs, to mean the same runs."""
    return "" if runs_folder == Path(default_runs()) else f" --runs {runs_folder}"


def all_runs(runs_folder: Path) -> list[RunDirectory]:
    from harness.records.directory import RunDirectory
    from harness.records.layout import run_paths

    return [RunDirectory(path) for path in run_paths(runs_folder)]


def members(study: str | None, runs_folder: Path) -> tuple[str | None, list[RunDirectory]]:
    """Return a study's name and its runs, in the order of the file; all runs when none is named.

    The runs of a search are those that it has asked for so far.

    Raises:
        LaunchError: no run belongs to a study of that name.
    """
    from harness.records.directory import RunDirectory
    from harness.records.layout import study_names
    from harness.study.expand import is_search

    if study is None:
        return None, all_runs(runs_folder)
    if (study.endswith((".yaml", ".yml")) or Path(study).is_file()) and is_search(study):
        from harness.search.loading import load_search

        study = load_search(study, inception=has_inception()).name
    elif study.endswith((".yaml", ".yml")) or Path(study).is_file():
        loaded = load(Path(study))
        directories = [RunDirectory(runs_folder / run.run_key) for run in loaded.runs]
        directories = [directory for directory in directories if directory.spec_path.exists()]
        if not directories:
            raise LaunchError(f"study {loaded.name} has no runs in {runs_folder} yet: harness submit {study}")
        return loaded.name, directories
    members = [one for one in all_runs(runs_folder) if one.study_path(study).is_file()]
    members.sort(key=lambda one: [one.studies()[study].get(key) for key in ("arm", "replicate")])
    if not members:
        names = study_names(runs_folder)
        raise LaunchError(f"no study {study!r} in {runs_folder}; {_choices(names, 'it is empty')}")
    return study, members


def studies_or_run(what: str | None, runs_folder: Path) -> list[RunDirectory]:
    try:
        return members(what, runs_folder)[1]
    except LaunchError as no_study:
        try:
            return [find_run(str(what), runs_folder)]
        except LaunchError:
            raise no_study from None


def find_run(prefix: str, runs_folder: Path) -> RunDirectory:
    """Return the run whose key begins so.

    Raises:
        LaunchError: the prefix is too short, or fits no run or several; the message lists them.
    """
    if len(prefix) < MIN_PREFIX:
        raise LaunchError(f"{prefix!r} is too short for a run: give {MIN_PREFIX} digits of its key or more")
    runs = all_runs(runs_folder)
    found = [directory for directory in runs if directory.key.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if found:
        raise LaunchError(f"{prefix!r} fits {len(found)} runs; {_choices(map(_label, found), '')}")
    raise LaunchError(f"no run {prefix!r} in {runs_folder}; {_choices(map(_label, runs), 'it is empty')}")


def _label(directory: RunDirectory) -> str:
    arms = sorted({f"{facts.get('arm')} r{facts.get('replicate')}" for facts in directory.studies().values()})
    return f"{directory.key} ({', '.join(arms)})"


def _choices(names: Iterable[str], none: str) -> str:
    names = list(names)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"choices: {', '.join(names[:10])}{more}" if names else none
