"""What one SLURM job does with its runs; harness/launch/requeue.py decides when it is requeued."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from harness.errors import LaunchError
from harness.launch.claims import is_cancelled
from harness.launch.nodes import exclude_option, excluded, note_failures_of
from harness.launch.notifications import notify_once
from harness.launch.processes import process_environment, thread_environment, visible_gpus
from harness.launch.requeue import (
    REQUEUE_PAUSES_SECONDS,
    STARTUP_SECONDS,
    attempt_began,
    given_up,
    given_up_before_attempt,
    requeue_action,
    reset_kills,
    reset_starts,
)
from harness.launch.worker import execute_run, next_log, open_log
from harness.messages import show_messages
from harness.records.directory import RunDirectory
from harness.records.layout import SubmissionLayout
from harness.records.meeting import Meeting, meeting_name
from harness.records.throughput import RUNS_PER_GPU
from harness.slurm.commands import patiently
from harness.slurm.jobs import current_job_id, requeue_job, resubmit_job, was_preempted
from harness.slurm.time_limit import TIME_LIMIT_SIGNAL, TimeLimit

logger = logging.getLogger(__name__)

CANARY_STEPS = 50
DEAD_WRITER_WAIT_SECONDS = 130.0
_STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class _StopRequested(BaseException):
    """SLURM asked the job to stop while no run was active that could handle the signal."""


@dataclass(frozen=True)
class _AttemptEnd:
    """How this attempt of a job ended, as far as it matters for requeueing."""

    stopped_by: str = ""  # a signal's name
    killed: bool = False  # one of its several runs, or one of its run's processes, was killed
    device_broken: bool = False  # its node's


@dataclass(frozen=True)
class Task:
    """Work on the runs of one job: one in this process, several in parallel in separate processes.

    A job that is asked to stop (USR2: a time limit or a preemption) has its runs write their checkpoints. Progress is
    read from the run directories, so the pickle that submitit keeps is the same for all attempts of the job.
    """

    folder: Path
    threads: int  # of each run
    sync: bool = False
    tracking_uri: str | None = None
    canary: bool = False
    preemption_cancels: bool = False
    at_once: int = 1  # of several runs; the others wait for their turn
    notify: str = ""
    limit_seconds: float = 0.0  # of the job; 0 is none
    lead_seconds: float = 0.0  # before it SIGUSR2 comes
    exclude: str = ""  # nodes, as the job's script excludes them

    def __call__(self, paths: tuple[Path, ...]) -> None:
        show_messages("stdout")
        if int(os.environ.get("SLURM_PROCID", "0")) > 0:  # it only trains, and prints to the job's log
            options: dict[str, Any] = {"stop_after_steps": CANARY_STEPS} if self.canary else {}
            execute_run(paths[0], self.threads, False, None, logged=False, **options)
            return
        time_limit = TimeLimit.of_this_job(self.limit_seconds, self.lead_seconds)
        if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
            note_failures_of(self._layout.runs_folder, current_job_id() or "")
        if len(paths) > 1:
            end, to_do = self._work_in_parallel(paths, time_limit)
        else:
            try:
                to_do = [path for path in paths if self._is_to_do(path)]
                end = self._work_in_process(to_do[0], time_limit) if to_do else _AttemptEnd()
            finally:  # other processes may wait for this one
                if os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
                    Meeting(RunDirectory(paths[0]).lock_folder, meeting_name(os.environ)).close()
        if self.canary:
            self._release_array(paths[0])
        if self.notify:
            notify_once(self._layout, self.notify)
        # Much before the time limit SIGUSR2 is a preemption's, or somebody's who wants the job to leave.
        if end.stopped_by == TIME_LIMIT_SIGNAL and time_limit.seconds_left() > self.lead_seconds + STARTUP_SECONDS:
            for path in to_do:
                reset_kills(RunDirectory(path))
        self._requeue_if_needed(end, to_do)

    @property
    def _layout(self) -> SubmissionLayout:
        return SubmissionLayout(self.folder)

    def _is_to_do(self, path: Path) -> bool:
        """Return whether a run is unfinished: an earlier attempt of this job may have finished it."""
        if is_cancelled(self.folder, path):
            return False
        directory = RunDirectory(path)
        if ending := given_up(path) or given_up_before_attempt(self._layout, path, platform.node()):
            logger.warning(f"{path.name}: {ending.reason}")
            status = replace(directory.status(), state="failed", cause=ending.cause, reason=ending.reason)
            directory.set_status(replace(status, stopped_by=""))
            return False
        return directory.status().state not in ("done", "failed", "paused", "pruned")

    def _work_in_process(self, path: Path, time_limit: TimeLimit) -> _AttemptEnd:
        def stop(number: int, _: object) -> NoReturn:
            raise _StopRequested(signal.Signals(number).name)

        for number in _STOP_SIGNALS:  # until the run installs its own handlers
            signal.signal(number, stop)
        options: dict[str, Any] = {"stop_after_steps": CANARY_STEPS} if self.canary else {}
        options["time_limit"] = time_limit
        wait = DEAD_WRITER_WAIT_SECONDS
        try:
            state = execute_run(path, self.threads, self.sync, self.tracking_uri, wait_seconds=wait, **options)
        except _StopRequested as request:
            return _AttemptEnd(stopped_by=str(request))
        finally:
            for number in _STOP_SIGNALS:  # further signals change nothing
                signal.signal(number, signal.SIG_IGN)
        status = RunDirectory(path).status()
        ended = _AttemptEnd(status.stopped_by, status.cause == "killed", status.cause == "device")
        return ended if state == "interrupted" else _AttemptEnd()

    def _work_in_parallel(self, paths: Sequence[Path], time_limit: TimeLimit) -> tuple[_AttemptEnd, list[Path]]:
        """Work on runs in processes of their own, `at_once` at a time; return also which of them were to do."""
        signals: list[signal.Signals] = []
        for number in _STOP_SIGNALS:
            signal.signal(number, lambda number, _: signals.append(signal.Signals(number)))
        waiting, begun = list(paths), list[Path]()
        slots: list[tuple[Path, subprocess.Popen] | None] = [None] * min(self.at_once, len(paths))
        killed = False
        while True:
            for slot, entry in enumerate(slots):
                if entry and entry[1].poll() is not None:
                    killed |= _note_kill(*entry)
                    slots[slot] = None
                    if RunDirectory(entry[0]).status().stopped_by == TIME_LIMIT_SIGNAL and not signals:
                        signals.append(signal.SIGUSR2)  # it stopped ahead of the signal, and comes back with the job
                while waiting and not slots[slot] and not signals:
                    path = waiting.pop(0)
                    if self._is_to_do(path):
                        begun.append(path)
                        slots[slot] = path, self._begin(path, slot, time_limit)
            for path, process in filter(None, slots):
                if signals or is_cancelled(self.folder, path):
                    # Repeatedly, since a process that was just starting may have missed the first one.
                    process.send_signal(signals[-1] if signals else signal.SIGTERM)
            if not any(slots):
                broken = any(RunDirectory(path).status().cause == "device" for path in begun)
                return _AttemptEnd(_strongest(signals), killed, broken), [*begun, *waiting]
            time.sleep(0.5)

    def _begin(self, path: Path, slot: int, time_limit: TimeLimit) -> subprocess.Popen:
        """Start a process for one run, with its own log and a GPU; it ignores signals until the run handles them."""
        gpus = visible_gpus()
        gpu = gpus[slot % len(gpus)] if gpus else os.environ.get("CUDA_VISIBLE_DEVICES")
        sharing = str(math.ceil(self.at_once / len(gpus)) if gpus else 1)
        variables = {"CUDA_VISIBLE_DEVICES": gpu, RUNS_PER_GPU: sharing}
        environment = process_environment(thread_environment(self.threads) | variables)
        program = "import sys; from harness.launch.slurm_job import work_alone; work_alone(*sys.argv[1:])"
        options = {
            "threads": self.threads,
            "sync": self.sync,
            "tracking_uri": self.tracking_uri,
            "time_limit": asdict(time_limit),  # its clock is that of the machine
        }
        with open_log(next_log(path)) as log, environment:
            before = {number: signal.signal(number, signal.SIG_IGN) for number in _STOP_SIGNALS}
            try:
                return subprocess.Popen(
                    [sys.executable, "-u", "-c", program, str(path), json.dumps(options)], stdout=log, stderr=log
                )
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _release_array(self, path: Path) -> None:
        """Release the array that waits for this canary, or exit as a failed job, which SLURM notices."""
        directory = RunDirectory(path)
        status = directory.status()
        if status.state == "failed":
            raise LaunchError(f"the canary {path.name} failed: {status.reason}")
        if status.state == "interrupted" and status.cause == "step_limit":
            directory.set_status(replace(status, state="queued", cause="", reason=""))

    def _requeue_if_needed(self, end: _AttemptEnd, paths: list[Path]) -> None:
        """Requeue this job, or submit its successor, if the policy says so."""
        job_id = current_job_id()
        ended = not end.stopped_by and not end.killed and not end.device_broken
        if ended or job_id is None or all(is_cancelled(self.folder, path) for path in paths):
            return
        preempted = self._asks_for_the_reason(end, paths) and _was_preempted(job_id)
        if preempted:
            for path in paths:
                reset_starts(self._layout, path)
        action = requeue_action(
            end.stopped_by,
            killed=end.killed,
            preempted=preempted,
            preemption_cancels=self.preemption_cancels,
            device_broken=end.device_broken,
        )
        if action == "resubmit":
            self._submit_successor(job_id, paths)
        elif action == "requeue":
            patiently(lambda: requeue_job(job_id), REQUEUE_PAUSES_SECONDS)

    def _asks_for_the_reason(self, end: _AttemptEnd, paths: list[Path]) -> bool:
        """Return whether it matters why the job was stopped: SLURM may be slow, and the time limit is near.

        SIGUSR2 requeues the job in any case, unless the cluster cancels what it preempts; and a preemption before the
        attempt has begun is no failed start.
        """
        if not end.stopped_by:
            return False
        began = all(attempt_began(self._layout, path) for path in paths)
        return end.stopped_by != signal.SIGUSR2.name or self.preemption_cancels or not began

    def _submit_successor(self, job_id: str, paths: list[Path]) -> None:
        number = job_id.split("_")[0]
        nodes = patiently(lambda: exclude_option(self.exclude, excluded(self._layout.runs_folder)))
        options = [f"--exclude={nodes}"] if nodes else []
        successor = patiently(lambda: resubmit_job(self.folder / f"{number}_submission.sh", job_id, *options))
        pickle, successor_pickle = (self.folder / f"{job}_submitted.pkl" for job in (job_id, successor))
        os.link(pickle, successor_pickle)
        for path in paths:
            with self._layout.claim_path(path.name).open("a") as claim:
                claim.write(f"\n{successor}")
        logger.info(f"job {successor} continues" + (f" without {nodes}" if nodes else ""))


def _note_kill(path: Path, process: subprocess.Popen) -> bool:
    """Write into the status of a run whose process has ended that it was killed; return whether it was."""
    if process.returncode >= 0:
        return False
    directory = RunDirectory(path)
    reason = f"killed by {signal.Signals(-process.returncode).name}"
    directory.set_status(replace(directory.status(), state="interrupted", cause="killed", reason=reason, stopped_by=""))
    return True


def _strongest(signals: Sequence[signal.Signals]) -> str:
    """Return the signal that decides: SIGUSR2, which comes ahead of a time limit, if there is one, else the first."""
    return signal.SIGUSR2.name if signal.SIGUSR2 in signals else signals[0].name if signals else ""


def _was_preempted(job_id: str) -> bool:
    try:
        return patiently(lambda: was_preempted(job_id))
    except LaunchError as error:  # SIGUSR2 then still requeues the job, as before its time limit
        logger.warning(f"SLURM does not say whether this job was preempted: {error}")
        return False


def work_alone(path: str, options_json: str) -> None:
    """Work on one of several runs of a job; its output is already redirected to the run's log."""
    show_messages("stdout")
    options = json.loads(options_json)
    execute_run(
        Path(path),
        options["threads"],
        options["sync"],
        options["tracking_uri"],
        logged=False,
        wait_seconds=DEAD_WRITER_WAIT_SECONDS,
        time_limit=TimeLimit(**options["time_limit"]),
    )
