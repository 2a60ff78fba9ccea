"""Launching is convergence: `plan` holds what a study asks for against the records, `commit` closes the gap.

    plan     pure reading: absent, failed and interrupted runs are to be worked on, done and running ones are left alone
    commit   what can fail is tried first (data, MLflow store, run directories), then submitit gets the work

The only file that imports submitit, and it does so late: `plan` answers at once. All that a job needs stands in its
run directory, and all that it finds out is written there, so little but paths is pickled. A submission has a folder:

    runs/.jobs/<study>/<time>-<pid>/    submitit's pickles and logs
        submission.json                 who submitted what, where and with which options
        claims/<run_key>                the jobs that took the run, submitit's names, the newest last
        cancelled/<run_key>             who wants it stopped; whoever works on it looks here
    runs/.code/<id>/                    the code as it was at a submission, which its jobs import

SLURM is asked once for all runs of a question, and a run's standing is what its directory and SLURM say together.
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from harness import cluster as slurm
from harness import snapshot, throughput
from harness.cluster import JobFacts, Profile, slurm_parameters
from harness.errors import HarnessError, LaunchError, TrackingError
from harness.lineage import parent_of
from harness.records import RunDirectory, Status, replace_file
from harness.spec import SCHEMA_VERSION, Resources
from harness.study import Run, Study
from harness.throughput import Throughput

if TYPE_CHECKING:
    from harness.tracking import BackgroundSync

TO_DO = ("new", "interrupted", "failed", "evaluate")
LOCAL_TIMEOUT_MINUTES = 28 * 24 * 60  # submitit's own default would end a local worker after 2 minutes
CANARY_STEPS = 50
ATTEMPTS_WITHOUT_PROGRESS = 3
OUTLASTS_A_DEAD_WRITER_SECONDS = 130.0
LOG_MARK = "== run"  # begins a run's part of a worker's log


# ---------------------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study and where it stands; `evaluate` is done, yet the study asks for more measurements."""

    run: Run
    path: Path
    state: str
    status: Status = field(default_factory=Status)
    job: JobFacts | None = None  # what SLURM says of its newest job

    @property
    def run_key(self) -> str:
        return self.run.run_key

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.path)


