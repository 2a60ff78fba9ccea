"""cancel, retry: changing one's mind about runs, from any shell and as often as one likes."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.common import (
    load,
    profile_option,
    read_profile,
    runs_folder_option,
    set_option,
    studies_or_run,
    study_file,
)
from harness.cli.studies import submit_and_follow
from harness.errors import LaunchError


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="STUDY|RUN...")
@runs_folder_option
def cancel(what: tuple[str, ...], runs_folder: Path) -> None:
    """Stop what waits or runs. A checkpoint is kept, and `submit` resumes from it."""
    from harness import text
    from harness.launch import manage

    directories = {directory.key: directory for name in what for directory in studies_or_run(name, runs_folder)}
    stopped = manage.cancel(list(directories.values()))
    click.echo(f"cancelled: {text.count(len(stopped), 'run')}" if stopped else "nothing waits or runs")


@click.command()
@study_file
@click.option("--failed", is_flag=True, help="The failed ones, also those that were killed again and again.")
@click.option("--killed", is_flag=True, help="Those whose process or job was killed.")
@click.option("--cluster", metavar="local|debug|slurm", help="Where to run.  [default: as submitted last]")
@click.option("--jobs", type=click.IntRange(1), help="Workers (local), or runs at a time (slurm).")
@profile_option
@click.option(
    "--new-code", is_flag=True, help="Resume with the current code, not with the snapshot of the first start."
)
@click.option("--no-sync", is_flag=True, help="Don't upload the records to MLflow; `harness sync` does it later.")
@set_option
@runs_folder_option
def retry(
    study: Path,
    failed: bool,
    killed: bool,
    cluster: str | None,
    jobs: int | None,
    profile: Path | None,
    new_code: bool,
    no_sync: bool,
    sets: tuple[str, ...],
    runs_folder: Path,
) -> None:
    """Run failed or killed runs again. They resume from their newest checkpoint, with the last submission's options."""
    from harness.launch import manage, planning

    if not failed and not killed:
        raise LaunchError("retry which runs? Give --failed, --killed or both")
    planned = planning.plan(load(study, sets), runs_folder)
    options = manage.last_options(planned)
    if cluster and cluster != options["cluster"]:
        options = {"cluster": cluster, "jobs": None, "profile": None}
    if jobs:
        options["jobs"] = jobs
    if facts := read_profile(profile, options["cluster"]):
        options["profile"] = facts
    chosen = manage.select_retries(planned, failed=failed, killed=killed)
    if not chosen.runs:
        click.echo("nothing to retry")
        return
    submit_and_follow(chosen, runs_folder, **options, sync=not no_sync, new_code=new_code)
