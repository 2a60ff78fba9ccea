"""Cores, GPUs and variables of the processes that we start. The only file that imports submitit."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def make_executor(
    folder: Path, cluster: str, *, max_time_limits: int | None = None, python: str | None = None, **parameters: Any
) -> Any:
    """Return submitit's executor.

    Args:
        max_time_limits: how often a job of SLURM may reach its time limit and be requeued; None: submitit's default.
        python: how a job of SLURM starts Python, as words of shell; None: this interpreter.
    """
    import submitit

    options = {"slurm_max_num_timeout": max_time_limits, "slurm_python": python}
    given = {name: value for name, value in options.items() if value is not None}
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **given)
    executor.update_parameters(stderr_to_stdout=True, **parameters)
    if cluster == "slurm" and parameters.get("slurm_wckey") is None:
        # It takes None for "not set", and then writes --wckey=submitit, which is refused where wckeys are enforced.
        executor._executor.update_parameters(wckey=None)
    return executor


def batch_script(folder: Path, num_jobs: int, **parameters: Any) -> str:
    """Return the batch script by which submitit submits an array.

    Args:
        parameters: of `make_executor`.
    """
    from submitit.slurm.slurm import _make_sbatch_string

    executor = make_executor(folder, "slurm", **parameters)._executor
    command = executor._submitit_command_str
    script: str = _make_sbatch_string(command=command, folder=folder, map_count=num_jobs, **executor.parameters)
    return script


def unusable_path(folder: Path, cluster: str) -> str:
    """Return why jobs cannot be started from a folder of this path, "" if they can.

    Its path becomes part of PYTHONPATH, of submitit's patterns of file names, and on SLURM of sbatch's.
    """
    path = str(folder.absolute())
    refused = {} if cluster == "debug" else {os.pathsep: "separates the folders of PYTHONPATH"}
    refused |= dict.fromkeys(("%j", "%t", "%A", "%a"), "stands for a job's number in the names of its files")
    if cluster == "slurm":
        refused |= {"%": "begins a pattern in SLURM's file names", "\\": "switches off patterns in SLURM's file names"}
        refused |= {character: "ends a line of a batch script" for character in "\n\r"}
    reasons = [f"{part!r} {why}" for part, why in refused.items() if part in path]
    if not reasons:
        return ""
    return (
        f"jobs cannot be started from {path!r}: {'; '.join(reasons)}. Choose another folder by --runs or HARNESS_RUNS"
    )


def available_cores() -> int:
    """Return the number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Return the GPUs by the names that CUDA_VISIBLE_DEVICES takes, without loading torch."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name.strip() for name in listed.split(",") if name.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.split() if answer.returncode == 0 else []


def thread_environment(threads: int) -> dict[str, str]:
    """Return the variables that set the libraries' number of threads; libraries read them once, when they load."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


@contextlib.contextmanager
def process_environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables for processes started within the block; None removes one."""
    before = {name: os.environ.get(name) for name in variables}
    for name, value in variables.items():
        set_or_unset(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            set_or_unset(name, value)


def set_or_unset(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
