"""Submit what is left to do of a plan: what can fail is tried first, then submitit gets the work."""

from __future__ import annotations

import getpass
import itertools
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from harness.errors import LaunchError, TrackingError
from harness.launch.local import launch_debug, launch_local
from harness.launch.on_slurm import launch_slurm
from harness.launch.planning import Plan, PlannedRun
from harness.launch.states import killed_without_progress
from harness.launch.submission import Submission
from harness.records import snapshot
from harness.slurm.profile import Profile
from harness.spec.base import SCHEMA_VERSION


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
        sync: whether jobs carry their records to MLflow.
        tracking_uri: MLflow's store; None means the profile's, MLFLOW_TRACKING_URI, else `mlflow.db` in the working
            folder. Jobs on SLURM write to a server that their nodes reach, and never to a database in a file.
        new_code: whether runs that have a checkpoint go on with today's code, not with that which they began with.

    Returns:
        What was submitted, to be waited for (`wait`) unless it is on SLURM.

    Raises:
        DataError, RecordError, TrackingError: before anything is submitted.
        LaunchError: submitit or the cluster refused.
    """
    if cluster not in CLUSTERS:
        raise LaunchError(f"no cluster {cluster!r}; the choices are {', '.join(CLUSTERS)}")
    profile = profile or Profile()
    hopeless = {planned.run_key for planned in plan.to_do if killed_without_progress(planned.path)}
    runs = [planned for planned in plan.to_do if planned.run_key not in hopeless]
    _require_data(runs)
    uri = tracking_uri or profile.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    carried_later = cluster == "slurm" and not (profile.compute_nodes_reach_server and (uri or "").startswith("http"))
    if sync and not carried_later:
        from harness.tracking.store import initialise_store

        uri = initialise_store(uri)
    sync = sync and not carried_later
    joined = _join(plan)
    notes = _tell_mlflow([planned for planned in joined if planned.state == "done"], uri) if sync and uri else []
    if hopeless:
        notes.append(f"{len(hopeless)} left failed, killed again and again: harness retry {plan.study.path} --failed")
    stamp = f"{datetime.now():%Y%m%d-%H%M%S-%f}-{os.getpid()}"
    folder = (plan.runs_folder / ".jobs" / plan.study.name / stamp).absolute()
    if runs:
        (folder / "claims").mkdir(parents=True)
        facts = {
            "cluster": cluster,
            "jobs": jobs,
            "profile": profile.model_dump(mode="json", exclude_unset=True),
            "user": getpass.getuser(),
            "time": time.time(),
            "runs": [planned.run_key for planned in runs],
        }
        (folder / "submission.json").write_text(json.dumps(facts, indent=1))
    today, code = _frozen_code(plan, runs, new_code) if runs and cluster != "debug" else (None, {})
    launch = CLUSTERS[cluster]
    options = {"jobs": jobs, "profile": profile, "sync": sync, "tracking_uri": uri if sync else None}
    submission = launch(plan, runs, folder, code, **options)
    if old := sum(one.id != today for one in code.values()):
        notes.append(f"{old} of them go on with the code that they began with (--new-code takes today's)")
    if runs and carried_later:
        notes.append(f"records: `harness sync {plan.study.path} --watch` carries them to MLflow")
    submission.notes.extend(notes)
    return submission


def _frozen_code(plan: Plan, runs: list[PlannedRun], new_code: bool) -> tuple[str, dict[str, snapshot.Snapshot]]:
    """Freeze today's code; return its id, and by run the code that it works with.

    A run that has a checkpoint goes on with the code that it began with, so that it never mixes two versions. Further
    evaluations of a run that is done are today's business.

    Raises:
        LaunchError: the code that a run began with is no longer here, or was changed.
    """
    store = plan.runs_folder.absolute() / ".code"
    today = snapshot.take(store, leave_out=[plan.runs_folder])
    code = {}
    for planned in runs:
        begun = planned.status.attempt and planned.state != "evaluate" and planned.directory.durable_step() > 0
        its_own = snapshot.of(planned.path) if begun and not new_code else None
        found = snapshot.find(store, its_own) if its_own else today
        if found is None:
            raise LaunchError(
                f"run {planned.run_key} began with code {its_own}, which is no longer in {store}; "
                "--new-code goes on with today's"
            )
        code[planned.run_key] = found
    for old in {one.id: one for one in code.values() if one.id != today.id}.values():
        if wrong := snapshot.verify(old):
            raise LaunchError(f"the code in {old.path} was changed ({', '.join(wrong[:5])}); --new-code takes today's")
    return today.id, code


def _environment_of(code: snapshot.Snapshot | None) -> dict[str, str | None]:
    return dict(snapshot.environment(code)) if code else {}


def _require_data(runs: list[PlannedRun]) -> None:
    """Load each data set once, so that a missing or damaged file is met here and not in the queue."""
    wanted = {(planned.run.spec.data, planned.run.data_root) for planned in runs}
    if wanted:
        from harness.registry import make_dataset

        for data, root in wanted:
            make_dataset(data, root)


def _join(plan: Plan) -> list[PlannedRun]:
    """Write what every run of the study is and what the study says of it; return those of which this is news."""

    def write(planned: PlannedRun) -> bool:
        facts = planned.run.facts()
        directory = planned.directory.create(planned.run.spec.model_dump(mode="json"), SCHEMA_VERSION)
        news = directory.studies().get(plan.study.name) != json.loads(json.dumps(facts))
        if news:
            directory.add_to_study(plan.study.name, facts)
        return news

    plan.runs_folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(16) as pool:  # most of it is waiting for the disk
        news = list(pool.map(write, plan.runs))
    return list(itertools.compress(plan.runs, news))


def _tell_mlflow(joined: list[PlannedRun], uri: str) -> list[str]:
    """Show done runs in the study that they are members of now, since no job will; return what could not be told."""
    from harness.tracking.sync import sync_run

    try:
        for planned in joined:
            sync_run(planned.directory, tracking_uri=uri)
    except TrackingError as error:
        return [f"{error}; `harness sync` will carry the runs that were done before"]
    return []


CLUSTERS: dict[str, Callable[..., Submission]] = {
    "local": launch_local,
    "debug": launch_debug,
    "slurm": launch_slurm,
}
