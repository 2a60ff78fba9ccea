"""cancel, retry: stop runs and restart failed ones, from any shell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.cli.common import (
    Output,
    json_option,
    load,
    new_code_option,
    no_sync_option,
    profile_option,
    read_profile,
    runs_folder_option,
    set_option,
    studies_or_runs,
)
from harness.cli.studies import submit_and_follow
from harness.cli.study_files import study_file
from harness.errors import LaunchError


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="STUDY|RUN...")
@json_option
@runs_folder_option
def cancel(names: tuple[str, ...], output: Output, runs_folder: Path) -> None:
    """Stop queued and running runs.

    Running runs save a checkpoint, from which `submit` resumes.

    With --json: {"cancelled": [RUN_KEY]}.
    """
    from harness import text
    from harness.launch import manage

    stopped = manage.cancel(studies_or_runs(names, runs_folder))
    click.echo(f"cancelled: {text.count(len(stopped), 'run')}" if stopped else "nothing is queued or running")
    output.document({"cancelled": [directory.key for directory in stopped]})


@click.command()
@study_file
@click.option("--failed", is_flag=True, help="Failed runs, also those that were killed repeatedly.")
@click.option("--killed", is_flag=True, help="Runs whose process or job was killed.")
@click.option("--cluster", metavar="local|debug|slurm", help="Where to run.  [default: as submitted last]")
@click.option("--jobs", type=click.IntRange(1), help="Workers (local), or runs at a time (slurm).")
@profile_option
@new_code_option
@no_sync_option
@set_option
@json_option
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
    output: Output,
    runs_folder: Path,
) -> None:
    """Start failed or killed runs again.

    They resume from their newest checkpoints, with the options of the last submission.

    With --json: as `submit`.
    """
    from harness.launch import manage, planning
    from harness.launch.calibrate import require_within_budget
    from harness.records.manifest import read_manifest
    from harness.text import harness_command

    if not failed and not killed:
        raise LaunchError("give --failed, --killed or both")
    planned = planning.plan(load(study, sets), runs_folder)
    options = manage.last_options(planned)
    if cluster and cluster != options["cluster"]:
        options = {"cluster": cluster, "jobs": None, "profile": None}
    if jobs:
        options["jobs"] = jobs
    if slurm_profile := read_profile(profile, options["cluster"]):
        options["profile"] = slurm_profile
    budget: dict[str, Any] = {"cluster": options["cluster"], "profile": options["profile"]}
    require_within_budget(planned, **budget, on_progress=click.echo)
    chosen = manage.select_retries(planned, failed=failed, killed=killed)
    if not chosen.runs:
        manifest = read_manifest(runs_folder, planned.study.name)
        if manifest and (others := manifest.runs.keys() - {run.run_key for run in planned.runs}):
            said = "1 run that was submitted is" if len(others) == 1 else f"{len(others)} runs that were submitted are"
            click.echo(f"{said} not what {study} asks for now; if that is for a --set, repeat it here")
        command = harness_command("submit", study, runs_folder=runs_folder, sets=sets)
        click.echo("nothing to retry" + (f"; `{command}` resumes the other unfinished runs" if planned.to_do else ""))
        output.document({"study": planned.study.name, "submitted": [], "skipped": [], "notes": [], "runs": []})
        return
    options |= {"sync": not no_sync, "new_code": new_code, "asks": False}
    submit_and_follow(chosen, runs_folder, output, **options)
