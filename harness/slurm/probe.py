"""An errand: one short job on the cluster that somebody waits for, such as `doctor`'s look around a compute node.

It is submitted with the settings of the real jobs and starts Python through srun, as theirs do. It leaves its answer as
a file in a folder that both sides see.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import PACKAGE_ROOT
from harness.errors import LaunchError
from harness.slurm.profile import Profile, slurm_parameters
from harness.spec.resources import Resources

ANSWER = "answer.json"
POLL_SECONDS = 1.0
FILE_SYSTEM_SECONDS = 15.0  # NFS clients see each other's new files after a while


@dataclass(frozen=True)
class ProbeResult:
    """How it ended: with an answer, still waiting or working when our patience was over, or without a word."""

    job_id: str
    answer: str | None
    waited_for: str = ""  # SLURM's state and reason, where it did not end in time: PENDING (Resources)
    log: str = ""


def sbatch_options(resources: Resources, profile: Profile, *, minutes: int | None = None) -> list[str]:
    """Return the options of sbatch that one process of such a run needs on one node."""
    asked: dict[str, Any] = slurm_parameters(resources, profile)
    values = {
        "time": min(asked["timeout_min"], minutes or asked["timeout_min"]),
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": asked["cpus_per_task"],
        "gpus-per-node": asked["gpus_per_node"],
        "mem": f"{round(1024 * asked['mem_gb'])}M",
        "partition": asked["slurm_partition"],
        "account": asked["slurm_account"],
        "qos": asked["slurm_qos"],
        "constraint": asked["slurm_constraint"],
    }
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def run_probe_job(
    module: str,
    folder: Path,
    resources: Resources,
    profile: Profile,
    *,
    minutes: int,
    timeout_seconds: float,
    told: Callable[[str], None] = lambda _: None,
) -> ProbeResult:
    """Run `python -m module FOLDER` as a job and wait for the `answer.json` that it writes there.

    Args:
        folder: on a file system that login and compute nodes share; also takes the script and the log.
        minutes: the job's time limit.
        timeout_seconds: how long to wait; then the job is cancelled.
        told: called with each new state, for people who watch.

    Raises:
        LaunchError: SLURM does not take the job.
    """
    folder = folder.absolute()
    log, answer = folder / "log.txt", folder / ANSWER
    asked = slurm_parameters(resources, profile)
    start = ["srun", *asked["slurm_srun_args"], sys.executable, "-m", module, str(folder)]
    lines = [
        "#!/bin/bash",
        *(asked["slurm_setup"] or []),
        f"export PYTHONPATH={shlex.quote(str(PACKAGE_ROOT))}:$PYTHONPATH",
    ]
    script = folder / "job.sh"
    script.write_text("\n".join([*lines, shlex.join(start)]) + "\n")
    options = [*sbatch_options(resources, profile, minutes=minutes), f"--output={log}", f"--job-name={module}"]
    done = _ask("sbatch", "--parsable", *options, str(script))
    if done.returncode:
        raise LaunchError(f"SLURM does not take a job: {' '.join(done.stderr.split())}")
    job_id = done.stdout.strip().split(";")[0]
    state, ends = "", time.monotonic() + timeout_seconds
    try:
        while not answer.exists():
            now = _state(job_id)
            if now is None:
                return _ended(job_id, answer, log)
            if now != state:
                told(f"job {job_id}: {now}")
                state = now
            if time.monotonic() > ends:
                return ProbeResult(job_id, None, waited_for=state, log=_read(log))
            time.sleep(POLL_SECONDS)
    finally:
        _ask("scancel", job_id)
    return ProbeResult(job_id, answer.read_text(), log=_read(log))


def _ended(job_id: str, answer: Path, log: Path) -> ProbeResult:
    ends = time.monotonic() + FILE_SYSTEM_SECONDS
    while time.monotonic() < ends:
        os.listdir(answer.parent)  # noqa: PTH208 (has an NFS client look again)
        if answer.exists():
            return ProbeResult(job_id, answer.read_text(), log=_read(log))
        if _read(log):  # its last words are here, so its answer would be too
            break
        time.sleep(POLL_SECONDS)
    return ProbeResult(job_id, None, log=_read(log))


def _state(job_id: str) -> str | None:
    """Return where the job stands in SLURM's words, None when it has ended."""
    done = _ask("squeue", "--noheader", f"--jobs={job_id}", "--states=all", "--format=%T (%r)")
    if done.returncode and "Invalid job id" not in done.stderr:
        return "UNKNOWN (squeue does not answer)"  # a busy controller says nothing of the job
    state = done.stdout.strip()
    working = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "PREEMPTED")
    return state if state.startswith(working) else None


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        raise LaunchError(f"{command[0]} is not here: run this on the cluster's login node") from None
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{command[0]} does not answer within a minute") from None
