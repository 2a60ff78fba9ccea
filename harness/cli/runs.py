"""status, why, logs, sample: looking at runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.common import (
    checkpoint_step,
    find_run,
    json_option,
    members,
    runs_folder_option,
    step_option,
)
from harness.errors import LaunchError, SpecError

if TYPE_CHECKING:
    from harness.cli.status_view import StatusRow


@click.command()
@click.argument("study", required=False)
@click.option("--watch", "--live", is_flag=True, help="Keep looking until nothing is left to run; Ctrl-C ends it.")
@json_option
@runs_folder_option
def status(study: str | None, watch: bool, as_json: bool, runs_folder: Path) -> None:
    """Show where runs stand: of a study (its file or its name), or all."""
    from harness import text
    from harness.cli import status_view, tables

    name, directories = members(study, runs_folder)

    def gather() -> list[StatusRow]:
        return status_view.status_rows(directories, name)

    if as_json:
        click.echo(status_view.status_json(gather()))
        return
    if not directories:
        click.echo(f"no runs in {runs_folder}")
        return
    if watch:
        _watch(gather)
        return
    rows = gather()
    status_view.status_table(rows).show()
    click.echo(f"{text.count(len(rows), 'run')}: {tables.state_counts(row.state for row in rows)}")


def _watch(gather: Any) -> None:
    import contextlib
    import time

    from harness.cli import status_view

    with contextlib.suppress(KeyboardInterrupt), status_view.Follower(gather) as follower:
        follower.tick()
        while any(row.state in ("new", "queued", "running") for row in gather()):
            time.sleep(1.0)
            follower.tick()


@click.command()
@click.argument("run")
@click.option("--lines", default=20, show_default=True, help="Lines of the log's end.")
@runs_folder_option
def why(run: str, lines: int, runs_folder: Path) -> None:
    """Explain a run: what happened to it, why it stands where it stands, and the end of its log."""
    from harness import text
    from harness.cli import status_view, timeline
    from harness.launch import claims

    directory = find_run(run, runs_folder)
    [row] = status_view.status_rows([directory])
    click.echo(f"{row.run_key} {row.arm} r{row.replicate} of {', '.join(row.studies) or 'no study'}")
    for line in timeline.timeline(directory):
        click.echo(f"  {line}")
    reason = f": {row.reason}" if row.reason else ""
    click.echo(text.printable(f"{row.state} at step {row.step} of {row.num_steps}{reason}"))
    log, job_log = claims.run_log(runs_folder, directory.key), claims.job_log(runs_folder, directory.key)
    if job_log and job_log != log:
        click.echo(f"log of its job: {job_log}")
    if log:
        click.echo(f"log: {log}")
        for line in log.read_text(errors="replace").splitlines()[-lines:]:
            click.echo(f"  {text.printable(line)}")


@click.command()
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Keep printing what is appended; Ctrl-C ends it.")
@runs_folder_option
def logs(run: str, follow: bool, runs_folder: Path) -> None:
    """Print the log of a run's newest attempt."""
    import contextlib

    from harness.launch import claims

    directory = find_run(run, runs_folder)
    log = claims.run_log(runs_folder, directory.key)
    if log is None and not follow:
        raise LaunchError(
            f"run {directory.key} has no log: no job of `harness submit` has begun it (debug jobs keep none)"
        )
    shown = _print_from(log, 0) if log else 0
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(runs_folder, directory.key, log, shown)


def _print_from(log: Path, offset: int) -> int:
    """Print a log from a byte on; return the byte at which it ends now."""
    with log.open("rb") as file:
        file.seek(offset)
        added = file.read()
    click.echo(added.decode(errors="replace"), nl=False)
    return offset + len(added)


def _follow(runs_folder: Path, run_key: str, log: Path | None, shown: int) -> None:
    """Print what is appended to a run's log; of the next attempt's from its beginning."""
    import time

    from harness.launch import claims

    while True:
        time.sleep(0.5)
        newest = claims.run_log(runs_folder, run_key)
        if log:
            shown = _print_from(log, shown)
        if newest and newest != log:
            log, shown = newest, _print_from(newest, 0)


@click.command()
@click.argument("run")
@click.option("--sampler", default="ddim", show_default=True, help="ancestral, ddim or dpmpp_2m.")
@click.option("--steps", type=click.IntRange(1), help="Steps of the sampler.  [default: 50, or T where that is less]")
@click.option("--n", "num_samples", type=click.IntRange(1), default=64, show_default=True, help="Images.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--weights", type=click.Choice(["ema", "raw", "untrained"]), default="ema", show_default=True)
@step_option
@click.option("--low-res", type=click.Path(path_type=Path), help="An upsampler's small images, a uint8 npz.")
@runs_folder_option
def sample(
    run: str,
    sampler: str,
    steps: int | None,
    num_samples: int,
    seed: int,
    weights: str,
    step: str | None,
    low_res: Path | None,
    runs_folder: Path,
) -> None:
    """Draw images from a run's checkpoint; the spec inside it says all else."""
    from harness.progress import Progress
    from harness.spec.base import choices
    from harness.spec.evaluation import Sampler
    from harness.text import did_you_mean

    directory = find_run(run, runs_folder)
    known = choices(Sampler)
    if sampler not in known:
        raise SpecError(f"--sampler {sampler}: unknown; {did_you_mean(sampler, list(known))}")
    from harness.evaluation.sampling import sample_run

    with Progress(f"sample {directory.key[:8]}") as progress:
        path = sample_run(
            directory.path,
            sampler=known[sampler](),  # type: ignore[arg-type]
            num_steps=steps or min(50, directory.spec()["diffusion"]["num_timesteps"]),
            num_samples=num_samples,
            seed=seed,
            weights=weights,
            step=checkpoint_step(directory, step),
            low_res=low_res,
            on_progress=lambda what, done, total: progress.update(done, total, what),
        )
    click.echo(path)
