"""Workers on this machine, and one in this process for debuggers."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, RecordError
from harness.launch.planning import Plan, PlannedRun
from harness.launch.processes import (
    available_cores,
    make_executor,
    process_environment,
    thread_environment,
    visible_gpus,
)
from harness.launch.submission import BlockingSubmission, Submission
from harness.launch.worker import Worker
from harness.records import snapshot
from harness.records.layout import SubmissionLayout
from harness.slurm.profile import Profile
from harness.text import count, harness_command

if TYPE_CHECKING:
    from harness.tracking.daemon import BackgroundSync

logger = logging.getLogger(__name__)


LOCAL_TIMEOUT_MINUTES = 28 * 24 * 60  # submitit's own default would end a local worker after 2 minutes


@dataclass
class Slot:
    """A share of this machine, which works through the runs of one code version after the other.

    A process imports one version, so each has a worker of its own; a slot serves a version at most once.
    """

    workers: list[tuple[Worker, dict[str, str]]]  # that are left, with variables for their processes
    job: Any = None  # submitit's, of the last worker that was started


@dataclass
class LocalSubmission(BlockingSubmission):
    """Workers on this machine, and one process that uploads all their records to MLflow.

    They are started by `wait`, so that Ctrl-C can never leave them behind.
    """

    slots: list[Slot] = field(default_factory=list)
    sync: bool = True
    tracking_uri: str | None = None
    _syncing: BackgroundSync | None = None

    def wait(self, tick: Callable[[], object]) -> bool:
        """Wait for the workers, calling `tick` twice a second; return False if they were asked to stop.

        Ctrl-C and SIGTERM ask the workers to stop at the next step, with a checkpoint; a second Ctrl-C stops at once.
        """
        with _sigterm_is_ctrl_c():
            try:
                return self._follow(tick)
            except Exception:
                self.stop()  # what the runs are shown on is gone, and no worker is to go on unseen
                raise
            finally:
                self._explain_runs_that_did_not_begin()
                if self._syncing:
                    self._final_sync(self._syncing)

    def _follow(self, tick: Callable[[], object]) -> bool:
        try:
            self.start()
            while self.alive() or any(slot.workers for slot in self.slots):
                tick()
                time.sleep(0.5)
                self._start_workers()  # of the code versions that the slots turn to
            return True
        except KeyboardInterrupt:
            logger.info("Stopping after this step and saving a checkpoint. Press Ctrl-C again to quit at once.")
            self.stop(tick)
            return False
        finally:
            tick()

    def _explain_runs_that_did_not_begin(self) -> None:
        """Give each run that a worker took and that left no attempt a state and a reason."""
        if self.alive():  # a second Ctrl-C: they may still begin
            return
        logs = {str(job.job_id): job.paths.stdout for job in self.jobs}
        failed = [job.paths.stdout for job in self.jobs if job.done() and _has_failed(job)]
        for planned in self.runs:
            claim = SubmissionLayout(self.folder).claim_path(planned.run_key)
            status, directory = planned.directory.status(), planned.directory
            if status.state not in ("new", "queued") or directory.attempts() or directory.writer():
                continue
            if claim.exists() or failed:
                log = logs.get(claim.read_text().strip() if claim.exists() else "", (failed or [self.folder])[0])
                reason = f"its worker ended before it began; its log: {log}"
                directory.set_status(
                    replace(status, state="interrupted", cause="not_begun", reason=reason, stopped_by="")
                )

    def _final_sync(self, syncing: BackgroundSync) -> None:
        """Finish the upload to MLflow at normal priority: the background process has the lowest, on a busy machine."""
        from harness.tracking.studies import sync_studies
        from harness.tracking.sync import sync_runs

        syncing.kill()
        try:
            directories = [planned.directory for planned in self.runs]
            for directory, report in sync_runs(directories, tracking_uri=self.tracking_uri):
                if isinstance(report, RecordError):
                    logger.warning(f"run {directory.key} has not reached MLflow; `harness sync` uploads it: {report}")
            sync_studies(directories, tracking_uri=self.tracking_uri)
        except HarnessError as error:
            sync = harness_command("sync", runs_folder=self.runs[0].path.parent)
            logger.warning(f"not all records have reached MLflow; `{sync}` uploads the rest: {error}")

    def start(self) -> None:
        """Start the workers; `wait` does it too, but a search watches many submissions at once."""
        self._start_workers()
        if self.sync and self.slots:
            from harness.tracking.daemon import BackgroundSync

            # One for all workers: mlflow takes seconds of a core to import, as long as some runs take to train.
            directories = [planned.directory for planned in self.runs]
            with _ignoring_sigint():
                self._syncing = BackgroundSync(directories, self.folder, tracking_uri=self.tracking_uri)

    def _start_workers(self) -> None:
        """Start the next worker of each idle slot that has runs left which nobody has taken."""
        for slot in self.slots:
            while slot.workers and (slot.job is None or slot.job.done()):
                worker, variables = slot.workers.pop(0)
                if not worker.left():
                    continue
                executor = make_executor(self.folder, "local", timeout_min=LOCAL_TIMEOUT_MINUTES)
                # Workers inherit that SIGINT is ignored: Ctrl-C reaches only us, and we ask them to stop.
                with _ignoring_sigint(), process_environment(thread_environment(worker.threads) | variables):
                    slot.job = executor.submit(worker)
                self.jobs.append(slot.job)

    def alive(self) -> list[Any]:
        return [job for job in self.jobs if not job.done()]

    def stop(self, tick: Callable[[], object] = lambda: None) -> None:
        """Ask the workers to write a checkpoint and exit, and wait until they have."""
        with contextlib.suppress(KeyboardInterrupt):
            while alive := self.alive():
                for job in alive:
                    # Repeated each second, since a worker that was just starting may have missed the first signal.
                    # submitit's controller passes the signal on; its own cancel() would kill within a second.
                    os.kill(int(job.job_id), signal.SIGTERM)
                for _ in range(2):
                    tick()
                    time.sleep(0.5)

    def logs_of_killed(self) -> list[Path]:
        return [job.paths.stdout for job in self.jobs if job.done() and not job.paths.result_pickle.exists()]


def _has_failed(job: Any) -> bool:
    return not job.paths.result_pickle.exists() or job.exception() is not None


class DebugSubmission(BlockingSubmission):
    """One worker in this process, for the user's own debugger."""

    def wait(self, tick: Callable[[], object]) -> bool:
        """Work in this process, showing progress; return False if it was asked to stop.

        Raises:
            Exception: an error of the worker itself; errors of a run are recorded in the run.
        """
        try:
            for job in self.jobs:
                # Not result(): submitit's DebugJob would open a debugger on an error and wait forever.
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


