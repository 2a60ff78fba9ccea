"""Run a short probe job on the cluster and wait for its answer, for `doctor` and `calibrate`.

It is submitted with the settings of the real jobs and starts Python through srun, as they do. It writes its answer to a
file in a folder that login and compute nodes share.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import PACKAGE_ROOT
from harness.errors import LaunchError
from harness.slurm.jobs import cancel_jobs, live_jobs, submit_script
from harness.slurm.profile import REMOVE_SCRATCH, Profile, python_command, slurm_parameters
from harness.spec.resources import Resources

ANSWER = "answer.json"
SETUP_DONE = "setup-done"
POLL_SECONDS = 1.0  # for its answer
MAX_PAUSE_SECONDS = 60.0  # between questions to SLURM
FILE_SYSTEM_SECONDS = 15.0  # NFS clients see each other's new files with a delay


@dataclass(frozen=True)
class ProbeResult:
    """How a probe job ended: with an answer, cancelled after a timeout, or without an answer."""

    job_id: str
    answer: str | None
    state_at_timeout: str = ""  # SLURM's state and reason, where it did not end in time: PENDING (Resources)
    log: str = ""
    setup_failed: bool = False  # the lines of the profile's modules: and setup: ended it


def sbatch_options(resources: Resources, profile: Profile, *, minutes: int | None = None) -> list[str]:
    """Return the options of sbatch that one process of such a run needs on one node.

    Args:
        minutes: a shorter time limit than the run's.
    """
    parameters = slurm_parameters(resources, profile)
    values = {
        "time": min(parameters["timeout_min"], minutes or parameters["timeout_min"]),
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": parameters["cpus_per_task"],
        "wckey": parameters["slurm_wckey"],
        **parameters["slurm_additional_parameters"],
    }
    given = {name: value for name, value in values.items() if value not in (None, False)}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


def run_probe_job(
    module: str,
    folder: Path,
    resources: Resources,
    profile: Profile,
    *,
    minutes: int,
    timeout_seconds: float,
    on_progress: Callable[[str], None] = lambda _: None,
) -> ProbeResult:
    """Run `python -m module FOLDER` as a job and wait for the `answer.json` that it writes there.

    Args:
        folder: on a file system that login and compute nodes share; also takes the script and the log.
        minutes: the job's time limit.
        timeout_seconds: how long to wait before the job is cancelled.
        on_progress: called with each new state.

    Raises:
        LaunchError: SLURM does not accept the job.
    """
    folder = folder.absolute()
    log, answer = folder / "log.txt", folder / ANSWER
    script = _write_script(module, folder, resources, profile)
    options = [*sbatch_options(resources, profile, minutes=minutes), f"--output={log}", f"--job-name={module}"]
    job_id = submit_script(script, *options)
    last_state, begun = "", time.monotonic()
    deadline, next_question = begun + timeout_seconds, begun
    state: str | None = ""
    try:
        while not answer.exists():
            now = time.monotonic()
            if now >= min(next_question, deadline):
                state = _read_state(job_id)
                next_question = now + min(
                    MAX_PAUSE_SECONDS, now - begun
                )  # about ten questions in the first ten minutes
            if state is None:
                answered = _await_answer(answer, log)
                return ProbeResult(job_id, answered, log=_read(log), setup_failed=not (folder / SETUP_DONE).exists())
            if state != last_state:
                on_progress(f"job {job_id}: {state}")
                last_state = state
            if now > deadline:
                return ProbeResult(job_id, None, state_at_timeout=state, log=_read(log))
            time.sleep(POLL_SECONDS)
    finally:
        with contextlib.suppress(LaunchError):  # otherwise its time limit ends it
            cancel_jobs([job_id])
    return ProbeResult(job_id, answer.read_text(), log=_read(log))


def _write_script(module: str, folder: Path, resources: Resources, profile: Profile) -> Path:
    parameters = slurm_parameters(resources, profile)
    srun = shlex.join(["srun", *parameters["slurm_srun_args"]])
    lines = [
        "#!/bin/bash",
        *parameters["slurm_setup"],
        f": >{shlex.quote(str(folder / SETUP_DONE))}",
        f"export PYTHONPATH={shlex.quote(str(PACKAGE_ROOT))}:$PYTHONPATH",
        f"trap {shlex.quote(REMOVE_SCRATCH)} EXIT",
        f"{srun} {python_command(profile)} -m {module} {shlex.quote(str(folder))}",
    ]
    script = folder / "job.sh"
    script.write_text("\n".join(lines) + "\n")
    return script


def _await_answer(answer: Path, log: Path) -> str | None:
    """Wait until the file system shows the answer of a job that has ended; None if there is none."""
    deadline = time.monotonic() + FILE_SYSTEM_SECONDS
    while time.monotonic() < deadline:
        os.listdir(answer.parent)  # noqa: PTH208 (makes an NFS client refresh)
        if answer.exists():
            return answer.read_text()
        if _read(log):  # its log is here, so its answer would be too
            break
        time.sleep(POLL_SECONDS)
    return None


def _read_state(job_id: str) -> str | None:
    """Return SLURM's state of a job, with the reason for it if SLURM gives one; None if it has ended."""
    try:
        job = live_jobs().get(job_id)
    except LaunchError:  # a busy controller does not mean that the job has ended
        return "UNKNOWN (squeue does not answer)"
    if job is None:
        return None
    return job.state if job.reason in ("", "None") else f"{job.state} ({job.reason})"


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""
