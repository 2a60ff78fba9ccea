"""The command line: verbs over studies and runs. Every import is late, so that `harness --help` answers at once.

Errors of the user's are printed as one message with exit code 2; 1 means that the work itself did not end well.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.errors import HarnessError, LaunchError, SpecError

if TYPE_CHECKING:
    from harness.launch import WaitedFor
    from harness.records import RunDirectory
    from harness.study import Study
    from harness.views import Standing

MIN_PREFIX = 4
INTERRUPTED_EXIT_CODE = 130


def main() -> None:
    """Run the command line; a HarnessError becomes a message and exit code 2."""
    try:
        cli(prog_name="harness")
    except HarnessError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Ablations and scaling studies of diffusion models: one YAML study in, runs, records and figures out."""


def _default_runs() -> str:
    return os.environ.get("HARNESS_RUNS") or "runs"


_study = click.argument("study", type=click.Path(path_type=Path))
_sets = click.option(
    "--set", "sets", multiple=True, metavar="PATH=VALUE", help="Set any field for once, as in --set train.steps=100."
)
_runs = click.option(
    "--runs",
    "runs_folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=_default_runs,
    show_default="HARNESS_RUNS, else ./runs",
    help="Folder of the run directories.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for other programs.")


# -------------------------------------------------------------------------------------------------------- plan, submit


@cli.command()
@_study
@_json
@click.option("--all", "everything", is_flag=True, help="Show every run, not the first 40.")
@_sets
@_runs
def plan(study: Path, as_json: bool, everything: bool, sets: tuple[str, ...], runs_folder: Path) -> None:
    """Show what a study asks for, where each run stands and what is left to pay. Changes nothing."""
    from harness import launch

    planned = launch.plan(_load(study, sets), runs_folder)
    if as_json:
        import json

        click.echo(json.dumps(planned.as_json()))
        return
    from harness import views

    views.show_plan(planned, limit=None if everything else 40)


@cli.command()
@_study
@click.option("--cluster", default="local", metavar="local|debug|slurm", show_default=True, help="Where to run.")
@click.option("--jobs", type=click.IntRange(1), help="Workers (local), or runs at a time (slurm).")
@click.option("--profile", type=click.Path(path_type=Path), help="Facts of the SLURM cluster, a YAML file.")
@click.option("--no-sync", is_flag=True, help="Don't carry the records to MLflow; `harness sync` does it later.")
@_sets
@_runs
def submit(
    study: Path,
    cluster: str,
    jobs: int | None,
    profile: Path | None,
    no_sync: bool,
    sets: tuple[str, ...],
    runs_folder: Path,
) -> None:
    """Run all of a study that is not done yet. Safe to repeat: done runs are skipped, broken ones go on."""
    from harness import launch, views

    planned = launch.plan(_load(study, sets), runs_folder)
    if profile and cluster != "slurm":
        raise LaunchError("--profile describes a SLURM cluster; add --cluster slurm")
    facts = launch.load_profile(profile) if profile else None
    submission = launch.commit(planned, cluster=cluster, jobs=jobs, profile=facts, sync=not no_sync)
    name = planned.study.name
    submitted = {one.run_key for one in submission.runs}
    left_alone = [one for one in planned.runs if one.run_key not in submitted]
    if left_alone:
        click.echo(f"left alone: {views.state_counts(one.state for one in left_alone)}")
    if not submission.runs:
        click.echo("nothing to submit")
        return
    click.echo(f"submitted: {views.count(len(submission.runs), 'run')}")
    for note in submission.notes:
        click.echo(note)
    if not isinstance(submission, launch.WaitedFor):
        click.echo(f"follow: harness status {study}{_runs_option(runs_folder)} --watch")
        return
    with views.Follower(lambda: [views.standing(one.directory, name) for one in submission.runs]) as follower:
        ended_by_itself = submission.wait(follower.tick)
    _say_how_it_ended(submission, study, runs_folder, ended_by_itself)