@dataclass(frozen=True)
class Plan:
    study: Study
    runs_folder: Path
    runs: tuple[PlannedRun, ...]

    @property
    def to_do(self) -> list[PlannedRun]:
        return [planned for planned in self.runs if planned.state in TO_DO]

    @cached_property
    def _throughput(self) -> dict[str, list[Throughput]]:
        return throughput.load(self.runs_folder)

    def measured(self, planned: PlannedRun, device: str | None = None) -> Throughput | None:
        """Return what a step of this network, these images, this batch and precision was measured to take.

        The newest fact counts. One of another kind of device than the run asks for, or of another number of processes,
        says nothing of this run.

        Args:
            device: cpu or cuda; None means what the run's resources say, either where they leave it open.
        """
        spec, resources = planned.run.spec, planned.run.resources
        if device is None and resources.device != "auto":
            device = resources.device
        elif device is None and resources.gpus_per_node:
            device = "cuda"
        for fact in self._throughput.get(spec.cost_key, ()):
            if fact.device == (device or fact.device) and fact.num_processes == resources.num_processes:
                return fact
        return None

    def training_seconds(self, planned: PlannedRun, device: str | None = None) -> float | None:
        """Estimate what is left to train; None where nothing alike has been measured. Evaluations are not in it."""
        if planned.state in ("done", "evaluate", "pruned"):
            return 0.0
        measured = self.measured(planned, device)
        steps_left = planned.run.spec.train.steps - planned.status.step
        return measured.seconds_per_step * steps_left if measured else None

    def device_hours(self, planned: PlannedRun, device: str | None = None) -> float | None:
        """Estimate what is left to train in hours of one device: a GPU, or the cores of a process where it has none."""
        seconds = self.training_seconds(planned, device)
        return None if seconds is None else seconds * planned.run.resources.num_processes / 3600

    def checkpoint_bytes(self, planned: PlannedRun) -> int | None:
        """Estimate the disk that a run will take for checkpoints: the last two, and those that its records keep."""
        if planned.state in ("done", "evaluate", "pruned"):
            return 0
        sizes = [fact.checkpoint_bytes for fact in self._throughput.get(planned.run.spec.cost_key, ())]
        num_bytes = next((one for one in sizes if one), None)  # the same on every device
        keep_every, steps = planned.run.records.keep_every, planned.run.spec.train.steps
        return num_bytes * (2 + (steps // keep_every if keep_every else 0)) if num_bytes else None

    def as_json(self) -> dict[str, Any]:
        runs = [
            {
                "run_key": planned.run_key,
                "state": planned.state,
                "arm": planned.run.arm,
                "replicate": planned.run.replicate,
                "run_dir": str(planned.path),
            }
            for planned in self.runs
        ]
        return {"study": self.study.name, "runs": runs}


def plan(study: Study, runs_folder: Path) -> Plan:
    """Look up where every run of a study stands; read only, and 1,000 runs take a fraction of a second.

    Raises:
        SpecError: a run is to go on from one that it cannot go on from.
    """
    present = set(os.listdir(runs_folder)) if runs_folder.is_dir() else set()  # noqa: PTH208 (one call for all runs)
    found = look([runs_folder / run.run_key for run in study.runs if run.run_key in present])
    runs = tuple(_planned(run, runs_folder / run.run_key, found) for run in study.runs)
    for planned in runs:
        if planned.run.spec.continue_from and planned.state == "new":
            parent_of(planned.run.spec, runs_folder)
    return Plan(study, runs_folder, runs)


def _planned(run: Run, path: Path, found: dict[str, Standing]) -> PlannedRun:
    here = found.get(run.run_key, Standing())
    state = here.status.state
    if state == "done" and any(evaluation.key not in evaluated(path) for evaluation in run.evaluations):
        state = "evaluate"
    return PlannedRun(run, path, state, here.status, here.job)


def evaluated(run_directory: Path) -> set[str]:
    """Return the keys of the protocols that a run was measured by.

    Picks the few lines in question out of the journals instead of reading them whole, which is many times faster. That
    is sound for a run that is done: its state says that nothing which stands is missing.
    """
    keys = set()
    for path in run_directory.glob("journal-*.jsonl"):
        for line in path.read_bytes().split(b"\n")[:-1]:
            if b'"event": "evaluation"' in line:
                keys.add(json.loads(line[9:])["facts"].get("key"))
    return keys


# ------------------------------------------------------------------------------------------------ where a run stands


@dataclass(frozen=True)
class Claim:
    """The newest submission that took a run: its folder, and its jobs that worked on the run, the newest last."""

    folder: Path
    jobs: tuple[str, ...] = ()

    @property
    def job_id(self) -> str:
        return self.jobs[-1] if self.jobs else ""

    @cached_property
    def submission(self) -> dict[str, Any]:
        return _submission(self.folder)

    @property
    def on_slurm(self) -> bool:
        return bool(self.submission.get("cluster") == "slurm")

    def cancelled_by(self, run_key: str) -> str | None:
        path = self.folder / "cancelled" / run_key
        return path.read_text().strip() if path.exists() else None


@cache
def _submission(folder: Path) -> dict[str, Any]:
    path = folder / "submission.json"
    return json.loads(path.read_text()) if path.exists() else {}


def claims(runs_folder: Path, run_keys: Iterable[str]) -> dict[str, list[Claim]]:
    """Return who took each run, oldest first; a run that nobody took is missing."""
    wanted = set(run_keys)
    found: dict[str, list[Claim]] = {}
    folders = sorted((runs_folder / ".jobs").glob("*/*/claims"), key=lambda path: path.parts[-2]) if wanted else []
    for folder in folders:
        for name in wanted.intersection(os.listdir(folder)):  # noqa: PTH208 (3 times faster)
            jobs = tuple((folder / name).read_text().split())
            found.setdefault(name, []).append(Claim(folder.parent, jobs))
    return found


@dataclass(frozen=True)
class Standing:
    """What the run directory and SLURM say of a run together."""

    status: Status = field(default_factory=Status)
    job: JobFacts | None = None
    claim: Claim | None = None


def look(paths: Sequence[Path]) -> dict[str, Standing]:
    """Return where runs stand, by their keys; SLURM is asked once, and where it is not, the directories alone tell.

    Args:
        paths: run directories, all in one folder.
    """
    found = {path.name: Standing(RunDirectory(path).status()) for path in paths}
    open_ends = [key for key, one in found.items() if one.status.state in ("queued", "running", "interrupted")]
    if not open_ends:
        return found
    newest = {key: all_claims[-1] for key, all_claims in claims(paths[0].parent, open_ends).items()}
    on_slurm = {key: claim.job_id for key, claim in newest.items() if claim.on_slurm and claim.job_id}
    try:
        jobs = slurm.read_queue(on_slurm.values())
    except LaunchError:
        jobs, on_slurm = {}, {}
    for path in paths:
        if (key := path.name) in open_ends:
            job, claim = jobs.get(on_slurm.get(key, "")), newest.get(key)
            status = _merge(found[key].status, key, claim, job, slurm_answers=key in on_slurm)
            if status.state == "interrupted" and (reason := killed_without_progress(path)):
                status = replace(status, state="failed", reason=reason)
            found[key] = Standing(status, job, claim)
    return found


def _merge(status: Status, key: str, claim: Claim | None, job: JobFacts | None, *, slurm_answers: bool) -> Status:
    """Add to what a run directory says what only SLURM can know: that a job waits, comes back or is gone."""
    if claim is None:
        # Between this state and the claim lie seconds, unless the submission was broken off there.
        forgotten = status.state == "queued" and time.time() - status.updated_seconds > 600
        return replace(status, state="interrupted", reason="no job was submitted for it") if forgotten else status
    by = claim.cancelled_by(key)
    if slurm_answers and job and job.live and not (by and status.state == "interrupted"):
        if status.state == "running":
            return status
        begun = f"requeued, {status.reason}" if status.state == "interrupted" else ""
        return replace(status, state="queued", reason=_why_it_waits(claim, job) + (f"; {begun}" if begun else ""))
    if status.state == "interrupted" or (slurm_answers and status.state in ("queued", "running")):
        if by:
            return replace(status, state="interrupted", reason=f"cancelled by {by}")
        if slurm_answers and not (status.state == "interrupted" and status.reason.startswith("stopped by")):
            return replace(status, state="interrupted", reason=_why_it_ended(claim, job))
    return status


def _why_it_waits(claim: Claim, job: JobFacts) -> str:
    if not job.waits:
        return f"starts on {job.node}" if job.state == "RUNNING" else f"leaves {job.node}"
    if job.reason in ("Dependency", "None") and _canary(claim, job.job_id):
        return "waits for its canary"
    return f"({job.reason})"


def _why_it_ended(claim: Claim, job: JobFacts | None) -> str:
    canary = _canary(claim, claim.job_id)
    if canary:
        died = RunDirectory(claim.folder.parents[2] / canary).status()
        if died.state == "failed" and (job is None or job.state == "CANCELLED"):
            return f"its canary failed: {died.reason or died.state}"
    if job is None:
        return f"SLURM no longer knows its job {claim.job_id}: cancelled before it began"
    if job.state == "COMPLETED":
        return f"its job {job.job_id} ended without it"
    return f"killed: {job.how_it_ended()}" if job.start else job.how_it_ended()


def _canary(claim: Claim, job_id: str) -> str | None:
    """Return the run whose first steps the array of a job waits for."""
    return claim.submission.get("canaries", {}).get(job_id.split("_")[0])


# A run that is killed again and again


def killed_without_progress(path: Path) -> str | None:
    """Return why a run had better not be begun again: its last three attempts were ended without a word at one step.

    A checkpoint, an evaluation, and any state that the job itself could write are progress, or a word. What happened
    before `harness retry` does not count.
    """
    directory = RunDirectory(path)
    attempts = directory.attempts()[-ATTEMPTS_WITHOUT_PROGRESS:]
    forgiven = _forgiven(path)
    if len(attempts) < ATTEMPTS_WITHOUT_PROGRESS or attempts[0] <= forgiven or directory.writer():
        return None
    events = [event for event in directory.events() if event.attempt in attempts]
    started = [event for event in events if event.name == "started"]
    words = {"checkpoint", "evaluation", "interrupted", "failed", "finished", "pruned"}
    if len({event.facts["resumed_from_step"] for event in started}) != 1 or any(e.name in words for e in events):
        return None
    last = started[-1].facts
    place = f"at step {last['resumed_from_step']} without progress"
    return _killed_again_and_again(path, len(attempts), place, last["host"])


def _killed_again_and_again(path: Path, times: int, place: str, host: str) -> str:
    _, text = log_of(path.parent, path.name, whole=True)
    host = os.environ.get("SLURMD_NODENAME", host)
    out_of_memory = re.search(r"exceeded (job|step) memory|exceeded memory limit|oom[-_ ]kill|OUT_OF_MEMORY", text)
    what = f"OUT_OF_MEMORY on {host}; ask for more memory_gib" if out_of_memory else f"on {host}"
    return f"killed {times} times {place}: {what}, then `harness retry`"


def _forgiven(path: Path) -> int:
    """Return the number of the attempts before the last `harness retry`."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int((path / "retried").read_text())
    return 0


# ---------------------------------------------------------------------------------------------------------- submission


@dataclass
class Submission:
    """What was handed to submitit: the runs, the folder of its logs, and its jobs."""

    runs: list[PlannedRun]
    folder: Path
    jobs: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def now(self) -> list[PlannedRun]:
        """Return each run that was submitted with where it stands now."""
        found = look([planned.path for planned in self.runs])
        return [_planned(planned.run, planned.path, found) for planned in self.runs]

    def unfinished(self) -> list[PlannedRun]:
        return [planned for planned in self.now() if planned.state not in ("done", "pruned")]

    def logs_of_killed(self) -> list[Path]:
        """Return the logs of workers that ended without a word."""
        return []


class WaitedFor(Submission, ABC):
    """One that ends while `submit` looks on."""

    @abstractmethod
    def wait(self, tick: Callable[[], None]) -> bool:
        """Wait until the work has ended; return whether it ended by itself, not because somebody asked it to stop."""


@dataclass
class LocalSubmission(WaitedFor):
    """Workers on this machine, and one process that carries all their records to MLflow.

    They start when they are waited for, so that there is no moment at which Ctrl-C would leave them behind.
    """

    workers: list[tuple[Worker, dict[str, str]]] = field(default_factory=list)  # with variables for its process
    sync: bool = True
    tracking_uri: str | None = None
    _syncing: BackgroundSync | None = None

    def wait(self, tick: Callable[[], None]) -> bool:
        """Wait for the workers, calling `tick` twice a second; return whether nobody asked to stop.

        Ctrl-C and SIGTERM ask the workers to stop at the next step, with a checkpoint; a second Ctrl-C does not wait.
        """
        with _sigterm_is_ctrl_c():
            try:
                self.start()
                while self.alive():
                    tick()
                    time.sleep(0.5)
                return True
            except KeyboardInterrupt:
                print("stopping at the next step, with a checkpoint; Ctrl-C again does not wait", file=sys.stderr)
                self.stop(tick)
                return False
            finally:
                tick()
                if self._syncing:
                    self._carry_the_rest(self._syncing)

    def _carry_the_rest(self, syncing: BackgroundSync) -> None:
        """Bring MLflow up to date at our own priority: the other process has the lowest, and a busy machine."""
        from harness.tracking import sync_run

        syncing.kill()
        try:
            for planned in self.runs:
                sync_run(planned.directory, tracking_uri=self.tracking_uri)
        except HarnessError as error:
            print(f"not all records have reached MLflow; `harness sync` carries them later: {error}", file=sys.stderr)

    def start(self) -> None:
        """Begin the work; `wait` does, but a search looks after many submissions at once."""
        if not self.workers:
            return
        executor = _executor(self.folder, "local", timeout_min=LOCAL_TIMEOUT_MINUTES)
        # Workers inherit that SIGINT is ignored: Ctrl-C reaches us alone, and we ask them to stop gently.
        with _ignoring_sigint():
            for worker, variables in self.workers:
                with _environment(_thread_environment(worker.threads) | variables):
                    self.jobs.append(executor.submit(worker))
            if self.sync:
                from harness.tracking import BackgroundSync

                # One for all workers: mlflow takes seconds of a core to import, as long as some runs take to train.
                directories = [planned.directory for planned in self.runs]
                self._syncing = BackgroundSync(directories, self.folder, tracking_uri=self.tracking_uri)

    def alive(self) -> list[Any]:
        return [job for job in self.jobs if not job.done()]

    def stop(self, tick: Callable[[], None] = lambda: None) -> None:
        """Ask the workers to write a checkpoint and end, and wait until they have."""
        with contextlib.suppress(KeyboardInterrupt):
            while alive := self.alive():
                for job in alive:
                    # Asked again each second, for a worker that was just starting has not heard the first time.
                    # submitit's controller passes the signal on; its own cancel() would kill within a second.
                    os.kill(int(job.job_id), signal.SIGTERM)
                for _ in range(2):
                    tick()
                    time.sleep(0.5)

    def logs_of_killed(self) -> list[Path]:
        return [job.paths.stdout for job in self.jobs if job.done() and not job.paths.result_pickle.exists()]


class DebugSubmission(WaitedFor):
    """One worker in this very process, so that a debugger of the user's own can look at it."""

    def wait(self, tick: Callable[[], None]) -> bool:
        """Work here and now, which shows its own progress; return whether nobody asked to stop.

        Raises:
            Exception: whatever the worker itself stumbled over; what happens within a run is recorded there.
        """
        try:
            for job in self.jobs:
                # Not result(): submitit's DebugJob would open a debugger on an error and wait for ever.
                error = job.exception()
                if error is not None:
                    raise error
        except KeyboardInterrupt:
            return False
        finally:
            tick()
        return not any(planned.state == "interrupted" for planned in self.now())


@contextlib.contextmanager
def _sigterm_is_ctrl_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def commit(
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
        from harness.tracking import initialise_store

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
            directory.join_study(plan.study.name, facts)
        return news

    plan.runs_folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(16) as pool:  # most of it is waiting for the disk
        news = list(pool.map(write, plan.runs))
    return list(itertools.compress(plan.runs, news))


def _tell_mlflow(joined: list[PlannedRun], uri: str) -> list[str]:
    """Show done runs in the study that they are members of now, since no job will; return what could not be told."""
    from harness.tracking import sync_run

    try:
        for planned in joined:
            sync_run(planned.directory, tracking_uri=uri)
    except TrackingError as error:
        return [f"{error}; `harness sync` will carry the runs that were done before"]
    return []


# ------------------------------------------------------------------------------------------------------ this machine


@dataclass(frozen=True)
class Worker:
    """Work through a queue of run directories: claim one, work on it until it ends, take the next.

    A claim stands for one submission, so that a run that fails is not tried again by the next worker; the run's own
    lock keeps other submissions off it.
    """

    queue: tuple[Path, ...]
    folder: Path
    threads: int
    gpu: str | None = None  # CUDA_VISIBLE_DEVICES
    sync: bool = True
    tracking_uri: str | None = None

    def __call__(self, job_id: str | None = None) -> None:
        stopping = threading.Event()
        if job_id is None:
            job_id = os.environ["SUBMITIT_LOCAL_JOB_ID"]
            signal.signal(signal.SIGTERM, lambda *_: stopping.set())  # between two runs; submitit would ignore it
            _set_or_unset("CUDA_VISIBLE_DEVICES", self.gpu)  # which submitit has emptied
        for path in self.queue:
            if stopping.is_set():
                return
            if _is_cancelled(self.folder, path):
                continue
            with contextlib.suppress(FileExistsError):
                with (self.folder / "claims" / path.name).open("x") as claim:
                    claim.write(job_id)
                state = _work(path, self.threads, self.sync, self.tracking_uri)
                if state == "interrupted" and not _is_cancelled(self.folder, path):
                    return


def _is_cancelled(folder: Path, path: Path) -> bool:
    return (folder / "cancelled" / path.name).exists()


def _work(path: Path, threads: int, sync: bool, tracking_uri: str | None, **options: Any) -> str:
    """Work on one run and return its state; what goes wrong in it stays in it, and in the log."""
    print(f"{LOG_MARK} {path.name} {time.strftime('%Y-%m-%d %H:%M:%S')}", flush=True)
    try:
        from harness.job import work

        state = work(path, threads=threads, tracking_uri=tracking_uri, sync=sync, **options)
    except HarnessError as error:  # as a rule: another submission works on it, and it is left alone
        print(error, flush=True)
        return "left alone"
    except Exception:
        traceback.print_exc()
        return "failed"
    print(f"{path.name} is {state}", flush=True)
    return state


def _launch_local(
    plan: Plan,
    runs: list[PlannedRun],
    folder: Path,
    code: dict[str, snapshot.Snapshot],
    *,
    jobs: int | None,
    profile: Profile,
    sync: bool,
    tracking_uri: str | None,
) -> Submission:
    submission = LocalSubmission(runs, folder, sync=sync, tracking_uri=tracking_uri)
    if not runs:
        return submission
    cores = available_cores()
    gpus = visible_gpus() if any(planned.run.resources.device != "cpu" for planned in runs) else []
    processes = max(
        planned.run.resources.num_processes for planned in runs
    )  # of one run: one a GPU where there are any
    wish = max((planned.run.resources.threads or 1) * planned.run.resources.num_processes for planned in runs)
    gpus = [",".join(gpus[first : first + processes]) for first in range(0, len(gpus), processes)]
    jobs = min(jobs or len(gpus) or max(1, cores // wish), len(runs))
    threads = max(1, cores // jobs)
    queues: dict[str, list[Path]] = {}
    for planned in runs:
        queues.setdefault(code[planned.run_key].id, []).append(planned.path.absolute())
    # As a rule there is one; runs that go on with older code need workers that have imported it.
    codes = {one.id: snapshot.environment(one) for one in code.values()}
    jobs = max(jobs, len(queues))
    for index in range(jobs):
        gpu = gpus[index % len(gpus)] if len(gpus) > 1 else os.environ.get("CUDA_VISIBLE_DEVICES")
        its_code = list(queues)[index % len(queues)]
        worker = Worker(tuple(queues[its_code]), folder, threads, gpu, sync=False)
        submission.workers.append((worker, codes[its_code]))
    one = "1 worker" if jobs == 1 else f"{jobs} workers"
    submission.notes.append(f"{one} on {cores} cores, {threads} each; logs: {folder}")
    return submission


def _launch_debug(
    plan: Plan,
    runs: list[PlannedRun],
    folder: Path,
    code: dict[str, snapshot.Snapshot],
    *,
    jobs: int | None,
    **options: Any,
) -> Submission:
    options.pop("profile")
    submission = DebugSubmission(runs, folder)
    if runs:
        worker = Worker(tuple(planned.path.absolute() for planned in runs), folder, available_cores(), **options)
        submission.jobs.append(_executor(folder, "debug").submit(worker, "debug"))
    return submission


def _executor(folder: Path, cluster: str, **parameters: Any) -> Any:
    import submitit

    # Not 3 time limits: a long run has as many as it needs, and one without progress ends itself.
    limits = {"slurm_max_num_timeout": 1_000_000} if cluster == "slurm" else {}
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **limits)
    executor.update_parameters(stderr_to_stdout=True, **parameters)
    return executor


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Return the names that CUDA_VISIBLE_DEVICES has or could have here, found without torch."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [name.strip() for name in said.split(",") if name.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False)
    return found.stdout.split() if found.returncode == 0 else []


def _thread_environment(threads: int) -> dict[str, str]:
    """Return the variables that tell libraries their number of threads; they read them once, when they load."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


@contextlib.contextmanager
def _environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Give the processes that start meanwhile these variables; None takes one away."""
    before = {name: os.environ.get(name) for name in variables}
    for name, value in variables.items():
        _set_or_unset(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            _set_or_unset(name, value)


def _set_or_unset(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


@contextlib.contextmanager
def _ignoring_sigint() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# --------------------------------------------------------------------------------------------------------------- SLURM


class _Told(BaseException):
    """SLURM told the job to leave while no run was at work that could have heard it."""


@dataclass(frozen=True)
class Task:
    """Work on the runs of one job: one in this very process, several side by side in processes of their own.

    A job that is to leave (USR2: a time limit or a preemption) has its runs write their checkpoints and is requeued;
    where SLURM cancels what it preempts, the job submits its own successor. SIGTERM alone means a person's scancel.
    Progress is found in the run directories, so the pickle that submitit keeps is the same for all lives of the job.
    """

    folder: Path
    threads: int  # of each run
    sync: bool = False
    tracking_uri: str | None = None
    canary: bool = False
    preemption_cancels: bool = False

    def __call__(self, paths: tuple[Path, ...]) -> None:
        if int(os.environ.get("SLURM_PROCID", "0")) > 0:  # it only helps to train
            options = {"stop_after_steps": CANARY_STEPS} if self.canary else {}
            _work(paths[0], self.threads, False, None, **options)
            return
        told = ""
        to_do = [path for path in paths if self._is_to_do(path)]
        if len(paths) == 1 and to_do:
            told = self._work_here(to_do[0])
        elif to_do:
            told = self._work_side_by_side(to_do)
        if self.canary:
            self._release_the_rest(paths[0])
        self._come_back_if_told(told, to_do)

    def _is_to_do(self, path: Path) -> bool:
        """Tell whether a run still wants work: an earlier life of this job may have finished it."""
        if _is_cancelled(self.folder, path):
            return False
        directory = RunDirectory(path)
        if reason := killed_without_progress(path) or self._killed_before_it_began(path):
            print(f"{path.name}: {reason}", flush=True)
            directory.set_status(replace(directory.status(), state="failed", reason=reason))
            return False
        return directory.status().state not in ("done", "failed", "pruned")

    def _killed_before_it_began(self, path: Path) -> str | None:
        """Count starts that did not come as far as a journal: memory may not even suffice to import torch."""
        (self.folder / "begun").mkdir(exist_ok=True)
        begun, attempts = self.folder / "begun" / path.name, str(len(RunDirectory(path).attempts()))
        earlier = begun.read_text().split() if begun.exists() else []
        begun.write_text("\n".join([*earlier, attempts]))
        if earlier[-ATTEMPTS_WITHOUT_PROGRESS:] == [attempts] * ATTEMPTS_WITHOUT_PROGRESS:
            return _killed_again_and_again(path, ATTEMPTS_WITHOUT_PROGRESS, "before it began", platform.node())
        return None

    def _work_here(self, path: Path) -> str:
        def hear(number: int, _: object) -> NoReturn:
            raise _Told(signal.Signals(number).name)

        for number in (signal.SIGUSR2, signal.SIGTERM):  # until the run listens itself
            signal.signal(number, hear)
        options = {"stop_after_steps": CANARY_STEPS} if self.canary else {}
        wait = OUTLASTS_A_DEAD_WRITER_SECONDS
        try:
            state = _work(path, self.threads, self.sync, self.tracking_uri, wait_seconds=wait, **options)
        except _Told as told:
            return str(told)
        finally:
            for number in (signal.SIGUSR2, signal.SIGTERM):  # what is told now is no news
                signal.signal(number, signal.SIG_IGN)
        return _heard(path) if state == "interrupted" else ""

    def _work_side_by_side(self, paths: list[Path]) -> str:
        told: list[str] = []
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, lambda number, _: told.append(signal.Signals(number).name))
        gpus = visible_gpus()
        processes = {}
        for index, path in enumerate(paths):
            gpu = gpus[index % len(gpus)] if gpus else os.environ.get("CUDA_VISIBLE_DEVICES")
            with _environment(_thread_environment(self.threads) | {"CUDA_VISIBLE_DEVICES": gpu}):
                processes[path] = self._begin(path)
        while alive := {path: process for path, process in processes.items() if process.poll() is None}:
            for path, process in alive.items():
                if told or _is_cancelled(self.folder, path):
                    # Again and again, for one that was just starting has not heard the first time.
                    process.send_signal(getattr(signal, told[-1] if told else "SIGTERM"))
            time.sleep(0.5)
        for path, process in processes.items():
            if process.returncode < 0:
                by = signal.Signals(-process.returncode).name
                directory = RunDirectory(path)
                directory.set_status(replace(directory.status(), state="interrupted", reason=f"killed by {by}"))
                told.append("killed")
        return next((one for one in told if one != "killed"), "killed" if told else "")

    def _begin(self, path: Path) -> subprocess.Popen:
        """Begin a process for one run, with a log of its own; it ignores signals until the run listens itself."""
        program = "import sys; from harness.launch import work_alone; work_alone(*sys.argv[1:])"
        facts = {"threads": self.threads, "sync": self.sync, "tracking_uri": self.tracking_uri}
        with (self.folder / f"{path.name}_log.out").open("ab") as log:
            before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGUSR2, signal.SIGTERM)}
            try:
                return subprocess.Popen(
                    [sys.executable, "-u", "-c", program, str(path), json.dumps(facts)], stdout=log, stderr=log
                )
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _release_the_rest(self, path: Path) -> None:
        """Let the array go, of which this run was the canary, or end as a failed job, which SLURM sees."""
        directory = RunDirectory(path)
        status = directory.status()
        if status.state == "failed":
            raise LaunchError(f"the canary {path.name} failed: {status.reason}")
        if status.state == "interrupted" and not _heard(path):
            directory.set_status(replace(status, state="queued", reason=""))

    def _come_back_if_told(self, told: str, paths: list[Path]) -> None:
        job_id = slurm.this_job()
        if not told or job_id is None or all(_is_cancelled(self.folder, path) for path in paths):
            return
        preempted = told != "killed" and slurm.was_preempted(job_id)
        if preempted:
            for path in paths:
                (self.folder / "begun" / path.name).unlink(missing_ok=True)
        if preempted and self.preemption_cancels:
            number = job_id.split("_")[0]
            successor = slurm.submit_again(self.folder / f"{number}_submission.sh", job_id)
            pickle, its_pickle = (self.folder / f"{one}_submitted.pkl" for one in (job_id, successor))
            os.link(pickle, its_pickle)
            for path in paths:
                with (self.folder / "claims" / path.name).open("a") as claim:
                    claim.write(f"\n{successor}")
            print(f"preempted for good; job {successor} goes on", flush=True)
        elif preempted or told in ("SIGUSR2", "killed"):
            slurm.requeue(job_id)


def work_alone(path: str, facts: str) -> None:
    """Work on one run of several in a job."""
    options = json.loads(facts)
    wait = OUTLASTS_A_DEAD_WRITER_SECONDS
    _work(Path(path), options["threads"], options["sync"], options["tracking_uri"], wait_seconds=wait)


def _heard(path: Path) -> str:
    """Return the signal by which a run was stopped."""
    found = re.match(r"stopped by (SIG\w+)", RunDirectory(path).status().reason)
    return found[1] if found else ""


def _launch_slurm(
    plan: Plan,
    runs: list[PlannedRun],
    folder: Path,
    code: dict[str, snapshot.Snapshot],
    *,
    jobs: int | None,
    profile: Profile,
    **options: Any,
) -> Submission:
    submission = Submission(runs, folder)
    if not runs:
        return submission
    largest = slurm.max_array_size(profile)
    classes: dict[tuple[Resources, str], list[PlannedRun]] = {}
    for planned in runs:
        classes.setdefault((planned.run.resources, code[planned.run_key].id), []).append(planned)
        # Before sbatch: a job may start, and say so, at once.
        planned.directory.set_status(replace(planned.status, state="queued", reason=""))
    for (resources, _), members in classes.items():
        variables = snapshot.environment(code[members[0].run_key])
        parameters = slurm_parameters(resources, profile, jobs)
        pack = profile.need(resources, "pack") if resources.num_processes == 1 else 1
        threads = max(1, parameters["cpus_per_task"] // pack)
        task = Task(folder, threads, preemption_cancels=profile.preempt_mode == "cancel", **options)
        parameters["name"] = f"harness-{plan.study.name}"
        canary = resources.canary and len(members) > 1
        packs = [members[first : first + pack] for first in range(0, len(members), pack)]
        arrays = [packs[first : first + largest] for first in range(0, len(packs), largest)]
        parallel = parameters["slurm_array_parallelism"]
        with _environment(_not_within_a_job() | _thread_environment(threads) | variables):
            if canary:
                job = _sbatch(submission, replace(task, canary=True), [members[:1]], parameters)[0]
                after = {"dependency": f"afterok:{job.job_id}", "kill-on-invalid-dep": "yes"}
                parameters["slurm_additional_parameters"] = parameters["slurm_additional_parameters"] | after
            for array in arrays:
                share = max(1, parallel * len(array) // len(packs))  # of what may run at a time
                limited = parameters | {"slurm_array_parallelism": share}
                found = _sbatch(submission, task, array, limited)
                number = found[0].job_id.split("_")[0]
                if canary:
                    _note_canary(folder, number, members[0].run_key)
                size = sum(map(len, array))
                said = f"{size} runs" if pack == 1 else f"{size} runs, {pack} to a job"
                cores = "1 core" if threads == 1 else f"{threads} cores"
                submission.notes.append(f"job {number}: {said}, {cores} each")
    submission.notes.append(f"logs: {folder}")
    return submission


def _sbatch(submission: Submission, task: Task, packs: list[list[PlannedRun]], parameters: dict[str, Any]) -> list[Any]:
    """Submit one job array, and write down which job has which run.

    Raises:
        LaunchError: sbatch refused; runs that have no job are left as they were.
    """
    try:
        executor = _executor(task.folder, "slurm", **parameters)
        array = executor.map_array(task, [tuple(planned.path.absolute() for planned in pack) for pack in packs])
    except Exception as error:
        for planned in submission.runs:
            if not (task.folder / "claims" / planned.run_key).exists():
                planned.directory.set_status(planned.status)
        raise LaunchError(f"SLURM did not take the jobs: {' '.join(str(error).split())[-400:]}") from error
    for pack, job in zip(packs, array, strict=True):
        for planned in pack:
            claim = task.folder / "claims" / planned.run_key
            with claim.open("a") as file:
                file.write(f"{job.job_id}\n")
    submission.jobs.extend(array)
    return array


def _note_canary(folder: Path, number: str, run_key: str) -> None:
    path = folder / "submission.json"
    facts = json.loads(path.read_text())
    facts.setdefault("canaries", {})[number] = run_key
    replace_file(path, json.dumps(facts, indent=1), durable=False)


def _not_within_a_job() -> dict[str, str | None]:
    """Name the variables by which an outer job, such as an interactive one, would change what we ask of sbatch."""
    if "SLURM_JOB_ID" not in os.environ:
        return {}
    return dict.fromkeys(name for name in os.environ if name not in slurm.outside_a_job())


CLUSTERS: dict[str, Callable[..., Submission]] = {
    "local": _launch_local,
    "debug": _launch_debug,
    "slurm": _launch_slurm,
}


# ------------------------------------------------------------------------------------------------- changing one's mind


def orphans(plan: Plan) -> list[RunDirectory]:
    """Return the runs that wait or run for this study alone, which no longer asks for them."""
    asked = {planned.run_key for planned in plan.runs}
    paths = [path.parents[1] for path in plan.runs_folder.glob(f"[!.]*/studies/{plan.study.name}.json")]
    alone = [path for path in paths if path.name not in asked and len(list((path / "studies").glob("[!.]*.json"))) == 1]
    found = look(alone)
    return [RunDirectory(path) for path in alone if found[path.name].status.state in ("queued", "running")]


def cancel(directories: Sequence[RunDirectory]) -> list[RunDirectory]:
    """Stop runs that wait or run, with a checkpoint of what is running; return those that were stopped now.

    A job that several runs share is cancelled when nobody needs it; else it stops the cancelled ones itself.

    Raises:
        LaunchError: SLURM does not answer; or a run is worked on by another machine, where nobody listens.
    """
    if not directories:
        return []
    runs_folder = directories[0].path.parent
    by = getpass.getuser()
    taken = claims(runs_folder, (one.key for one in directories))
    found = look([one.path for one in directories])
    # Local workers claim a run when they begin it: those that wait in their queues are told here, too.
    for path in (runs_folder / ".jobs").glob("*/*/submission.json"):
        if _submission(path.parent).get("cluster") != "slurm":
            for key in {one.key for one in directories} & set(_submission(path.parent)["runs"]):
                if found[key].status.state in TO_DO or found[key].status.state == "running":
                    _mark_cancelled(path.parent, key, by)
    live = [one for one in directories if found[one.key].status.state in ("queued", "running")]
    jobs: dict[str, Claim] = {}
    for directory in live:
        claim = taken.get(directory.key, [None])[-1]
        if claim is None:
            continue
        _mark_cancelled(claim.folder, directory.key, by)
        if claim.on_slurm and claim.job_id:
            jobs[claim.job_id] = claim
        elif owner := directory.writer():
            if owner.get("host") != socket.gethostname():
                raise LaunchError(f"run {directory.key} is worked on by {owner['host']}: cancel it there")
            with contextlib.suppress(ProcessLookupError):
                os.kill(owner["pid"], signal.SIGTERM)
    needed = {job_id for folder in {claim.folder for claim in jobs.values()} for job_id in _needed(folder)}
    slurm.cancel([job_id for job_id in jobs if job_id not in needed])
    return live


def _mark_cancelled(folder: Path, run_key: str, by: str) -> None:
    (folder / "cancelled").mkdir(exist_ok=True)
    (folder / "cancelled" / run_key).write_text(by)


def _needed(folder: Path) -> set[str]:
    """Return the jobs of a submission that still have a run which is neither cancelled nor at its end."""
    needed = set()
    for path in (folder / "claims").iterdir():
        if not (folder / "cancelled" / path.name).exists():
            state = RunDirectory(folder.parents[2] / path.name).status().state
            if state in ("queued", "running", "interrupted"):
                needed.update(path.read_text().split()[-1:])
    return needed


def select_retries(plan: Plan, *, failed: bool, killed: bool) -> Plan:
    """Return the failed and the killed runs of a plan, with what they did before forgiven."""
    chosen = [
        planned
        for planned in plan.to_do
        if (failed and planned.state == "failed")
        or (killed and planned.state == "interrupted" and "killed" in planned.status.reason)
    ]
    for planned in chosen:
        attempts = planned.directory.attempts()
        (planned.path / "retried").write_text(str(max(attempts, default=0)))
    return replace(plan, runs=tuple(replace(planned, state="interrupted") for planned in chosen))


def last_options(plan: Plan) -> dict[str, Any]:
    """Return `cluster`, `jobs` and `profile` of the newest submission of a study; the defaults if there was none."""
    folders = sorted((plan.runs_folder / ".jobs" / plan.study.name).glob("*/submission.json"))
    facts = _submission(folders[-1].parent) if folders else {"cluster": "local", "jobs": None, "profile": {}}
    options = {key: facts[key] for key in ("cluster", "jobs")}
    return options | {"profile": Profile.model_validate(facts["profile"]) if facts["profile"] else None}


# ---------------------------------------------------------------------------------------------------------------- logs


def job_of(runs_folder: Path, run_key: str) -> tuple[Path | None, str]:
    """Return the newest submission's folder that took a run, and the name of submitit's job there."""
    newest = claims(runs_folder, [run_key]).get(run_key, [None])[-1]
    return (newest.folder, newest.job_id) if newest else (None, "")


def log_path(runs_folder: Path, run_key: str) -> Path | None:
    """Return the log that the newest work on a run is written to, or None before there is any."""
    for claim in reversed(claims(runs_folder, [run_key]).get(run_key, [])):
        its_own = claim.folder / f"{run_key}_log.out"  # of a run that shared its job
        for path in (its_own, *(claim.folder / f"{job_id}_0_log.out" for job_id in reversed(claim.jobs))):
            if path.exists():
                return path
    return None


def log_of(runs_folder: Path, run_key: str, *, whole: bool = False) -> tuple[Path | None, Any]:
    """Return a run's newest log and this run's lines in it; `whole`: all of the text, with what SLURM wrote there."""
    path = log_path(runs_folder, run_key)
    text = path.read_text(errors="replace") if path else ""
    if whole:
        return path, text
    parts = re.split(rf"^(?={LOG_MARK} )", text, flags=re.MULTILINE)
    mine = [part for part in parts if part.startswith(f"{LOG_MARK} {run_key} ")]
    return path, "".join(mine).splitlines()
