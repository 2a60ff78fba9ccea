"""doctor, calibrate: what can be known before anything is queued."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from harness.cli.common import load, profile_option, read_profile, runs_folder_option, same_runs, set_option, study_file


@click.command()
@click.argument("study", required=False, type=click.Path(path_type=Path))
@profile_option
@click.option("--no-job", is_flag=True, help="Don't submit the trivial job.")
@click.option("--timeout", type=click.FloatRange(1), default=120.0, show_default=True, help="Seconds to wait for it.")
@runs_folder_option
def doctor(study: Path | None, profile: Path | None, no_job: bool, timeout: float, runs_folder: Path) -> None:
    """Look whether this machine, or a cluster, is ready for a study, and say what to do where it is not."""
    from harness import text
    from harness.doctor.examine import examine_cluster, examine_here
    from harness.launch import planning

    planned = planning.plan(load(study), runs_folder) if study else None
    facts = read_profile(profile)
    if facts:
        findings = examine_cluster(facts, planned, runs_folder, timeout_seconds=None if no_job else timeout)
    else:
        findings = examine_here(planned, runs_folder)
    levels = []
    for finding in findings:
        click.echo(text.printable(f"{finding.level:<8} {finding.message}"))
        levels.append(finding.level)
    click.echo(f"{text.count(levels.count('problem'), 'problem')}, {text.count(levels.count('warning'), 'warning')}")
    if "problem" in levels:
        sys.exit(1)


@click.command()
@study_file
@click.option("--cluster", type=click.Choice(["local", "slurm"]), default="local", show_default=True)
@profile_option
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Timed steps of each kind of run.")
@click.option(
    "--timeout", type=click.FloatRange(1), default=1800.0, show_default=True, help="Seconds to wait for a job."
)
@set_option
@runs_folder_option
def calibrate(
    study: Path,
    cluster: str,
    profile: Path | None,
    steps: int,
    timeout: float,
    sets: tuple[str, ...],
    runs_folder: Path,
) -> None:
    """Time a few training steps of each kind of run that a study asks for, so that `plan` knows what it costs."""
    from harness import text
    from harness.cli import tables
    from harness.launch import planning
    from harness.launch.calibrate import calibrate as time_classes

    planned = planning.plan(load(study, sets), runs_folder)
    facts = read_profile(profile, cluster)
    found = time_classes(
        planned,
        cluster=cluster,
        profile=facts,
        steps=steps,
        timeout_seconds=timeout,
        told=lambda news: click.echo(news, err=True),
    )
    if not found:
        click.echo("nothing to time: no run has steps left to train")
        return
    rows = []
    for one in found:
        fact = one.fact
        arms = ", ".join(one.arms[:3]) + (f" and {len(one.arms) - 3} more" if len(one.arms) > 3 else "")
        if fact is None:
            rows.append((arms, "-", "-", "-", one.error))
            continue
        speed = f"{one.batch_size / fact.seconds_per_step:.4g}"
        where = (
            fact.device_name if fact.device == "cuda" else f"{fact.device_name}, {text.count(fact.threads, 'thread')}"
        )
        where += f", 1 of {fact.num_processes} processes timed" if fact.num_processes > 1 else ""
        rows.append((arms, f"{fact.seconds_per_step:.4g}", speed, text.size(fact.checkpoint_bytes or 0), where))
    tables.Table(("arm", "seconds a step", "images/s", "checkpoint", "on"), rows).show()
    click.echo(f"what it costs: harness plan {study}{same_runs(runs_folder)}")
    if any(one.fact is None for one in found):
        sys.exit(1)
