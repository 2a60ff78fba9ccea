"""search: trials that Optuna asks for, each an ordinary run."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.common import has_inception, profile_option, read_profile, runs_folder_option, same_runs, set_option
from harness.errors import LaunchError

if TYPE_CHECKING:
    from harness.search.space import Search
    from harness.search.trials import TrialRecord

INTERRUPTED_EXIT_CODE = 130
NUM_SUGGESTIONS = 8


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--cluster", default="local", metavar="local|slurm", show_default=True, help="Where to run.")
@click.option("--jobs", type=click.IntRange(1), help="Runs at a time.  [default: local: GPUs or cores, slurm: all]")
@profile_option
@click.option("--no-sync", is_flag=True, help="Don't carry the records to MLflow; `harness sync` does it later.")
@click.option("--status", "only_status", is_flag=True, help="Show the trials, the best value and what is left.")
@click.option("--best", "only_best", is_flag=True, help="Write the best trial as a study's YAML, ready for submit.")
@set_option
@runs_folder_option
def search(
    file: Path,
    cluster: str,
    jobs: int | None,
    profile: Path | None,
    no_sync: bool,
    only_status: bool,
    only_best: bool,
    sets: tuple[str, ...],
    runs_folder: Path,
) -> None:
    """Search a space: ask, run, tell, until all trials have ended. Safe to kill and to repeat."""
    from harness.search.coordinator import Coordinator
    from harness.search.loading import load_search
    from harness.search.workers import LocalWorkers, SlurmWorkers, Workers

    found = load_search(file, sets=sets, inception=has_inception())
    if only_status or only_best:
        (_show_status if only_status else _show_best)(found, runs_folder)
        return
    if cluster not in ("local", "slurm"):
        raise LaunchError(f"no cluster {cluster!r} for a search; the choices are local, slurm")
    facts = read_profile(profile, cluster)
    workers: Workers
    if cluster == "slurm":
        workers = SlurmWorkers(runs_folder, jobs, facts, sync=not no_sync)
    else:
        workers = LocalWorkers(runs_folder, jobs, found.settings.parallel * found.settings.replicates)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    coordinator = Coordinator(
        found, runs_folder, workers, sync=not no_sync, on_message=lambda line: click.echo(_plain(line))
    )
    try:
        finished = coordinator.run()
    except KeyboardInterrupt:
        click.echo(f"stopped; it goes on where it was: harness search {file}{same_runs(runs_folder)}")
        sys.exit(INTERRUPTED_EXIT_CODE)
    _draw(found, runs_folder)
    coordinator.sync_search()
    _show_status(found, runs_folder)
    sys.exit(0 if finished else 1)


def show_plan(file: Path, sets: Sequence[str], runs_folder: Path, *, as_json: bool) -> None:
    """Print a search's space, its budget and its first suggestions."""
    import json

    from harness import text
    from harness.cli import tables
    from harness.launch import planning
    from harness.progress import duration
    from harness.search.loading import load_search
    from harness.search.optuna_backend import first_suggestions
    from harness.search.space import format_value

    found = load_search(file, sets=sets, inception=has_inception())
    settings = found.settings
    points = first_suggestions(found, min(settings.parallel, settings.trials, NUM_SUGGESTIONS))
    trials = [found.trial(number, point) for number, point in enumerate(points)]
    if as_json:
        keys = [[run.run_key for run in study.runs] for study in trials]
        suggestions = [{"point": point, "run_keys": one} for point, one in zip(points, keys, strict=True)]
        click.echo(json.dumps({"search": found.name, **found.definition(), "suggestions": suggestions}))
        return
    click.echo(f"search {found.name}: {text.count(settings.trials, 'trial')}, {settings.parallel} at a time\n")
    tables.Table(("parameter", "space"), [(one.path, one.describe()) for one in found.space]).show()
    click.echo()
    rows = []
    for metric in found.metrics:
        evaluation, name = metric.find(trials[0].runs[0])
        rows.append((f"{evaluation.name}/{name}", metric.direction))
    tables.Table(("metric", "aim"), rows).show()
    runs = settings.trials * settings.replicates
    replicates = f", {settings.replicates} replicates each" if settings.replicates > 1 else ""
    limit = f", no new ones after {settings.timeout}" if settings.timeout else ""
    click.echo(f"\nsampler {settings.sampler}, pruner {settings.pruner}, seed {settings.seed}")
    click.echo(f"budget: {text.count(runs, 'run')}{replicates}{limit}")
    planned = planning.plan(trials[0], runs_folder)
    seconds, measured = planned.training_seconds(planned.runs[0]), planned.measured(planned.runs[0])
    if seconds and measured:
        click.echo(f"training: about {duration(runs * seconds)} on one {measured.device_name}, one by one")
    click.echo("\nfirst suggestions (what is asked for before any trial has ended):")
    paths = [one.path for one in found.space]
    tables.Table(
        ("trial", *paths, "run"),
        [
            (
                study.runs[0].arm,
                *(format_value(point[path]) if path in point else "-" for path in paths),
                study.runs[0].run_key,
            )
            for point, study in zip(points, trials, strict=True)
        ],
    ).show()
    for warning in dict.fromkeys(one for study in trials for one in study.warnings()):
        click.echo(f"warning: {_plain(warning)}")


