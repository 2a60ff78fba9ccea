"""Submit what is left to do of a plan: what can fail is tried first, then jobs are handed to submitit."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime

from harness.errors import LaunchError, TrackingError
from harness.launch.local import launch_debug, launch_local
from harness.launch.on_slurm import launch_slurm
from harness.launch.planning import Plan, PlannedRun, planned_run
from harness.launch.processes import unusable_path
from harness.launch.requeue import given_up
from harness.launch.states import read_run_states
from harness.launch.submission import Submission
from harness.records import snapshot
from harness.records.files import replace_file
from harness.records.layout import CODE, JOBS, SubmissionLayout
from harness.slurm.commands import NoAnswer
from harness.slurm.jobs import current_user
from harness.slurm.profile import Profile
from harness.text import count


def submit(
    plan: Plan,
    *,
    cluster: str = "local",
    jobs: int | None = None,
    profile: Profile | None = None,
    sync: bool = True,
    tracking_uri: str | None = None,
    new_code: bool = False,
) -> Submission:
    """Submit all that is left to do; safe to repeat.

    Args:
        cluster: local (workers on this machine), debug (in this process) or slurm.
        jobs: workers (local), or runs of an array at a time (slurm); None chooses.
        profile: facts of the SLURM cluster.
        sync: whether records are uploaded to MLflow.
        tracking_uri: MLflow's store; None means the profile's, MLFLOW_TRACKING_URI, else `mlflow.db` in the working
            folder. Jobs on SLURM write to a server that their nodes reach, and never to a database in a file.
        new_code: whether runs that have a checkpoint resume with the current code instead of that of their first start.

    Returns:
        The submission; call `wait()` on it unless it is on SLURM.

    Raises:
        DataError, RecordError, TrackingError: before anything is submitted.
        LaunchError: SLURM does not say whether it has a job of a run; or submitit or the cluster refused.
    """
    if cluster not in CLUSTERS:
        raise LaunchError(f"no cluster {cluster!r}; the choices are {', '.join(CLUSTERS)}")
    if reason := unusable_path(plan.runs_folder, cluster):
        raise LaunchError(reason)
    profile = profile or Profile()
    plan = _with_answers(plan)
    no_more = {planned.run_key for planned in plan.to_do if given_up(planned.path)}
    runs = [planned for planned in plan.to_do if planned.run_key not in no_more]
    _require_data(runs)
    uri = tracking_uri or profile.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    synced_later = cluster == "slurm" and not (profile.compute_nodes_reach_server and (uri or "").startswith("http"))
    if sync and not synced_later:
        from harness.tracking.store import initialise_store

        uri = initialise_store(uri)
    sync = sync and not synced_later
    news = _register_runs(plan)
    notes = _sync_finished_runs([planned for planned in news if planned.state == "done"], uri) if sync and uri else []
    if no_more:
        notes.append(f"{len(no_more)} remain failed after repeated kills: harness retry {plan.study.path} --failed")
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
        }
        # Whole or absent: without it nobody would know that the jobs are SLURM's.
        replace_file(layout.submission_path, json.dumps(description, indent=1), durable=True)
        if plan.study.path.suffix == ".py":  # a study in Python is kept with its submission
            shutil.copyfile(plan.study.path, folder / plan.study.path.name)
    current_id, code = _frozen_code(plan, runs, new_code) if runs and cluster != "debug" else (None, {})
    launch = CLUSTERS[cluster]
    options = {"jobs": jobs, "profile": profile, "sync": sync, "tracking_uri": uri if sync else None}
    submission = launch(plan, runs, folder, code, **options)
    if old := sum(run_snapshot.id != current_id for run_snapshot in code.values()):
        resume = f"{count(old, 'run')} {'resumes' if old == 1 else 'resume'}"
        notes.append(f"{resume} with the code snapshot from the first start (--new-code uses the current code)")
    if runs and synced_later:
        notes.append(f"records: `harness sync {plan.study.path} --watch` uploads them to MLflow")
    submission.notes.extend(notes)
    return submission


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


def _require_data(runs: list[PlannedRun]) -> None:
    """Load each data set once, so that a missing or damaged file is found before anything is queued."""
    datasets = {(planned.run.spec.data, planned.run.data_root) for planned in runs}
    if datasets:
        from harness.registry import make_dataset

        for data, root in datasets:
            make_dataset(data, root)


def _register_runs(plan: Plan) -> list[PlannedRun]:
    """Write the spec and the study membership of every run; return the runs for which this is new."""
    plan.runs_folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(16) as pool:  # mostly waiting for the disk
        news = list(pool.map(lambda planned: planned.directory.register(planned.run), plan.runs))
    return list(itertools.compress(plan.runs, news))


def _sync_finished_runs(done: list[PlannedRun], uri: str) -> list[str]:
    """Upload done runs to MLflow under their new study, since no job will; return error messages."""
    from harness.tracking.sync import sync_run

    try:
        for planned in done:
            sync_run(planned.directory, tracking_uri=uri)
    except TrackingError as error:
        return [f"{error}; `harness sync` will upload the runs that were done before"]
    return []


CLUSTERS: dict[str, Callable[..., Submission]] = {
    "local": launch_local,
    "debug": launch_debug,
    "slurm": launch_slurm,
}
