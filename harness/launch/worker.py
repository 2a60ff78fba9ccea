"""Work through a queue of run directories."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.launch.claims import LOG_MARK, is_cancelled
from harness.launch.processes import set_or_unset


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
            set_or_unset("CUDA_VISIBLE_DEVICES", self.gpu)  # which submitit has emptied
        for path in self.queue:
            if stopping.is_set():
                return
            if is_cancelled(self.folder, path):
                continue
            with contextlib.suppress(FileExistsError):
                with (self.folder / "claims" / path.name).open("x") as claim:
                    claim.write(job_id)
                state = execute_run(path, self.threads, self.sync, self.tracking_uri)
                if state == "interrupted" and not is_cancelled(self.folder, path):
                    return


def execute_run(path: Path, threads: int, sync: bool, tracking_uri: str | None, **options: Any) -> str:
    """Work on one run and return its state; what goes wrong in it stays in it, and in the log."""
    print(f"{LOG_MARK} {path.name} {time.strftime('%Y-%m-%d %H:%M:%S')}", flush=True)
    try:
        from harness.job.job import work

        state = work(path, threads=threads, tracking_uri=tracking_uri, sync=sync, **options)
    except HarnessError as error:  # as a rule: another submission works on it, and it is left alone
        print(error, flush=True)
        return "left alone"
    except Exception:
        traceback.print_exc()
        return "failed"
    print(f"{path.name} is {state}", flush=True)
    return state
