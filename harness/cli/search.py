"""search: trials suggested by Optuna, each an ordinary run."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.common import (
    Output,
    has_inception,
    json_option,
    no_sync_option,
    profile_option,
    read_profile,
    runs_folder_option,
    set_option,
)
from harness.cli.study_files import study_file
from harness.errors import HarnessError, LaunchError

if TYPE_CHECKING:
    from harness.search.space import Search
    from harness.search.trials import TrialRecord

INTERRUPTED_EXIT_CODE = 130
NUM_SUGGESTIONS = 8


@click.command()
@study_file
@click.option("--cluster", default="local", metavar="local|slurm", show_default=True, help="Where to run.")
@click.option("--jobs", type=click.IntRange(1), help="Runs at a time.  [default: local: GPUs or cores, slurm: all]")
@profile_option
@no_sync_option
@click.option("--status", "only_status", is_flag=True, help="Show the trials, the best value and what is left.")
@click.option("--best", "only_best", is_flag=True, help="Print the best trial as a study's YAML, ready for submit.")
@set_option
@json_option
@runs_folder_option
def search(
    study: Path,
    cluster: str,
    jobs: int | None,
    profile: Path | None,
    no_sync: bool,
    only_status: bool,
    only_best: bool,
    sets: tuple[str, ...],
    output: Output,
    runs_folder: Path,
) -> None:
    """Search a space with Optuna.

    Trials are suggested, run and reported until all have ended; each is an ordinary run. Safe to kill and to repeat.

    With --json: {"search", "trials": [{"trial", "state", "point", "values", "run_keys", "reason"}], "best": [TRIAL]},
    best being the Pareto front where there are several metrics; with --best {"trial", "study": YAML}.
    """
    from harness import text
    from harness.search.coordinator import Coordinator
    from harness.search.loading import load_search
    from harness.search.workers import LocalWorkers, SlurmWorkers, Workers

    definition = load_search(study, sets=sets, inception=has_inception())
    if only_status or only_best:
        (_show_status if only_status else _show_best)(definition, runs_folder, output)
        return
    if cluster not in ("local", "slurm"):
        raise LaunchError(f"no cluster {cluster!r} for a search; the choices are local, slurm")
    slurm_profile = read_profile(profile, cluster)
    workers: Workers
    if cluster == "slurm":
        workers = SlurmWorkers(runs_folder, jobs, slurm_profile, sync=not no_sync)
    else:
        workers = LocalWorkers(runs_folder, jobs, definition.settings.parallel * definition.settings.replicates)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    coordinator = Coordinator(
        definition, runs_folder, workers, sync=not no_sync, on_message=lambda line: click.echo(_plain(line))
    )
    try:
        finished = coordinator.run()
    except KeyboardInterrupt:
        where = [] if cluster == "local" else ["--cluster", cluster]
        options = [*(["--profile", profile] if profile else []), *(["--jobs", jobs] if jobs else [])]
        resume = text.harness_command("search", study, *where, *options, runs_folder=runs_folder, sets=sets)
        click.echo(f"stopped; to resume: {resume}")
        sys.exit(INTERRUPTED_EXIT_CODE)
    _draw(definition, runs_folder)
    coordinator.sync_search()
    _show_status(definition, runs_folder, output)
    sys.exit(0 if finished else 1)


def show_plan(study: Path, sets: Sequence[str], runs_folder: Path, output: Output) -> None:
    """Print a search's space, its budget and its first suggestions."""
    from harness import text
    from harness.cli import tables
    from harness.launch import planning
    from harness.search.loading import load_search
    from harness.search.optuna_backend import first_suggestions
    from harness.search.space import format_value
    from harness.study.rungs import describe_training

    definition = load_search(study, sets=sets, inception=has_inception())
    settings = definition.settings
    points = first_suggestions(definition, min(settings.bracket or settings.parallel, settings.trials, NUM_SUGGESTIONS))
    trials = [definition.trial(number, point) for number, point in enumerate(points)]
    planned = planning.plan(trials[0], runs_folder)
    measured = planned.measured(planned.runs[0])
    training = definition.training(planned.runs[0].run.spec.train.steps)
    if output.as_json:
        suggestions = [
            {"point": point, "run_keys": [run.run_key for run in trial.runs]}
            for point, trial in zip(points, trials, strict=True)
        ]
        for suffix in ("", "_without_rungs") if settings.rungs else ("",):
            training[f"seconds{suffix}"] = measured.seconds_per_step * training[f"steps{suffix}"] if measured else None
        training["measured_on"] = measured.device_name if measured else None
        document = {"search": definition.name, **definition.definition(), "suggestions": suggestions}
        output.document(document | {"training": training})
        return
    click.echo(f"search {definition.name}: {text.count(settings.trials, 'trial')}, {settings.parallel} at a time\n")
    tables.Table(("parameter", "space"), [(axis.path, axis.describe()) for axis in definition.space]).show()
    click.echo()
    rows = []
    for metric in definition.metrics:
        evaluation, name = metric.find(trials[0].runs[0])
        rows.append((f"{evaluation.name}/{name}", metric.direction))
    tables.Table(("metric", "aim"), rows).show()
    runs = settings.trials * settings.replicates
    replicates = f", {settings.replicates} replicates each" if settings.replicates > 1 else ""
    if settings.rungs:
        brackets = f", in brackets of {settings.bracket}" if settings.bracket else ""
        click.echo(f"\nrungs, trials to steps{brackets}: {describe_training(training)}")
    limit = f", no new ones after {settings.timeout}" if settings.timeout else ""
    click.echo(f"\nsampler {settings.sampler}, pruner {settings.pruner}, seed {settings.seed}")
    click.echo(f"budget: {text.count(runs, 'run')}{replicates}{limit}")
    if measured:
        needed = text.duration(measured.seconds_per_step * training["steps"])
        if settings.rungs:
            needed += f" instead of {text.duration(measured.seconds_per_step * training['steps_without_rungs'])}"
        click.echo(f"training: about {needed} on one {measured.device_name}, one run at a time")
    click.echo("\nfirst suggestions (before any trial has ended):")
    paths = [axis.path for axis in definition.space]
    tables.Table(
        ("trial", *paths, "run"),
        [
            (
                trial.runs[0].arm,
                *(format_value(point[path]) if path in point else "-" for path in paths),
                trial.runs[0].run_key,
            )
            for point, trial in zip(points, trials, strict=True)
        ],
    ).show()
    for warning in dict.fromkeys(warning for trial in trials for warning in trial.warnings()):
        click.echo(f"warning: {_plain(warning)}")