def _show_status(search: Search, runs_folder: Path) -> None:
    from harness.cli import tables
    from harness.progress import duration
    from harness.search.space import format_value
    from harness.search.trials import FINISHED, eta_seconds, pareto_front, read_trials

    trials = read_trials(search.folder(runs_folder))
    if not trials:
        click.echo(f"search {search.name} has no trials in {runs_folder} yet")
        return
    best = pareto_front(trials, search.metrics)
    paths = [one.path for one in search.space]
    rows = []
    for trial in trials:
        point = [format_value(trial.point[path]) if path in trial.point else "-" for path in paths]
        values = [_value(trial, metric.name) for metric in search.metrics]
        mark = "*" if trial in best else ""
        note = trial.reason or ("reused" if trial.reused and len(trial.reused) == len(trial.run_keys) else "")
        rows.append((trial.arm, _progress(trial, runs_folder), *point, *values, mark, note or trial.run_keys[0]))
    headers = ("trial", "state", *paths, *(metric.name for metric in search.metrics), "best", "run")
    tables.Table(headers, rows).show()
    finished = sum(trial.state in FINISHED for trial in trials)
    states = ", ".join(
        f"{sum(trial.state == state for trial in trials)} {state}"
        for state in ("running", "complete", "pruned", "failed")
        if any(trial.state == state for trial in trials)
    )
    left = max(0, search.settings.trials - finished)
    eta = eta_seconds(trials, search.settings)
    click.echo(
        f"{states}; {left} of {search.settings.trials} left" + (f", about {duration(eta)}" if eta and left else "")
    )
    for trial in best[:1]:
        shown = ", ".join(f"{metric.name} {_value(trial, metric.name)}" for metric in search.metrics)
        front_size = f" (one of {len(best)} on the Pareto front)" if len(search.metrics) > 1 else ""
        click.echo(f"best: {trial.arm}, {shown}{front_size}")


def _value(trial: TrialRecord, metric: str) -> str:
    if metric not in trial.values:
        return "-"
    half = trial.half_width(metric)
    return f"{trial.values[metric]:.5g}" + (f" ± {half:.2g}" if half is not None else "")


def _progress(trial: TrialRecord, runs_folder: Path) -> str:
    """Say how a trial stands; of one that runs how far its runs are."""
    from harness.records.directory import RunDirectory

    if trial.state != "running":
        return trial.state
    standing = [RunDirectory(runs_folder / key).status() for key in trial.run_keys]
    steps = sum(status.step for status in standing)
    total = sum(status.num_steps for status in standing)
    return f"running {steps} of {total}" if total else "running"


def _show_best(search: Search, runs_folder: Path) -> None:
    from harness.search.trials import best_study, pareto_front, read_trials

    best = pareto_front(read_trials(search.folder(runs_folder)), search.metrics)
    if not best:
        raise LaunchError(
            f"search {search.name} has no complete trial in {runs_folder} yet: harness search {search.path}"
        )
    values = ", ".join(f"{metric.name} {_value(best[0], metric.name)}" for metric in search.metrics)
    click.echo(f"# {best[0].arm} of search {search.name}: {values}")
    if len(search.metrics) > 1:
        others = ", ".join(trial.arm for trial in best[1:]) or "none"
        click.echo(f"# the best by {search.metrics[0].name}; also on the Pareto front: {others}")
    click.echo(best_study(search, best[0]), nl=False)


def _draw(search: Search, runs_folder: Path) -> None:
    """Draw the figures where analysis/ is at hand; MLflow then shows them with the search."""
    from harness.search.importances import write_importances

    folder = search.folder(runs_folder)
    write_importances(search, folder)
    with contextlib.suppress(ImportError):
        from analysis.fig_search import draw_all

        draw_all(runs_folder, search.name, folder / "figures")


def _plain(text: str) -> str:
    from harness.text import printable

    return printable(text)
