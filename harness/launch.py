"""Launching is convergence: `plan` holds what a study asks for against the records, `commit` closes the gap.

    plan     pure reading: absent, failed and interrupted runs are to be worked on, done and running ones are left alone
    commit   what can fail is tried first (data, MLflow store, run directories), then submitit gets the work

The only file that imports submitit, and it does so late: `plan` answers at once. All that a job needs stands in its
run directory, and all that it finds out is written there, so little but paths is pickled. A submission has a folder:

    runs/.jobs/<study>/<time>-<pid>/    submitit's pickles and logs
        claims/<run_key>                who took the run: the name of submitit's job
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import throughput
from harness.cluster import Profile, queued_in_slurm, slurm_parameters
from harness.errors import HarnessError, LaunchError, TrackingError
from harness.lineage import parent_of
from harness.records import RunDirectory, Status
from harness.spec import SCHEMA_VERSION, Resources
from harness.study import Run, Study
from harness.throughput import Throughput

if TYPE_CHECKING:
    from harness.tracking import BackgroundSync

TO_DO = ("new", "interrupted", "failed", "evaluate")
LOCAL_TIMEOUT_MINUTES = 28 * 24 * 60  # submitit's own default would end a local worker after 2 minutes
LOG_MARK = "== run"  # begins a run's part of a worker's log


# ---------------------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study and where it stands; `evaluate` is done, yet the study asks for more measurements."""

    run: Run
    path: Path
    state: str
    status: Status = field(default_factory=Status)

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
    runs = tuple(_look_up(run, runs_folder / run.run_key, present) for run in study.runs)
    for planned in runs:
        if planned.run.spec.continue_from and planned.state == "new":
            parent_of(planned.run.spec, runs_folder)
    return Plan(study, runs_folder, runs)


def _look_up(run: Run, path: Path, present: set[str]) -> PlannedRun:
    status = RunDirectory(path).status() if path.name in present else Status()
    state = status.state
    if state == "done" and any(evaluation.key not in evaluated(path) for evaluation in run.evaluations):
        state = "evaluate"
    return PlannedRun(run, path, state, status)


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
        return [_look_up(planned.run, planned.path, {planned.run_key}) for planned in self.runs]

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

    workers: list[Worker] = field(default_factory=list)
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
            for worker in self.workers:
                with _thread_environment(worker.threads):
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
) -> Submission:
    """Submit all that is left to do; safe to repeat.

    Args:
        cluster: local (workers on this machine), debug (in this process) or slurm.
        jobs: workers (local), or runs of an array at a time (slurm); None chooses.
        profile: facts of the SLURM cluster.
        sync: whether jobs carry their records to MLflow.
        tracking_uri: MLflow's store; None means MLFLOW_TRACKING_URI, else `mlflow.db` in the working folder.

    Returns:
        What was submitted, to be waited for (`wait`) unless it is on SLURM.

    Raises:
        DataError, RecordError, TrackingError: before anything is submitted.
        LaunchError: submitit or the cluster refused.
    """
    if cluster not in CLUSTERS:
        raise LaunchError(f"no cluster {cluster!r}; the choices are {', '.join(CLUSTERS)}")
    runs = [*plan.to_do, *_lost_in_the_queue(plan)]
    _require_data(runs)
    uri = None
    if sync:
        from harness.tracking import initialise_store

        uri = initialise_store(tracking_uri)
    joined = _join(plan)
    notes = _tell_mlflow([planned for planned in joined if planned.state == "done"], uri) if uri else []
    stamp = f"{datetime.now():%Y%m%d-%H%M%S-%f}-{os.getpid()}"
    folder = (plan.runs_folder / ".jobs" / plan.study.name / stamp).absolute()
    if runs:
        (folder / "claims").mkdir(parents=True)
    launch = CLUSTERS[cluster]
    submission = launch(plan, runs, folder, jobs=jobs, profile=profile or Profile(), sync=sync, tracking_uri=uri)
    submission.notes.extend(notes)
    return submission


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
            with contextlib.suppress(FileExistsError):
                with (self.folder / "claims" / path.name).open("x") as claim:
                    claim.write(job_id)
                if _work(path, self.threads, self.sync, self.tracking_uri) == "interrupted":
                    return


def _work(path: Path, threads: int, sync: bool, tracking_uri: str | None) -> str:
    """Work on one run and return its state; what goes wrong in it stays in it, and in the log."""
    print(f"{LOG_MARK} {path.name} {time.strftime('%Y-%m-%d %H:%M:%S')}", flush=True)
    try:
        from harness.job import work

        state = work(path, threads=threads, tracking_uri=tracking_uri, sync=sync)
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
    queue = tuple(planned.path.absolute() for planned in runs)
    for index in range(jobs):
        gpu = gpus[index % len(gpus)] if len(gpus) > 1 else os.environ.get("CUDA_VISIBLE_DEVICES")
        submission.workers.append(Worker(queue, folder, threads, gpu, sync=False))
    one = "1 worker" if jobs == 1 else f"{jobs} workers"
    submission.notes.append(f"{one} on {cores} cores, {threads} each; logs: {folder}")
    return submission