def _trial_json(trial: TrialRecord) -> dict[str, Any]:
    trials_json = {"trial": trial.arm, "state": trial.state, "point": trial.point, "values": trial.values}
    return trials_json | {"run_keys": trial.run_keys, "reason": trial.reason}


def _show_status(search: Search, runs_folder: Path, output: Output) -> None:
    from harness.cli import tables
    from harness.search.space import format_value
    from harness.search.trials import eta_seconds, num_counted, pareto_front, read_trials
    from harness.text import duration

    trials = read_trials(search.folder(runs_folder))
    if output.as_json:
        best_trials = [trial.arm for trial in pareto_front(trials, search.metrics)]
        trials_json = [_trial_json(trial) for trial in trials]
        output.document({"search": search.name, "trials": trials_json, "best": best_trials})
        return
    if not trials:
        click.echo(f"search {search.name} has no trials in {runs_folder} yet")
        return
    best = pareto_front(trials, search.metrics)
    paths = [axis.path for axis in search.space]
    rows = []
    for trial in trials:
        point = [format_value(trial.point[path]) if path in trial.point else "-" for path in paths]
        values = [_value(trial, metric.name) for metric in search.metrics]
        mark = "*" if trial in best else ""
        note = trial.reason or ("reused" if trial.reused and len(trial.reused) == len(trial.run_keys) else "")
        rows.append((trial.arm, _progress(trial, runs_folder), *point, *values, mark, note or trial.run_keys[0]))
    headers = ("trial", "state", *paths, *(metric.name for metric in search.metrics), "best", "run")
    tables.Table(headers, rows).show()
    states = ", ".join(
        f"{sum(trial.state == state for trial in trials)} {state}"
        for state in ("running", "complete", "pruned", "failed")
        if any(trial.state == state for trial in trials)
    )
    left = max(0, search.settings.trials - num_counted(trials, search.settings))
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
    """Return a trial's state; while it runs, also the steps of its runs; `waiting` if none has begun."""
    from harness.records.directory import RunDirectory

    if trial.state != "running":
        return trial.state
    statuses = [RunDirectory(runs_folder / key).status() for key in trial.run_keys]
    steps = sum(status.step for status in statuses)
    total = sum(status.num_steps for status in statuses)
    evaluates = ", evaluates" if any(status.evaluation for status in statuses) else ""
    rest = {status.state for status in statuses} <= {"paused", "done"}
    return f"{'paused' if rest else 'running'} {steps} of {total}{evaluates}" if total else "waiting"


def _show_best(search: Search, runs_folder: Path, output: Output) -> None:
    from harness import text
    from harness.search.trials import best_study, pareto_front, read_trials

    best = pareto_front(read_trials(search.folder(runs_folder)), search.metrics)
    if not best:
        raise LaunchError(
            f"search {search.name} has no complete trial in {runs_folder} yet: "
            + text.harness_command("search", search.path, runs_folder=runs_folder)
        )
    output.document({"trial": best[0].arm, "study": best_study(search, best[0])})
    if output.as_json:
        return
    values = ", ".join(f"{metric.name} {_value(best[0], metric.name)}" for metric in search.metrics)
    click.echo(f"# {best[0].arm} of search {search.name}: {values}")
    if len(search.metrics) > 1:
        others = ", ".join(trial.arm for trial in best[1:]) or "none"
        click.echo(f"# the best by {search.metrics[0].name}; also on the Pareto front: {others}")
    click.echo(best_study(search, best[0]), nl=False)


def _draw(search: Search, runs_folder: Path) -> None:
    """Draw the figures of a search; MLflow shows them as its artifacts. The search is done without them, too."""
    from harness.search.importances import write_importances

    folder = search.folder(runs_folder)
    try:
        write_importances(search, folder)
        from harness.analysis.figures.fig_search import draw_all  # importing matplotlib may fail as well

        draw_all(runs_folder, search.name, folder / "figures")
    except (HarnessError, OSError) as error:
        click.echo(_plain(f"the search is done, but its figures are not drawn: {error}"), err=True)


def _plain(text: str) -> str:
    from harness.text import printable

    return printable(text)
