"""doctor, calibrate: checks and measurements before anything is queued."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.common import (
    Output,
    json_option,
    load,
    profile_option,
    read_profile,
    runs_folder_option,
    set_option,
)
from harness.cli.study_files import StudyFile, study_file

if TYPE_CHECKING:
    from harness.launch.calibrate import Calibrated


@click.command()
@click.argument("study", required=False, type=StudyFile())
@profile_option
@click.option("--no-job", is_flag=True, help="Don't submit the probe job.")
@click.option("--timeout", type=click.FloatRange(1), default=120.0, show_default=True, help="Seconds to wait for it.")
@json_option
@runs_folder_option
def doctor(
    study: Path | None, profile: Path | None, no_job: bool, timeout: float, output: Output, runs_folder: Path
) -> None:
    """Check this machine, or a cluster.

    Each finding says what to do. With STUDY, whether this study can run; with --profile, on that cluster.

    With --json: {"findings": [{"level": "ok"|"warning"|"problem", "text"}]}.
    """
    from harness import text
    from harness.doctor.examine import examine_cluster, examine_machine
    from harness.launch import planning
    from harness.slurm.commands import addressing

    planned = planning.plan(load(study), runs_folder) if study else None
    slurm_profile = read_profile(profile)
    if slurm_profile:
        findings = examine_cluster(slurm_profile, planned, runs_folder, timeout_seconds=None if no_job else timeout)
    else:
        findings = examine_machine(planned, runs_folder)
    results = []
    with addressing(slurm_profile.clusters if slurm_profile else None):
        for finding in findings:
            click.echo(text.printable(f"{finding.level:<8} {finding.message}"))
            results.append({"level": finding.level, "text": finding.message})
    levels = [result["level"] for result in results]
    output.document({"findings": results})
    click.echo(f"{text.count(levels.count('problem'), 'problem')}, {text.count(levels.count('warning'), 'warning')}")
    if "problem" in levels:
        sys.exit(1)


@click.command()
@study_file
@click.option(
    "--cluster", type=click.Choice(["local", "slurm"]), default="local", show_default=True, help="Where to run."
)
@profile_option
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Timed steps of each kind of run.")
@click.option(
    "--timeout", type=click.FloatRange(1), default=1800.0, show_default=True, help="Seconds to wait for a job."
)
@set_option
@json_option
@runs_folder_option
def calibrate(
    study: Path,
    cluster: str,
    profile: Path | None,
    steps: int,
    timeout: float,
    sets: tuple[str, ...],
    output: Output,
    runs_folder: Path,
) -> None:
    """Time some training steps of a study.

    A few steps of each kind of run that the study has; `plan` and `budget_gpu_hours` then know what training and
    evaluations cost.

    With --json: {"classes": [{"arms", "batch_size", "error", "measured"}]}, `measured` being null or {"device",
    "device_name", "seconds_per_step", "num_processes", ...}.
    """
    from harness import text
    from harness.cli import tables
    from harness.cli.plan_view import total_cost
    from harness.launch import planning
    from harness.launch.calibrate import calibrate as time_classes

    planned = planning.plan(load(study, sets), runs_folder)
    results = time_classes(
        planned,
        cluster=cluster,
        profile=read_profile(profile, cluster),
        steps=steps,
        timeout_seconds=timeout,
        on_progress=lambda news: click.echo(news, err=True),
    )
    output.document({"classes": [_class_json(result) for result in results]})
    if not results:
        click.echo("nothing to time: no run has steps left to train")
        return
    if not output.as_json:
        headers = ("arm", "time a step", "images/s", "checkpoint", "on")
        tables.Table(headers, [_class_cells(result) for result in results]).show()
        click.echo(total_cost(replace(planned)))  # with what was just timed
    click.echo(f"each run: {text.harness_command('plan', study, runs_folder=runs_folder, sets=sets)}")
    if any(result.timing is None for result in results):
        sys.exit(1)


def _class_json(result: Calibrated) -> dict[str, Any]:
    return {
        "arms": list(result.arms),
        "batch_size": result.batch_size,
        "error": result.error,
        "measured": asdict(result.timing) if result.timing else None,
    }


def _class_cells(result: Calibrated) -> tuple[str, ...]:
    from harness import text

    timing = result.timing
    arms = ", ".join(result.arms[:3]) + (f" and {len(result.arms) - 3} more" if len(result.arms) > 3 else "")
    if timing is None:
        return arms, "-", "-", "-", result.error
    device = (
        timing.device_name
        if timing.device == "cuda"
        else f"{timing.device_name}, {text.count(timing.threads, 'thread')}"
    )
    device += f", 1 of {timing.num_processes} processes timed" if timing.num_processes > 1 else ""
    speed = f"{result.batch_size / timing.seconds_per_step:.4g}"
    return arms, text.step_time(timing.seconds_per_step), speed, text.size(timing.checkpoint_bytes or 0), device
