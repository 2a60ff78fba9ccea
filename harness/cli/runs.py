"""status, why, logs, sample: inspect runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.common import (
    Output,
    checkpoint_option,
    checkpoint_step,
    find_run,
    json_option,
    members,
    runs_folder_option,
    sampler_named,
    show_damage,
    upload_left_over,
    weights_option,
)
from harness.errors import LaunchError

if TYPE_CHECKING:
    from harness.cli.status_view import StatusRow
    from harness.records.directory import RunDirectory


@click.command()
@click.argument("study", required=False)
@click.option("--watch", "--live", is_flag=True, help="Keep updating until nothing is left to run; Ctrl-C stops.")
@json_option
@runs_folder_option
def status(study: str | None, watch: bool, output: Output, runs_folder: Path) -> None:
    """Show the state and progress of runs.

    Those of a study, given by file or name, or all.

    With --json: [{"run_key", "studies", "arm", "replicate", "state", "step", "num_steps", "steps_per_second",
    "eta_seconds", "loss", "nll_bpd", "fid", "reason", "run_dir", "job", "node", "evaluation", "evaluation_done",
    "evaluation_total", "asked_for", "unanswered", "collapse": [SIGN]}]. Of a study these are the runs that it asks for;
    without STUDY all, and "asked_for" is false where no study asks for the run any more; "unanswered" is true where the
    state depends on SLURM, which does not answer.
    """
    from harness import text
    from harness.cli import status_view, tables
    from harness.cli.earlier import earlier_lines
    from harness.records.devices import device_notes, devices_of
    from harness.records.manifest import Manifests
    from harness.records.nodes import bad_nodes

    output.refuse_with("--watch", watch)
    name, directories = members(study, runs_folder)

    show_damage(runs_folder)
    upload_left_over(directories)

    def gather() -> list[StatusRow]:
        return status_view.status_rows(directories, name)

    if output.as_json:
        output.document([asdict(row) for row in gather()])
        return
    if not directories:
        click.echo(f"no runs in {runs_folder}")
        return
    if watch:
        _watch(gather)
        return
    rows = gather()
    earlier = [row for row in rows if not row.asked_for]
    rows = [row for row in rows if row.asked_for]
    status_view.status_table(rows, study=name is None).show()
    click.echo(f"{text.count(len(rows), 'run')}: {tables.state_counts(row.state for row in rows)}")
    if name:
        devices = {directory.key: devices_of(directory) for directory in directories}
        for note in device_notes((row.arm, row.replicate, devices[row.run_key]) for row in rows):
            click.echo(text.printable(f"warning: {note}"))
    for node in bad_nodes(runs_folder):
        click.echo(text.printable(node.describe(runs_folder)))
    if name:
        earlier = status_view.status_rows(Manifests(runs_folder).earlier_runs(name), name)
    waiting = [row.run_key for row in earlier if row.state in ("queued", "running")]
    for line in earlier_lines(name, [row.run_key for row in earlier], waiting, runs_folder):
        click.echo(line)


def _watch(gather: Any) -> None:
    import contextlib
    import time

    from harness.cli import status_view

    with contextlib.suppress(KeyboardInterrupt), status_view.Follower(gather) as follower:
        while any(row.is_active for row in follower.tick()):
            time.sleep(1.0)


@click.command()
@click.argument("run")
@click.option("--lines", type=click.IntRange(0), default=20, show_default=True, help="Lines from the end of its log.")
@json_option
@runs_folder_option
def why(run: str, lines: int, output: Output, runs_folder: Path) -> None:
    """Explain what happened to a run.

    Its events in order, the reason for its state, what to try where the model has collapsed, and the end of its log.

    With --json: the run's object of `status --json`, with "timeline": [TEXT], "advice": [TEXT], "log": FILE or null,
    and "log_lines".
    """
    from harness import text
    from harness.cli import status_view, timeline
    from harness.launch import claims
    from harness.records.collapse import advice

    directory = find_run(run, runs_folder)
    [row] = status_view.status_rows([directory])
    events = timeline.timeline(directory)
    log, job_log = claims.run_log(runs_folder, directory.key), claims.job_log(runs_folder, directory.key)
    log_lines = log.read_text(errors="replace").splitlines()[-lines:] if log and lines else []
    if output.as_json:
        log_json = {"log": str(log) if log else None, "log_lines": log_lines}
        output.document({**asdict(row), "timeline": events, "advice": advice(row.collapse), **log_json})
        return
    no_longer = "" if row.asked_for else ", no longer asked for"
    studies = ", ".join(row.studies) or "no study"
    click.echo(text.printable(f"{row.run_key} {row.arm} r{row.replicate} of {studies}{no_longer}"))
    for line in events:
        click.echo(f"  {line}")
    reason = f": {row.note}" if row.note else ""
    click.echo(text.printable(f"{row.state} at step {row.step} of {row.num_steps}{reason}"))
    for line in advice(row.collapse):
        click.echo(f"try: {line} (docs/howto/my_run_failed.md)")
    if job_log and job_log != log:
        click.echo(f"log of its job: {job_log}")
    if log:
        click.echo(f"log: {log}")
    for line in log_lines:
        click.echo(f"  {text.printable(line)}")


@click.command()
@click.argument("run")
@click.option(
    "-f", "--follow", is_flag=True, help="Print new lines as they are written, until the run has ended; Ctrl-C stops."
)
@json_option
@runs_folder_option
def logs(run: str, follow: bool, output: Output, runs_folder: Path) -> None:
    """Print the log of a run's newest attempt.

    With --json: {"run_key", "log": FILE, "lines": [TEXT]}.
    """
    import contextlib

    from harness.launch import claims

    output.refuse_with("--follow", follow)
    directory = find_run(run, runs_folder)
    log = claims.run_log(runs_folder, directory.key)
    if log is None and not follow:
        raise LaunchError(
            f"run {directory.key} has no log: no job of `harness submit` has started it (debug jobs keep none)"
        )
    if output.as_json and log:
        lines = log.read_text(errors="replace").splitlines()
        output.document({"run_key": directory.key, "log": str(log), "lines": lines})
        return
    shown = _print_from(log, 0) if log else 0
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            _follow(directory, log, shown)


def _print_from(log: Path, offset: int) -> int:
    """Print a log from a byte offset on; return the offset of its end."""
    from harness.text import printable_lines

    with log.open("rb") as file:
        file.seek(offset)
        added = file.read()
    click.echo(printable_lines(added.decode(errors="replace")), nl=False)
    return offset + len(added)


def _follow(directory: RunDirectory, log: Path | None, shown: int) -> None:
    """Print what is appended to a run's log, and then the logs of later attempts, until it has ended for good."""
    import time

    from harness.launch import claims

    while True:
        has_ended = directory.status().state in ("done", "failed", "pruned")  # asked before its last lines are read
        newest = claims.run_log(directory.path.parent, directory.key)
        if log:
            shown = _print_from(log, shown)
        if newest and newest != log:
            log, shown = newest, _print_from(newest, 0)
        if has_ended:
            return
        time.sleep(0.5)


