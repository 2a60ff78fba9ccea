"""Work through a queue of run directories."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from harness.errors import HarnessError
from harness.job.endings import record_failure
from harness.launch.claims import is_cancelled
from harness.launch.processes import set_or_unset
from harness.messages import show_messages
from harness.records.directory import RunDirectory
from harness.records.layout import SubmissionLayout

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worker:
    """Work through a queue of run directories: claim one, work on it until it ends, take the next.

    A claim is valid within one submission, so that a run that fails is not tried again by the next worker; the run's
    lock excludes other submissions.
    """

    queue: tuple[Path, ...]
    folder: Path
    threads: int
    gpu: str | None = None  # CUDA_VISIBLE_DEVICES
    sync: bool = True
    tracking_uri: str | None = None

    def left(self) -> list[Path]:
        """Return the runs of the queue that no worker has taken yet, and that are not cancelled."""
        layout = SubmissionLayout(self.folder)
        return [
            path
            for path in self.queue
            if not layout.claim_path(path.name).exists() and not is_cancelled(self.folder, path)
        ]

    def __call__(self, job_id: str | None = None) -> None:
        stopping = threading.Event()
        logged = job_id is None  # a debugger needs the terminal
        if job_id is None:
            job_id = os.environ["SUBMITIT_LOCAL_JOB_ID"]
            signal.signal(signal.SIGTERM, lambda *_: stopping.set())  # between two runs; submitit would ignore it
            set_or_unset("CUDA_VISIBLE_DEVICES", self.gpu)  # which submitit has emptied
        show_messages("stdout")
        for path in self.queue:
            if stopping.is_set():
                return
            if is_cancelled(self.folder, path):
                continue
            with contextlib.suppress(FileExistsError):
                with SubmissionLayout(self.folder).claim_path(path.name).open("x") as claim:
                    claim.write(job_id)
                state = execute_run(path, self.threads, self.sync, self.tracking_uri, logged=logged)
                killed = RunDirectory(path).status().cause == "killed"  # one of its processes; this one may go on
                if state == "interrupted" and not killed and not is_cancelled(self.folder, path):
                    return


def execute_run(
    path: Path, threads: int, sync: bool, tracking_uri: str | None, *, logged: bool = True, **options: Any
) -> str:
    """Work on one run and return its state; errors are recorded in the run and in its log.

    Args:
        logged: whether output is redirected to the log of the run's next attempt, in its directory.
    """
    with printing_to(next_log(path)) if logged else contextlib.nullcontext():
        place = f"{platform.node()}, process {os.getpid()}"
        logger.info(f"{time.strftime('%Y-%m-%d %H:%M:%S')} run {path.name} on {place}")
        try:
            from harness.job.job import run_job

            state = run_job(path, threads=threads, tracking_uri=tracking_uri, sync=sync, **options)
        except HarnessError as error:  # usually because another submission is working on it
            logger.warning(error)
            return "skipped"
        except Exception as error:  # for example, torch or the run's own code cannot be imported
            record_failure(path, error, attempt=False)
            return "failed"
        logger.info(f"{path.name} is {state}")
        return state


def next_log(path: Path) -> Path:
    """Return the log of a run's next attempt; it also takes the output of starts that end before the attempt."""
    directory = RunDirectory(path)
    return directory.log_path(max(directory.attempts(), default=0) + 1)


@contextlib.contextmanager
def printing_to(path: Path) -> Iterator[None]:
    """Append the output of this process, its libraries and its children to a file, within the block."""
    try:
        log = open_log(path)
    except OSError as error:  # the disk is full: continue without a log
        logger.warning(f"{path}: cannot be written: {error.strerror}")
        yield
        return
    _flush()
    before = [(number, os.dup(number)) for number in (1, 2)]
    with log:
        for number, _ in before:
            os.dup2(log.fileno(), number)
    try:
        yield
    finally:
        _flush()
        for number, copy in before:
            os.dup2(copy, number)
            os.close(copy)


def open_log(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