def _launch_debug(plan: Plan, runs: list[PlannedRun], folder: Path, *, jobs: int | None, **options: Any) -> Submission:
    options.pop("profile")
    submission = DebugSubmission(runs, folder)
    if runs:
        worker = Worker(tuple(planned.path.absolute() for planned in runs), folder, available_cores(), **options)
        submission.jobs.append(_executor(folder, "debug").submit(worker, "debug"))
    return submission


def _executor(folder: Path, cluster: str, **parameters: Any) -> Any:
    import submitit

    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
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


@contextlib.contextmanager
def _thread_environment(threads: int) -> Iterator[None]:
    """Give the processes that start meanwhile their number of threads; libraries read it once, when they load."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
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


@dataclass(frozen=True)
class Task:
    """Work on one run as a job of its own; `checkpoint` makes submitit requeue it. Progress is found on the disk."""

    threads: int
    sync: bool
    tracking_uri: str | None

    def __call__(self, path: Path) -> str:
        state = _work(path, self.threads, self.sync, self.tracking_uri)
        # USR2 announces a time limit or a preemption, which submitit answers by a requeue; the job has written its
        # checkpoint instead of answering, so the signal is passed on now. SIGTERM alone means cancelled.
        if state == "interrupted" and "SIGUSR2" in RunDirectory(path).status().reason:
            signal.raise_signal(signal.SIGUSR2)
        return state

    def checkpoint(self, path: Path) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, path)


def _launch_slurm(
    plan: Plan, runs: list[PlannedRun], folder: Path, *, jobs: int | None, profile: Profile, **options: Any
) -> Submission:
    submission = Submission(runs, folder)
    classes: dict[Resources, list[PlannedRun]] = {}
    for planned in runs:
        classes.setdefault(planned.run.resources, []).append(planned)
    for resources, members in classes.items():
        parameters = slurm_parameters(resources, profile, jobs)
        task = Task(parameters["cpus_per_task"], **options)
        for planned in members:  # before sbatch: a job may start, and say so, at once
            planned.directory.set_status(replace(planned.status, state="queued", reason=""))
        try:
            executor = _executor(folder, "slurm", name=f"harness-{plan.study.name}", **parameters)
            with _thread_environment(task.threads):
                array = executor.map_array(task, [planned.path.absolute() for planned in members])
        except Exception as error:
            for planned in members:
                planned.directory.set_status(planned.status)
            raise LaunchError(f"SLURM did not take the jobs: {' '.join(str(error).split())[-400:]}") from error
        for planned, job in zip(members, array, strict=True):
            (folder / "claims" / planned.run_key).write_text(job.job_id)
        submission.jobs.extend(array)
        number = array[0].job_id.split("_")[0]
        submission.notes.append(f"job {number}: {len(members)} runs, {task.threads} cores each; logs: {folder}")
    return submission


def _lost_in_the_queue(plan: Plan) -> list[PlannedRun]:
    """Return the runs that are recorded as queued and unknown to SLURM: they were cancelled before they began."""
    queued = [planned for planned in plan.runs if planned.state == "queued"]
    if not queued or not shutil.which("squeue"):
        return []
    known = queued_in_slurm()
    return [planned for planned in queued if job_of(plan.runs_folder, planned.run_key)[1] not in known]


CLUSTERS: dict[str, Callable[..., Submission]] = {
    "local": _launch_local,
    "debug": _launch_debug,
    "slurm": _launch_slurm,
}


# ---------------------------------------------------------------------------------------------------------------- logs


def job_of(runs_folder: Path, run_key: str) -> tuple[Path | None, str]:
    """Return the newest submission's folder that worked on a run, and the name of submitit's job there."""
    claims = sorted((runs_folder / ".jobs").glob(f"*/*/claims/{run_key}"), key=lambda path: path.parts[-3])
    return (claims[-1].parents[1], claims[-1].read_text()) if claims else (None, "")


def log_of(runs_folder: Path, run_key: str) -> tuple[Path | None, list[str]]:
    """Return the log that the newest work on a run was written to, and this run's lines in it."""
    folder, job_id = job_of(runs_folder, run_key)
    path = folder / f"{job_id}_0_log.out" if folder else None
    if path is None or not path.exists():
        return None, []
    parts = re.split(rf"^(?={LOG_MARK} )", path.read_text(errors="replace"), flags=re.MULTILINE)
    mine = [part for part in parts if part.startswith(f"{LOG_MARK} {run_key} ")]
    return path, "".join(mine).splitlines()