@click.command()
@click.argument("run")
@click.option(
    "--sampler", default="ddim", show_default=True, help="ancestral, ddim, dpmpp_2m, or one of the run's plugins."
)
@click.option("--num-steps", type=click.IntRange(1), help="Steps of the sampler.  [default: 50, or T if less]")
@click.option("--num-samples", type=click.IntRange(1), default=64, show_default=True, help="Images.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the noise.")
@weights_option("ema", "raw", "untrained")
@click.option("--ema", type=float, help="Which average of train.ema: its rate, or any width.  [default: the first]")
@checkpoint_option
@click.option("--class", "only_class", type=click.IntRange(0), help="Of all images.  [default: the classes in turn]")
@click.option("--guidance", type=click.FloatRange(0), default=1.0, show_default=True, help="Classifier-free.")
@click.option("--low-res", type=click.Path(path_type=Path), help="An upsampler's small images, a uint8 npz.")
@click.option("--out", type=click.Path(path_type=Path), help="A file for the images: FILE.npz.")
@json_option
@runs_folder_option
def sample(
    run: str,
    sampler: str,
    num_steps: int | None,
    num_samples: int,
    seed: int,
    weights: str,
    ema: float | None,
    checkpoint: str | None,
    only_class: int | None,
    guidance: float,
    low_res: Path | None,
    out: Path | None,
    output: Output,
    runs_folder: Path,
) -> None:
    """Draw images from a checkpoint.

    The checkpoint contains the spec of its run, so nothing else has to be given. They lie in the run's folder of
    samples, as a grid and as an npz, or with --out in a file in the layout of openai/guided-diffusion: arr_0 is uint8
    [N, H, W, C], arr_1 has the classes if the network takes any, and a JSON file beside it says what they are. With
    --out images are written in batches, and a command that is killed goes on where it was when it is repeated.

    With --json: {"run_key", "file"}, with --out also "manifest".
    """
    from harness.progress import Progress

    directory = find_run(run, runs_folder)
    chosen = sampler_named(sampler, directory)
    from harness.evaluation.sampling import SampleSettings, sample_run, write_samples
    from harness.job.environment import code_version

    settings = SampleSettings(
        sampler=chosen,
        num_steps=num_steps or min(50, directory.spec()["diffusion"]["num_timesteps"]),
        num_samples=num_samples,
        seed=seed,
        weights=weights,
        ema=ema,
        step=checkpoint_step(directory, checkpoint),
        only_class=only_class,
        guidance=guidance,
        low_res=low_res,
    )
    with Progress(f"sample {directory.key[:8]}") as progress:

        def on_progress(task: str, done: int, total: int) -> None:
            progress.update(done, total, task)

        result: dict[str, Any] = {"run_key": directory.key}
        if out is None:
            result["file"] = str(sample_run(directory.path, settings, on_progress=on_progress))
        else:
            options: dict[str, Any] = {"code_version": code_version(), "on_progress": on_progress}
            result["manifest"] = str(write_samples(directory.path, settings, out, **options))
            result["file"] = str(out)
    click.echo(result["file"])
    output.document(result)