def _say_how_it_ended(submission: WaitedFor, study: Path, runs_folder: Path, ended_by_itself: bool) -> None:
    from harness import views

    unfinished = submission.unfinished()
    num_done = len(submission.runs) - len(unfinished)
    click.echo(f"{num_done} of {views.count(len(submission.runs), 'run')} done")
    for planned in unfinished:
        why = f": {planned.status.reason}" if planned.status.reason else ""
        name = f"{planned.run_key} {planned.run.arm} r{planned.run.replicate}"
        click.echo(views.printable(f"  {name} {planned.state}{why}"))
    for log in submission.logs_of_killed():
        click.echo(f"a worker was killed (out of memory?); its log: {log}", err=True)
    if not unfinished:
        return
    first, option = unfinished[0].run_key, _runs_option(runs_folder)
    click.echo(f"`harness why {first}{option}` tells more; submit again resumes: harness submit {study}{option}")
    sys.exit(1 if ended_by_itself else INTERRUPTED_EXIT_CODE)


def _runs_option(runs_folder: Path) -> str:
    """Return what a proposed command needs, to mean the same runs."""
    return "" if runs_folder == Path(_default_runs()) else f" --runs {runs_folder}"


def _load(study: Path, sets: Sequence[str] = ()) -> Study:
    from harness.study import load_study

    weights = os.environ.get("HARNESS_INCEPTION_WEIGHTS")
    return load_study(study, sets=sets, inception=bool(weights) and Path(str(weights)).is_file())


# -------------------------------------------------------------------------------------------------------------- status


@cli.command()
@click.argument("study", required=False)
@click.option("--watch", "--live", is_flag=True, help="Keep looking until nothing is left to run; Ctrl-C ends it.")
@_json
@_runs
def status(study: str | None, watch: bool, as_json: bool, runs_folder: Path) -> None:
    """Show where runs stand: of a study (its file or its name), or all."""
    from harness import views

    name, directories = _members(study, runs_folder)

    def gather() -> list[Standing]:
        return [views.standing(directory, name) for directory in directories]

    if as_json:
        click.echo(views.status_json(gather()))
        return
    if not directories:
        click.echo(f"no runs in {runs_folder}")
        return
    if watch:
        _watch(gather)
        return
    found = gather()
    views.status_table(found).show()
    click.echo(f"{views.count(len(found), 'run')}: {views.state_counts(one.state for one in found)}")


def _watch(gather: Any) -> None:
    import contextlib
    import time

    from harness import views

    with contextlib.suppress(KeyboardInterrupt), views.Follower(gather) as follower:
        follower.tick()
        while any(one.state in ("new", "queued", "running") for one in gather()):
            time.sleep(1.0)
            follower.tick()


@cli.command()
@click.argument("run")
@click.option("--lines", default=20, show_default=True, help="Lines of the log's end.")
@_runs
def why(run: str, lines: int, runs_folder: Path) -> None:
    """Explain a run: what happened to it, why it stands where it stands, and the end of its log."""
    from harness import launch, views

    directory = _find_run(run, runs_folder)
    found = views.standing(directory)
    click.echo(f"{found.run_key} {found.arm} r{found.replicate} of {', '.join(found.studies) or 'no study'}")
    for line in views.history(directory.events()):
        click.echo(f"  {line}")
    reason = f": {found.reason}" if found.reason else ""
    click.echo(views.printable(f"{found.state} at step {found.step} of {found.num_steps}{reason}"))
    log, text = launch.log_of(runs_folder, directory.key)
    if log:
        click.echo(f"log: {log}")
    for line in text[-lines:]:
        click.echo(f"  {views.printable(line)}")


@cli.command()
@click.argument("run")
@_runs
def logs(run: str, runs_folder: Path) -> None:
    """Print what the newest job of a run wrote."""
    from harness import launch

    directory = _find_run(run, runs_folder)
    log, text = launch.log_of(runs_folder, directory.key)
    if log is None:
        raise LaunchError(
            f"run {directory.key} has no log: no job of `harness submit` has begun it (debug jobs keep none)"
        )
    click.echo("\n".join(text))


