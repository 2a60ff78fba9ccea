"""Submit what is left to do of a plan: what can fail is tried first, then jobs are handed to submitit."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from typing import Any

from harness.errors import LaunchError, TrackingError
from harness.launch.inputs import extractor_notes, other_data_notes, require_inputs, require_same_data
from harness.launch.local import launch_debug, launch_local
from harness.launch.memory import MemoryRequests, memory_requests
from harness.launch.on_slurm import launch_slurm
from harness.launch.planning import Plan, PlannedRun, planned_run
from harness.launch.processes import unusable_path
from harness.launch.requeue import given_up, reset_kills
from harness.launch.rungs import drop, unsettled
from harness.launch.states import read_run_states
from harness.launch.submission import Refused, Submission
from harness.records import snapshot
from harness.records.directory import RunDirectory
from harness.records.files import replace_file
from harness.records.layout import CODE, JOBS, SubmissionLayout
from harness.records.manifest import Manifests, ask_for
from harness.slurm.commands import NoAnswer, addressing
from harness.slurm.jobs import current_user, live_jobs
from harness.slurm.limits import room_for_jobs
from harness.slurm.profile import Profile
from harness.study.model import Study
from harness.study.rungs import asked_for
from harness.text import count, harness_command


def submit(
    plan: Plan,
    *,
    cluster: str = "local",
    jobs: int | None = None,
    profile: Profile | None = None,
    sync: bool = True,
    tracking_uri: str | None = None,
    new_code: bool = False,
    asks: bool = True,
    after: Sequence[RunDirectory] = (),
    at_most: int | None = None,
) -> Submission:
    """Submit all that is left to do, and record what the study asks for from now on; safe to repeat.

    Args:
        cluster: local (workers on this machine), debug (in this process) or slurm.
        jobs: workers (local), or runs of an array at a time (slurm); None chooses.
        profile: facts of the SLURM cluster.
        sync: whether records are uploaded to MLflow.
        tracking_uri: MLflow's store; None means the profile's, MLFLOW_TRACKING_URI, else `mlflow.db` in the working
            folder. Jobs on SLURM write to a server that their nodes reach, and never to a database in a file.
        new_code: whether runs that have a checkpoint resume with the current code instead of that of their first start.
        asks: whether the study asks for its runs and no others from now on. A trial of a search does not, since the
            search keeps the list of its trials, nor does a retry.
        after: runs whose jobs on SLURM must have ended before these start, however they end.
        at_most: how many jobs SLURM is asked to take; None: all.

    Returns:
        The submission; call `wait()` on it unless it is on SLURM.

    Raises:
        DataError, RecordError, TrackingError: before anything is submitted.
        LaunchError: SLURM does not say whether it has a job of a run; Refused if it takes not one job.
    """
    if cluster not in CLUSTERS:
        raise LaunchError(f"no cluster {cluster!r}; the choices are {', '.join(CLUSTERS)}")
    if after and cluster != "slurm":
        raise LaunchError("to start after other runs is SLURM's: on this machine, submit one study after the other")
    if reason := unusable_path(plan.runs_folder, cluster):
        raise LaunchError(reason)
    profile = profile or Profile()
    plan = _with_answers(plan)
    memory = memory_requests(plan.to_do, profile) if cluster == "slurm" else MemoryRequests()
    no_more = {run.run_key for run in plan.to_do if run.run_key not in memory.raised and given_up(run.path)}
    runs = [memory.applied_to(planned) for planned in plan.to_do if planned.run_key not in no_more]
    datasets = require_inputs(runs)
    current_id, code = _frozen_code(plan, runs, new_code) if runs and cluster != "debug" else (None, {})
    notes = require_same_data(
        runs, datasets, lambda planned: planned.run_key in code and code[planned.run_key].id != current_id
    )
    notes += [*other_data_notes(plan, datasets), *extractor_notes(runs), *memory.notes(profile.max_memory_gib)]
    uri = tracking_uri or profile.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    synced_later = cluster == "slurm" and not (profile.compute_nodes_reach_server and (uri or "").startswith("http"))
    if sync and not synced_later:
        from harness.tracking.store import initialise_store

        uri = initialise_store(uri)
    sync = sync and not synced_later
    plan.runs_folder.mkdir(parents=True, exist_ok=True)
    if asks:  # before the runs' own files: what a submission that is killed between them leaves is right
        presentation = plan.study.presentation.model_dump(mode="json")
        memberships = _memberships(plan.study)
        ask_for(plan.runs_folder, plan.study.name, memberships, file=plan.study.path, presentation=presentation)
        notes += plan.notes()
    _register_runs(plan)
    for planned in plan.runs if plan.study.rungs else ():
        if planned.state == "pruned":
            drop(planned.directory, planned.status.reason)
    if sync and uri:
        worked_on = {planned.run_key for planned in runs}
        notes += _sync_ended_runs([planned for planned in plan.runs if planned.run_key not in worked_on], plan, uri)
    if no_more:
        notes.append(
            f"{count(len(no_more), 'run')} {'remains' if len(no_more) == 1 else 'remain'} failed after repeated kills: "
            + harness_command("retry", plan.study.path, "--failed", runs_folder=plan.runs_folder, sets=plan.study.sets)
        )
    stamp = f"{datetime.now():%Y%m%d-%H%M%S-%f}-{os.getpid()}"
    folder = (plan.runs_folder / JOBS / plan.study.name / stamp).absolute()
    if runs:
        layout = SubmissionLayout(folder)
        layout.claims_folder.mkdir(parents=True)
        description = {
            "cluster": cluster,
            "jobs": jobs,
            "profile": profile.model_dump(mode="json", exclude_unset=True),
            "user": current_user(),
            "time": time.time(),
            "runs": [planned.run_key for planned in runs],
            **memory.record(),
        }
        for planned in runs:
            if planned.run_key in memory.raised:
                reset_kills(planned.directory)
        # Whole or absent: without it nobody would know that the jobs are SLURM's.
        replace_file(layout.submission_path, json.dumps(description, indent=1), durable=True)
        if plan.study.path.suffix == ".py":  # a study in Python is kept with its submission
            shutil.copyfile(plan.study.path, folder / plan.study.path.name)
    launch = CLUSTERS[cluster]
    options: dict[str, Any] = {"jobs": jobs, "profile": profile, "sync": sync, "tracking_uri": uri if sync else None}
    if after:
        options["after"] = jobs_of(after)
    if at_most:
        options["at_most"] = at_most
    try:
        with addressing(profile.clusters):
            submission = launch(plan, runs, folder, code, **options)
    except LaunchError:
        if runs and not any(SubmissionLayout(folder).claims_folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)  # nothing of it is in the queue
        raise
    if old := sum(run_snapshot.id != current_id for run_snapshot in code.values()):
        resume = f"{count(old, 'run')} {'resumes' if old == 1 else 'resume'}"
        notes.append(f"{resume} with the code snapshot from the first start (--new-code uses the current code)")
    if runs and synced_later:
        upload = harness_command("sync", plan.study.name, "--watch", runs_folder=plan.runs_folder)
        notes.append(f"records: `{upload}` uploads them to MLflow")
    submission.notes.extend(notes)
    return submission


WATCH_SECONDS = 60.0
MAX_REFUSALS_IN_A_ROW = 3  # with nothing in the queue that would explain them


def submit_rest(make_plan: Callable[[], Plan], left: int, on_message: Callable[[str], None], **options: Any) -> None:
    """Submit to SLURM, as others end, the runs that it did not take at once, or that a rung lets on.

    It returns when SLURM has them all and no rung is left to be decided. What has failed meanwhile is not tried again.

    SLURM is asked to take as many as there is room for below the limits that are known, else twice as many as last.

    Args:
        make_plan: plans the study anew.
        left: how many runs SLURM has not taken yet.
        options: of `submit`.

    Raises:
        Refused: no limit can be the reason, since the user has no job in the queue.
    """
    before = {planned.run_key: planned.status for planned in make_plan().runs}

    def rest() -> Plan:
        plan = make_plan()
        has_failed = lambda run: run.state == "failed" and run.status != before.get(run.run_key)  # noqa: E731
        return replace(plan, runs=tuple(replace(run, state="skipped") if has_failed(run) else run for run in plan.runs))

    failure, refusals, taken = "", 0, 1
    while left or unsettled(make_plan()):
        time.sleep(WATCH_SECONDS)
        try:
            profile = options.get("profile") or Profile()
            with addressing(profile.clusters):
                room = room_for_jobs(profile) if left else None
                if room == 0 and live_jobs():  # some of these have to end first
                    continue
            at_most = max(1, 2 * taken if room is None else room) if left else None  # else nothing was refused
            submission = submit(rest(), at_most=at_most, **options)
        except LaunchError as error:  # no answer, or still not one job more
            refusals += isinstance(error, Refused)
            if refusals >= MAX_REFUSALS_IN_A_ROW and isinstance(error, Refused) and not live_jobs():
                raise
            if str(error) != failure:
                on_message(f"{count(left, 'run')} to go: {error}")
            failure = str(error)
            continue
        failure, refusals, taken = "", 0, len(submission.jobs)
        left = len(submission.left)
        if submission.runs:
            on_message(f"submitted: {count(len(submission.runs), 'run')}; {left} to go")
    if (plan := make_plan()).study.rungs:
        settle(plan, **options)


def settle(plan: Plan, **options: Any) -> None:
    """Record and upload who was dropped at the last rung; nothing is submitted.

    Args:
        options: of `submit`.
    """
    to_do = {planned.run_key for planned in plan.to_do}
    runs = tuple(replace(planned, state="skipped") if planned.run_key in to_do else planned for planned in plan.runs)
    submit(replace(plan, runs=runs), **options)


def jobs_of(directories: Sequence[RunDirectory]) -> list[str]:
    """Return the numbers of the jobs that SLURM has in its queue for some runs, of an array its own.

    Raises:
        NoAnswer: SLURM does not answer.
    """
    states = read_run_states([directory.path for directory in directories], wait=True)
    if failure := next((state.unanswered for state in states.values() if state.unanswered), ""):
        raise NoAnswer(f"SLURM does not answer: {failure}. Nothing was submitted")
    jobs = [state.job for state in states.values() if state.job and state.job.live]
    return sorted({job.job_id.split("_")[0] for job in jobs}, key=int)


def _with_answers(plan: Plan) -> Plan:
    """Return a plan with SLURM's answer on each run that is to be submitted; SLURM is asked again, with pauses.

    Raises:
        NoAnswer: SLURM still does not answer. A run that may have a job is not submitted a second time.
    """
    unanswered = [planned.path for planned in plan.to_do if planned.unanswered]
    if not unanswered:
        return plan
    states = read_run_states(unanswered, wait=True)
    if failure := next((state.unanswered for state in states.values() if state.unanswered), ""):
        raise NoAnswer(
            f"SLURM does not answer, and {count(len(unanswered), 'run')} may have a job in its queue: {failure}. "
            "Nothing was submitted. If these runs were copied from a cluster that this machine does not reach, remove "
            f"{plan.runs_folder / JOBS}, which names the jobs"
        )
    # `retry` calls a run interrupted that has failed; SLURM's answer leaves that as it is.
    answered = [
        planned_run(planned.run, planned.path, states) if planned.run_key in states else planned
        for planned in plan.runs
    ]
    return replace(plan, runs=tuple(answered))


def _frozen_code(plan: Plan, runs: list[PlannedRun], new_code: bool) -> tuple[str, dict[str, snapshot.Snapshot]]:
    """Freeze the current code; return its id, and for each run the code snapshot that it uses.

    A run that has a checkpoint resumes with the code that it started with, so that it never mixes two versions. Further
    evaluations of a run that is done use the current code.

    Raises:
        LaunchError: the code that a run started with is missing or was changed.
    """
    store = plan.runs_folder.absolute() / CODE
    current = snapshot.take(store, leave_out=[plan.runs_folder])
    code = {}
    for planned in runs:
        begun = planned.status.attempt and planned.state != "evaluate" and planned.directory.durable_step() > 0
        code_id = snapshot.of(planned.path) if begun and not new_code else None
        run_snapshot = snapshot.find(store, code_id) if code_id else current
        if run_snapshot is None:
            raise LaunchError(
                f"run {planned.run_key} started with code {code_id}, which is no longer in {store}; "
                "--new-code uses the current code"
            )
        code[planned.run_key] = run_snapshot
    for old in {
        run_snapshot.id: run_snapshot for run_snapshot in code.values() if run_snapshot.id != current.id
    }.values():
        if changed := snapshot.verify(old):
            raise LaunchError(
                f"the code in {old.path} was changed ({', '.join(changed[:5])}); --new-code uses the current code"
            )
    return current.id, code


def _memberships(study: Study) -> dict[str, dict[str, Any]]:
    return {run.run_key: asked_for(run) for run in study.runs}


def _register_runs(plan: Plan) -> None:
    """Write the spec and the study membership of every run."""
    with ThreadPoolExecutor(16) as pool:  # mostly waiting for the disk
        list(pool.map(lambda planned: planned.directory.register(planned.run), plan.runs))


def _sync_ended_runs(others: list[PlannedRun], plan: Plan, uri: str) -> list[str]:
    """Upload to MLflow what no job will upload; return error messages.

    That is a run that ended before the study asked for it, one whose submitter was killed before it was uploaded, and
    that a run is no longer asked for.
    """
    from harness.tracking.studies import sync_studies
    from harness.tracking.sync import is_synced, sync_run

    ended = [planned.directory for planned in others if planned.state not in ("new", "queued", "running")]
    manifests = Manifests(plan.runs_folder)
    try:
        for directory in (*ended, *plan.earlier):
            if not is_synced(directory, uri, manifests):
                sync_run(directory, tracking_uri=uri)
        if not plan.to_do:  # else after them
            sync_studies([*ended, *plan.earlier], tracking_uri=uri)
    except TrackingError as error:
        upload = harness_command("sync", runs_folder=plan.runs_folder)
        return [f"{error}; `{upload}` will upload the runs that were done before"]
    return []


CLUSTERS: dict[str, Callable[..., Submission]] = {
    "local": launch_local,
    "debug": launch_debug,
    "slurm": launch_slurm,
}
