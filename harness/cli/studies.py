"""plan, submit: show what a study needs, and run it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.common import (
    Output,
    cost_options,
    json_option,
    load,
    members,
    new_code_option,
    no_sync_option,
    profile_option,
    read_profile,
    runs_folder_option,
    set_option,
)
from harness.cli.study_files import study_file
from harness.errors import LaunchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.launch.planning import Plan, PlannedRun
    from harness.launch.submission import BlockingSubmission
    from harness.slurm.profile import Profile

INTERRUPTED_EXIT_CODE = 130


@click.command()
@study_file
@json_option
@click.option("--all", "everything", is_flag=True, help="Show every run, not the first 40.")
@set_option
@profile_option
@cost_options
@runs_folder_option
def plan(
    study: Path,
    output: Output,
    everything: bool,
    sets: tuple[str, ...],
    profile: Path | None,
    card: str | None,
    parallel: int | None,
    utilisation: float | None,
    as_markdown: bool,
    runs_folder: Path,
) -> None:
    """Show a study's runs, states and cost.

    Nothing is changed. With --profile or --card it shows what the study would take there: parameters, arithmetic, hours
    of devices and time, from steps that were measured on such cards, else estimated from the card's peak.

    With --json: {"study", "runs": [{"run_key", "state", "arm", "replicate", "run_dir"}], "no_longer_asked_for":
    [RUN_KEY]}; with rungs also "training": {"at_rungs": [{"step", "number"}], "steps", "steps_without_rungs"}; of a
    search {"search", "suggestions": [{"point", "run_keys"}], "training": {"steps", "seconds", "measured_on"}} with its
    definition, with rungs "training" as above and "seconds_without_rungs"; with --profile or --card {"study", "card",
    "parallel", "device_hours", "wall_seconds", "time_limits", "notes": [TEXT], "rungs": [{"step", "arms", "runs",
    "device_hours", "wall_seconds"}], "runs": [{"run_key", "arm", "replicate", "parameters", "multiply_adds_per_step",
    "steps", "step_seconds", "measured_on", "network_evaluations", "evaluation_seconds", "devices", "device_hours"}]},
    all of what is left, of each rung what is expected to go on.
    """
    from harness.launch import planning
    from harness.study.expand import is_search

    if is_search(study):
        if profile or card or parallel or utilisation or as_markdown:
            raise LaunchError(f"{study} is a search, whose trials are not known before: ask for the cost of a study")
        from harness.cli.search import show_plan

        show_plan(study, sets, runs_folder, output)
        return
    planned = planning.plan(load(study, sets), runs_folder, recent=True)
    if profile or card or parallel or utilisation or as_markdown:
        from harness.cli import cost_view

        estimate = cost_view.estimate_of(planned, read_profile(profile), card, parallel, utilisation)
        output.document(cost_view.as_json(estimate))
        if not output.as_json:
            cost_view.show(estimate, as_markdown=as_markdown)
        return
    if output.as_json:
        output.document(planned.as_json())
        return
    from harness.cli import plan_view

    plan_view.show_plan(planned, limit=None if everything else 40)


@click.command()
@study_file
@click.option("--cluster", default="local", metavar="local|debug|slurm", show_default=True, help="Where to run.")
@click.option("--jobs", type=click.IntRange(1), help="Workers (local), or runs at a time (slurm).")
@profile_option
@click.option("--after", metavar="STUDY", help="On SLURM: start when the jobs of this study have ended.")
@click.option(
    "--watch", is_flag=True, help="On SLURM: submit what it did not take, and what goes on from a rung, as others end."
)
@new_code_option
@no_sync_option
@set_option
@json_option
@runs_folder_option
def submit(
    study: Path,
    cluster: str,
    jobs: int | None,
    profile: Path | None,
    after: str | None,
    watch: bool,
    new_code: bool,
    no_sync: bool,
    sets: tuple[str, ...],
    output: Output,
    runs_folder: Path,
) -> None:
    """Run whatever is not finished.

    Finished runs are skipped, interrupted ones resume; submitting twice is safe. On this machine the command waits for
    the runs and shows them; on SLURM it returns when they are queued.

    With --json: {"study", "submitted": [RUN_KEY], "skipped": [RUN_KEY], "notes": [TEXT], "runs": [{"run_key", "state",
    "arm", "replicate", "reason"}]}, the runs as they stand when the command returns.
    """
    from harness import text
    from harness.launch import planning
    from harness.launch.calibrate import require_within_budget
    from harness.launch.submission import Refused
    from harness.slurm.jobs import live_jobs

    planned = planning.plan(load(study, sets), runs_folder)
    slurm_profile = read_profile(profile, cluster)
    require_within_budget(planned, cluster=cluster, profile=slurm_profile, on_progress=click.echo)
    _offer_to_cancel_orphans(planned, runs_folder, ask=sys.stdin.isatty() and not output.as_json)
    options: dict[str, Any] = {"cluster": cluster, "jobs": jobs, "profile": slurm_profile}
    options |= {"sync": not no_sync, "new_code": new_code}
    if after:
        _, options["after"] = members(after, runs_folder)

    def replan() -> Plan:
        return planning.plan(load(study, sets), runs_folder)

    try:
        left = submit_and_follow(planned, runs_folder, output, replan=replan, **options)
    except Refused as refusal:
        if not (watch and live_jobs()):  # else jobs of other studies may be at the limit
            raise
        left = len(planned.to_do)
        click.echo(text.printable(f"{text.count(left, 'run')} to go: {refusal}"))
    if watch and (left or planned.study.rungs):
        from harness.launch.submit import submit_rest

        click.echo("waiting to submit what is left; Ctrl-C stops this command alone, and submitting again goes on")
        submit_rest(replan, left, click.echo, **options)


def submit_and_follow(
    planned: Plan, runs_folder: Path, output: Output, *, replan: Callable[[], Plan] | None = None, **options: Any
) -> int:
    """Submit what a plan has left to do, and follow it if it runs on this machine; return how many runs were left.

    Args:
        replan: plans the study anew; a study with rungs goes on with it from one rung to the next on this machine.
    """
    from harness import text
    from harness.cli import tables
    from harness.launch.rungs import going_on
    from harness.launch.submission import BlockingSubmission
    from harness.launch.submit import settle
    from harness.launch.submit import submit as submit_plan

    name = planned.study.name
    submission = submit_plan(planned, **options)
    submitted = {run.run_key for run in submission.runs}
    skipped = [run for run in planned.runs if run.run_key not in submitted]
    if skipped:
        click.echo(f"skipped: {tables.state_counts(run.state for run in skipped)}")
    if submission.runs:
        click.echo(f"submitted: {text.count(len(submission.runs), 'run')}")
    for note in submission.notes:
        click.echo(text.printable(note))
    ended_by_itself = True
    if not submission.runs:
        click.echo("nothing to submit")
    elif isinstance(submission, BlockingSubmission):
        ended_by_itself = _follow(submission, name)
        while ended_by_itself and replan and (plan_on := going_on(replan())):
            submission = submit_plan(plan_on, **options)
            click.echo(f"let on from a rung: {text.count(len(submission.runs), 'run')}")
            submitted |= {run.run_key for run in submission.runs}
            assert isinstance(submission, BlockingSubmission)
            ended_by_itself = _follow(submission, name)
        if ended_by_itself and replan and planned.study.rungs:
            settle(replan(), **options)
    else:
        click.echo(f"follow: {text.harness_command('status', name, '--watch', runs_folder=runs_folder)}")
    ends = (*skipped, *submission.now())
    if planned.study.rungs and replan:  # most have ended at a rung that was not the last one
        ends = replan().runs
    output.document(
        {
            "study": name,
            "submitted": [run.run_key for run in planned.runs if run.run_key in submitted],
            "skipped": [run.run_key for run in skipped],
            "notes": submission.notes,
            "runs": [_run_json(run) for run in ends],
        }
    )
    if submission.runs and options.get("sync"):
        _show_views(planned, options.get("profile"), blocking=isinstance(submission, BlockingSubmission))
    if submission.runs and isinstance(submission, BlockingSubmission):
        _report_end(submission, planned, ended_by_itself)
    return len(submission.left)


def _follow(submission: BlockingSubmission, study: str) -> bool:
    """Show the runs of a submission until they have ended; return whether they did by themselves."""
    from harness.cli import status_view

    directories = [run.directory for run in submission.runs]
    with status_view.Follower(lambda: status_view.status_rows(directories, study)) as follower:
        return submission.wait(follower.tick)


def _show_views(planned: Plan, profile: Profile | None, *, blocking: bool) -> None:
    """Print where the study is seen in MLflow, where jobs upload to it themselves."""
    from harness.cli.records import show_views
    from harness.errors import TrackingError

    uri = (profile.tracking_uri if profile else None) or os.environ.get("MLFLOW_TRACKING_URI")
    if blocking or (uri or "").startswith("http"):
        try:
            show_views([run.directory for run in planned.runs], tracking_uri=uri)
        except TrackingError as error:
            click.echo(str(error), err=True)


def _run_json(planned: PlannedRun) -> dict[str, Any]:
    return {
        "run_key": planned.run_key,
        "state": planned.state,
        "arm": planned.run.arm,
        "replicate": planned.run.replicate,
        "reason": planned.status.reason,
    }


def _offer_to_cancel_orphans(planned: Plan, runs_folder: Path, *, ask: bool) -> None:
    """List runs of this study that are queued or running but no longer in its file; cancel them if the user agrees."""
    from harness import text
    from harness.launch import manage

    orphans = manage.orphans(planned)
    if not orphans:
        return
    message = f"{text.count(len(orphans), 'run')} of this study queued or running, but no longer in its file"
    keys = [directory.key for directory in orphans]
    if not ask:
        click.echo(f"{message}; to cancel: {text.harness_command('cancel', *keys, runs_folder=runs_folder)}")
    elif click.confirm(f"{message}: {' '.join(keys)}. Cancel?"):
        manage.cancel(orphans)


def _report_end(submission: BlockingSubmission, plan: Plan, ended_by_itself: bool) -> None:
    from harness import text

    unfinished = submission.unfinished()
    num_done = len(submission.runs) - len(unfinished)
    click.echo(f"{num_done} of {text.count(len(submission.runs), 'run')} done")
    for planned in unfinished:
        reason = f": {planned.status.reason}" if planned.status.reason else ""
        name = f"{planned.run_key} {planned.run.arm} r{planned.run.replicate}"
        click.echo(text.printable(f"  {name} {planned.state}{reason}"))
    for log in submission.logs_of_killed():
        click.echo(f"a worker was killed (out of memory?); its log: {log}", err=True)
    if not unfinished:
        return
    why = text.harness_command("why", unfinished[0].run_key, runs_folder=plan.runs_folder)
    resume = text.harness_command("submit", plan.study.path, runs_folder=plan.runs_folder, sets=plan.study.sets)
    click.echo(f"details: {why}; to resume: {resume}")
    sys.exit(1 if ended_by_itself else INTERRUPTED_EXIT_CODE)