# -------------------------------------------------------------------------------------------------------- sample, sync


@cli.command()
@click.argument("run")
@click.option("--sampler", default="ddim", show_default=True, help="ancestral, ddim or dpmpp_2m.")
@click.option("--steps", type=click.IntRange(1), help="Steps of the sampler.  [default: 50, or T where that is less]")
@click.option("--n", "num_samples", type=click.IntRange(1), default=64, show_default=True, help="Images.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--weights", type=click.Choice(["ema", "raw", "untrained"]), default="ema", show_default=True)
@click.option("--low-res", type=click.Path(path_type=Path), help="An upsampler's small images, a uint8 npz.")
@_runs
def sample(
    run: str,
    sampler: str,
    steps: int | None,
    num_samples: int,
    seed: int,
    weights: str,
    low_res: Path | None,
    runs_folder: Path,
) -> None:
    """Draw images from a run's newest checkpoint; the spec inside it says all else."""
    from harness.progress import Progress
    from harness.spec import Sampler, choices
    from harness.study import did_you_mean

    directory = _find_run(run, runs_folder)
    known = choices(Sampler)
    if sampler not in known:
        raise SpecError(f"--sampler {sampler}: unknown; {did_you_mean(sampler, list(known))}")
    from harness.evaluation import sample_run

    with Progress(f"sample {directory.key[:8]}") as progress:
        path = sample_run(
            directory.path,
            sampler=known[sampler](),  # type: ignore[arg-type]
            num_steps=steps or min(50, directory.spec()["diffusion"]["num_timesteps"]),
            num_samples=num_samples,
            seed=seed,
            weights=weights,
            low_res=low_res,
            told=lambda what, done, total: progress.update(done, total, what),
        )
    click.echo(path)


@cli.command("import-checkpoint")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--as", "name", required=True, metavar="NAME", help="Which one: imagenet64_uncond, cifar10_uncond, ...")
@_runs
def import_checkpoint(file: Path, name: str, runs_folder: Path) -> None:
    """Make a finished run of a checkpoint that openai/improved-diffusion published."""
    from harness import published

    directory = published.import_checkpoint(file, name, runs_folder)
    click.echo(f"{directory.key} is {name}; sample it: harness sample {directory.key[:8]} --n 16")
    click.echo(f"evaluate it by a study that says `extends: {directory.path / 'study.yaml'}`, and what to measure")


@cli.command("export-checkpoint")
@click.argument("run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--weights", type=click.Choice(["ema", "raw"]), default="ema", show_default=True)
@click.option("--step", type=click.IntRange(0), help="Of a kept checkpoint.  [default: the newest]")
@_runs
def export_checkpoint(run: str, file: Path, weights: str, step: int | None, runs_folder: Path) -> None:
    """Write a run's weights as a file that openai/improved-diffusion's scripts load."""
    from harness import published

    directory = _find_run(run, runs_folder)
    done = published.export_checkpoint(directory.path, file, weights=weights, step=step)
    click.echo(f"{file}: the {weights} weights of {directory.key} at step {done}")


@cli.command()
@click.argument("what", nargs=-1, metavar="[STUDY|RUN]...")
@click.option("--check", is_flag=True, help="Compare MLflow with the journals row for row, and change nothing.")
@_runs
def sync(what: tuple[str, ...], check: bool, runs_folder: Path) -> None:
    """Carry records to MLflow, each row once: of studies, of runs, or all. Safe to repeat."""
    from harness import tracking, views

    directories = {
        directory.key: directory for one in what or (None,) for directory in _studies_or_run(one, runs_folder)
    }
    wrong, num_rows = 0, 0
    for directory in directories.values():
        if check:
            report = tracking.check(directory)
            num_rows += report.num_rows_compared
            found = [*report.gaps, *report.duplicates, *report.conflicts, *report.problems]
        else:
            sent = tracking.sync_run(directory)
            num_rows += sum(study.num_rows_sent for study in sent.studies.values())
            found = sent.problems
        for line in found:
            click.echo(views.printable(f"{directory.key}: {line}"))
        wrong += bool(found)
    verb = "compared" if check else "sent"
    click.echo(f"{views.count(len(directories), 'run')}, {views.count(num_rows, 'row')} {verb}, {wrong} with problems")
    if wrong:
        sys.exit(1)


