"""plan, submit: what a study asks for, and having it done."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.common import (
    json_option,
    load,
    profile_option,
    read_profile,
    runs_folder_option,
    same_runs,
    set_option,
    study_file,
)

if TYPE_CHECKING:
    from harness.launch.planning import Plan
    from harness.launch.submission import BlockingSubmission

INTERRUPTED_EXIT_CODE = 130


@click.command()
@study_file
@json_option
@click.option("--all", "everything", is_flag=True, help="Show every run, not the first 40.")
@set_option
@runs_folder_option
def plan(study: Path, as_json: bool, everything: bool, sets: tuple[str, ...], runs_folder: Path) -> None:
    """Show what a study asks for, where each run stands and what is left to pay. Changes nothing."""
    from harness.launch import planning
    from harness.study.expand import is_search

    if is_search(study):
        from harness.cli.search import show_plan

        show_plan(study, sets, runs_folder, as_json=as_json)
        return
    planned = planning.plan(load(study, sets), runs_folder)
    if as_json:
        import json

        click.echo(json.dumps(planned.as_json()))
        return
    from harness.cli import plan_view

    plan_view.show_plan(planned, limit=None if everything else 40)


@click.command()
@study_file
@click.option("--cluster", default="local", metavar="local|debug|slurm", show_default=True, help="Where to run.")
@click.option("--jobs", type=click.IntRange(1), help="Workers (local), or runs at a time (slurm).")
@profile_option
@click.option("--new-code", is_flag=True, help="Go on with today's code, not with that which a run began with.")
@click.option("--no-sync", is_flag=True, help="Don't carry the records to MLflow; `harness sync` does it later.")
@set_option
@runs_folder_option
def submit(
    study: Path,
    cluster: str,
    jobs: int | None,
    profile: Path | None,
    new_code: bool,
    no_sync: bool,
    sets: tuple[str, ...],
    runs_folder: Path,
) -> None:
    """Run all of a study that is not done yet. Safe to repeat: done runs are skipped, broken ones go on."""
    from harness.launch import planning
    from harness.launch.calibrate import require_within_budget

    planned = planning.plan(load(study, sets), runs_folder)
    facts = read_profile(profile, cluster)
    require_within_budget(planned, cluster=cluster, profile=facts, on_progress=click.echo)
    _offer_to_cancel_orphans(planned, runs_folder)
    submit_and_follow(
        planned, runs_folder, cluster=cluster, jobs=jobs, profile=facts, sync=not no_sync, new_code=new_code
    )


def submit_and_follow(planned: Plan, runs_folder: Path, **options: Any) -> None:
    """Submit what a plan has to do; look on where it runs here, and say how to where it does not."""
    from harness import text
    from harness.cli import status_view, tables
    from harness.launch.submission import BlockingSubmission
    from harness.launch.submit import submit as submit_plan

    study, name = planned.study.path, planned.study.name
    submission = submit_plan(planned, **options)
    submitted = {one.run_key for one in submission.runs}
    left_alone = [one for one in planned.runs if one.run_key not in submitted]
    if left_alone:
        click.echo(f"left alone: {tables.state_counts(one.state for one in left_alone)}")
    if submission.runs:
        click.echo(f"submitted: {text.count(len(submission.runs), 'run')}")
    for note in submission.notes:
        click.echo(note)
    if not submission.runs:
        click.echo("nothing to submit")
        return
    if not isinstance(submission, BlockingSubmission):
        click.echo(f"follow: harness status {study}{same_runs(runs_folder)} --watch")
        return
    directories = [one.directory for one in submission.runs]
    with status_view.Follower(lambda: status_view.status_rows(directories, name)) as follower:
        ended_by_itself = submission.wait(follower.tick)
    _say_how_it_ended(submission, study, runs_folder, ended_by_itself)


def _offer_to_cancel_orphans(planned: Plan, runs_folder: Path) -> None:
    """Deal with what still waits or runs for this study, though its file no longer asks for it."""
    from harness import text
    from harness.launch import manage

    orphans = manage.orphans(planned)
    if not orphans:
        return
    said = f"{text.count(len(orphans), 'run')} of this study still at work, though its file no longer asks for them"
    if sys.stdin.isatty():
        if click.confirm(f"{said}: {' '.join(one.key for one in orphans)}. Cancel?"):
            manage.cancel(orphans)
        return
    keys = " ".join(one.key for one in orphans)
    click.echo(f"{said}; to cancel: harness cancel {keys}{same_runs(runs_folder)}")


def _say_how_it_ended(submission: BlockingSubmission, study: Path, runs_folder: Path, ended_by_itself: bool) -> None:
    from harness import text

    unfinished = submission.unfinished()
    num_done = len(submission.runs) - len(unfinished)
    click.echo(f"{num_done} of {text.count(len(submission.runs), 'run')} done")
    for planned in unfinished:
        why = f": {planned.status.reason}" if planned.status.reason else ""
        name = f"{planned.run_key} {planned.run.arm} r{planned.run.replicate}"
        click.echo(text.printable(f"  {name} {planned.state}{why}"))
    for log in submission.logs_of_killed():
        click.echo(f"a worker was killed (out of memory?); its log: {log}", err=True)
    if not unfinished:
        return
    first, option = unfinished[0].run_key, same_runs(runs_folder)
    click.echo(f"`harness why {first}{option}` tells more; submit again resumes: harness submit {study}{option}")
    sys.exit(1 if ended_by_itself else INTERRUPTED_EXIT_CODE)
