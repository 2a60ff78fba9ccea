"""What one SLURM job does with its runs, and when it comes back: the requeue policy."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from harness.errors import LaunchError
from harness.launch.claims import is_cancelled
from harness.launch.processes import process_environment, thread_environment, visible_gpus
from harness.launch.states import ATTEMPTS_WITHOUT_PROGRESS, killed_without_progress, repeated_kill_reason
from harness.launch.worker import execute_run
from harness.records.directory import RunDirectory
from harness.slurm.jobs import current_job_id, requeue_job, resubmit_job, was_preempted

CANARY_STEPS = 50


OUTLASTS_A_DEAD_WRITER_SECONDS = 130.0


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
            execute_run(paths[0], self.threads, False, None, **options)
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
        if is_cancelled(self.folder, path):
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
            return repeated_kill_reason(path, ATTEMPTS_WITHOUT_PROGRESS, "before it began", platform.node())
        return None

    def _work_here(self, path: Path) -> str:
        def hear(number: int, _: object) -> NoReturn:
            raise _Told(signal.Signals(number).name)

        for number in (signal.SIGUSR2, signal.SIGTERM):  # until the run listens itself
            signal.signal(number, hear)
        options = {"stop_after_steps": CANARY_STEPS} if self.canary else {}
        wait = OUTLASTS_A_DEAD_WRITER_SECONDS
        try:
            state = execute_run(path, self.threads, self.sync, self.tracking_uri, wait_seconds=wait, **options)
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
            with process_environment(thread_environment(self.threads) | {"CUDA_VISIBLE_DEVICES": gpu}):
                processes[path] = self._begin(path)
        while alive := {path: process for path, process in processes.items() if process.poll() is None}:
            for path, process in alive.items():
                if told or is_cancelled(self.folder, path):
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
        program = "import sys; from harness.launch.slurm_job import work_alone; work_alone(*sys.argv[1:])"
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
        job_id = current_job_id()
        if not told or job_id is None or all(is_cancelled(self.folder, path) for path in paths):
            return
        preempted = told != "killed" and was_preempted(job_id)
        if preempted:
            for path in paths:
                (self.folder / "begun" / path.name).unlink(missing_ok=True)
        if preempted and self.preemption_cancels:
            number = job_id.split("_")[0]
            successor = resubmit_job(self.folder / f"{number}_submission.sh", job_id)
            pickle, its_pickle = (self.folder / f"{one}_submitted.pkl" for one in (job_id, successor))
            os.link(pickle, its_pickle)
            for path in paths:
                with (self.folder / "claims" / path.name).open("a") as claim:
                    claim.write(f"\n{successor}")
            print(f"preempted for good; job {successor} goes on", flush=True)
        elif preempted or told in ("SIGUSR2", "killed"):
            requeue_job(job_id)


def work_alone(path: str, facts: str) -> None:
    """Work on one run of several in a job."""
    options = json.loads(facts)
    wait = OUTLASTS_A_DEAD_WRITER_SECONDS
    execute_run(Path(path), options["threads"], options["sync"], options["tracking_uri"], wait_seconds=wait)


def _heard(path: Path) -> str:
    """Return the signal by which a run was stopped."""
    found = re.match(r"stopped by (SIG\w+)", RunDirectory(path).status().reason)
    return found[1] if found else ""