def launch_local(
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
    cores_of_a_run = max((planned.run.resources.threads or 1) * planned.run.resources.num_processes for planned in runs)
    gpus = [",".join(gpus[first : first + processes]) for first in range(0, len(gpus), processes)]
    jobs = min(jobs or len(gpus) or max(1, cores // cores_of_a_run), len(runs))
    threads = max(1, cores // jobs)
    queues: dict[str, list[Path]] = {}
    for planned in runs:
        queues.setdefault(code[planned.run_key].id, []).append(planned.path.absolute())
    # Usually there is one; runs that resume with older code need workers that have imported that code.
    codes = {of_run.id: snapshot.environment(of_run) for of_run in code.values()}
    for index, first in enumerate(_share_slots({code_id: len(queue) for code_id, queue in queues.items()}, jobs)):
        gpu = gpus[index % len(gpus)] if len(gpus) > 1 else os.environ.get("CUDA_VISIBLE_DEVICES")
        order = [first, *(code_id for code_id in queues if code_id != first)]
        workers = [Worker(tuple(queues[code_id]), folder, threads, gpu, sync=False) for code_id in order]
        submission.slots.append(Slot(list(zip(workers, (codes[code_id] for code_id in order), strict=True))))
    submission.notes.append(f"{count(jobs, 'worker')} on {cores} cores, {threads} each; logs: {folder}")
    return submission


def _share_slots(num_runs: Mapping[str, int], jobs: int) -> list[str]:
    """Return the code version that each slot begins with, in proportion to the numbers of their runs."""
    shares = dict.fromkeys(num_runs, 0)
    for _ in range(jobs):
        shares[max(shares, key=lambda code_id: num_runs[code_id] / (shares[code_id] + 1))] += 1
    return [code_id for code_id, share in shares.items() for _ in range(share)]


def launch_debug(
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
        submission.jobs.append(make_executor(folder, "debug").submit(worker, "debug"))
    return submission


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