# --------------------------------------------------------------------------------------------------------------- clean


@cli.command()
@click.argument("study", required=False)
@click.option("--yes", is_flag=True, help="Remove what is safe to remove, without asking.")
@_runs
def clean(study: str | None, yes: bool, runs_folder: Path) -> None:
    """Show the disk that runs take and what can go; remove that only when you say yes."""
    from harness import disk, views

    _, directories = _members(study, runs_folder)
    used = disk.usage(directory.path for directory in directories)
    rows = [(kind, views.size(used[kind])) for kind in sorted(used, key=lambda kind: -used[kind])]
    views.Table(("kind", "disk"), [*rows, ("all", views.size(sum(used.values())))]).show()
    offers = {directory.key: disk.removable(directory) for directory in directories}
    found = [one for offer in offers.values() for one in offer]
    if not found:
        click.echo("nothing that is safe to remove")
        return
    for reason in sorted({one.why for one in found}):
        these = [one.num_bytes for one in found if one.why == reason]
        click.echo(f"safe to remove: {views.count(len(these), 'file')}, {views.size(sum(these))}: {reason}")
    if not yes and not sys.stdin.isatty():
        click.echo("nothing removed; --yes removes them")
        return
    if yes or click.confirm("Remove them?"):
        freed = sum(disk.remove(directory) for directory in directories if offers[directory.key])
        click.echo(f"freed {views.size(freed)}")


# ---------------------------------------------------------------------------------------------------- studies and runs


def _all_runs(runs_folder: Path) -> list[RunDirectory]:
    from harness.records import RunDirectory

    return [RunDirectory(path.parent) for path in sorted(runs_folder.glob("[!.]*/spec.json"))]


def _members(study: str | None, runs_folder: Path) -> tuple[str | None, list[RunDirectory]]:
    """Return a study's name and its runs, in the order of the file; all runs when none is named.

    Raises:
        LaunchError: no run belongs to a study of that name.
    """
    from harness.records import RunDirectory

    if study is None:
        return None, _all_runs(runs_folder)
    if study.endswith((".yaml", ".yml")) or Path(study).is_file():
        loaded = _load(Path(study))
        present = [runs_folder / run.run_key for run in loaded.runs]
        directories = [RunDirectory(path) for path in present if (path / "spec.json").exists()]
        if not directories:
            raise LaunchError(f"study {loaded.name} has no runs in {runs_folder} yet: harness submit {study}")
        return loaded.name, directories
    members = [one for one in _all_runs(runs_folder) if (one.path / "studies" / f"{study}.json").is_file()]
    members.sort(key=lambda one: [one.studies()[study].get(key) for key in ("arm", "replicate")])
    if not members:
        names = sorted({path.stem for path in runs_folder.glob("[!.]*/studies/[!.]*.json")})
        raise LaunchError(f"no study {study!r} in {runs_folder}; {_choices(names, 'it is empty')}")
    return study, members


def _studies_or_run(what: str | None, runs_folder: Path) -> list[RunDirectory]:
    try:
        return _members(what, runs_folder)[1]
    except LaunchError as no_study:
        try:
            return [_find_run(str(what), runs_folder)]
        except LaunchError:
            raise no_study from None


def _find_run(prefix: str, runs_folder: Path) -> RunDirectory:
    """Return the run whose key begins so.

    Raises:
        LaunchError: the prefix is too short, or fits no run or several; the message lists them.
    """
    if len(prefix) < MIN_PREFIX:
        raise LaunchError(f"{prefix!r} is too short for a run: give {MIN_PREFIX} digits of its key or more")
    runs = _all_runs(runs_folder)
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


if __name__ == "__main__":
    main()
