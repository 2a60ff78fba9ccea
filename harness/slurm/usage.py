"""What jobs asked for and what they used, from SLURM's accounting."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.slurm.cluster import parse_time_limit
from harness.slurm.commands import run_slurm
from harness.slurm.jobs import JOBS_PER_COMMAND

COLUMNS = ("JobID", "JobIDRaw", "State", "ElapsedRaw", "Timelimit", "TotalCPU", "AllocCPUS", "ReqMem", "MaxRSS")
MORE_COLUMNS = ("AllocTRES", "NNodes", "NTasks")


@dataclass(frozen=True)
class JobUsage:
    """What one execution of a job, or of a task of an array, asked for and used.

    Attributes:
        limit_seconds: infinite where there is none.
        cpu_seconds: of all its processes.
        cores, gpus: of all nodes.
        memory_gib: asked for on each node; None if SLURM does not say.
        peak_memory_gib: the most that it used on a node; None if SLURM has not sampled it.
    """

    job_id: str
    state: str
    elapsed_seconds: float
    limit_seconds: float
    cpu_seconds: float
    cores: int
    gpus: int
    nodes: int
    memory_gib: float | None
    peak_memory_gib: float | None = None
    out_of_memory: bool = False  # SLURM says that it ended it, or one of its steps, for its memory

    @property
    def killed_for_memory(self) -> bool:
        """Whether SLURM ended it for its memory: 22.05 does not say so, but then it did not end well, and had more."""
        over = bool(self.memory_gib and self.peak_memory_gib and self.peak_memory_gib >= self.memory_gib)
        return self.out_of_memory or (over and self.state != "COMPLETED")

    @property
    def ended(self) -> bool:
        return self.state not in ("RUNNING", "PENDING", "SUSPENDED", "COMPLETING")


def read_usage(job_ids: Iterable[str]) -> list[JobUsage]:
    """Return the executions of jobs that have started, the oldest first.

    Args:
        job_ids: `12`, or `12_3` for a task; of an array that is named, only these tasks.

    Raises:
        LaunchError: sacct does not answer; a cluster without slurmdbd has none.
    """
    requested = set(job_ids)
    numbers = sorted({number for job_id in requested if (number := job_id.split("_")[0]).isdecimal()}, key=int)
    columns = f"--format={','.join((*COLUMNS, *MORE_COLUMNS))}"
    usages: list[JobUsage] = []
    for first in range(0, len(numbers), JOBS_PER_COMMAND):
        jobs = f"--jobs={','.join(numbers[first : first + JOBS_PER_COMMAND])}"
        usages += parse_usage(run_slurm("sacct", "--noheader", "--parsable2", "--duplicates", columns, jobs))
    return [usage for usage in usages if usage.job_id in requested]


def parse_usage(table: str) -> list[JobUsage]:
    """Parse sacct's lines: of each execution one of its allocation, followed by those of its steps."""
    usages: list[JobUsage] = []
    for line in table.splitlines():
        cells = line.split("|")
        if len(cells) != len(COLUMNS) + len(MORE_COLUMNS):
            continue  # a warning
        row = dict(zip((*COLUMNS, *MORE_COLUMNS), cells, strict=True))
        job_id, _, step = row["JobID"].partition(".")
        if not step:
            usages.append(_allocation(row))
        elif usages and usages[-1].job_id == job_id:
            usages[-1] = _with_step(usages[-1], row)
    return [usage for usage in usages if usage.elapsed_seconds]


def _with_step(usage: JobUsage, row: dict[str, str]) -> JobUsage:
    tasks_of_node = math.ceil(_number(row["NTasks"]) / max(1, _number(row["NNodes"])))
    memory = (parse_memory(row["MaxRSS"]) or 0) * max(1, tasks_of_node)
    return replace(
        usage,
        peak_memory_gib=max(memory, usage.peak_memory_gib or 0) or None,
        out_of_memory=usage.out_of_memory or row["State"] == "OUT_OF_MEMORY",
    )


def _allocation(row: dict[str, str]) -> JobUsage:
    resources = dict(entry.split("=", 1) for entry in row["AllocTRES"].split(",") if "=" in entry)
    nodes = max(1, _number(row["NNodes"]))
    memory = parse_memory(resources.get("mem", ""))
    return JobUsage(
        row["JobID"],
        row["State"].split(" ")[0],  # CANCELLED by 1000
        _number(row["ElapsedRaw"]),
        60 * parse_time_limit(row["Timelimit"] if row["Timelimit"] != "Partition_Limit" else ""),
        parse_cpu_seconds(row["TotalCPU"]),
        _number(row["AllocCPUS"]),
        _number(resources.get("gres/gpu", "0")),
        nodes,
        memory / nodes if memory else parse_memory(row["ReqMem"]),
        out_of_memory=row["State"] == "OUT_OF_MEMORY",
    )


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def parse_memory(text: str) -> float | None:
    """Parse an amount of memory of SLURM's into GiB: 317976K, 1000M, 4G, 4Gn; None where there is none."""
    match = re.fullmatch(r"([\d.]+)([KMGT]?)[nc]?", text)
    if not match or not float(match[1]):
        return None
    return float(match[1]) * {"K": 2**-20, "M": 2**-10, "G": 1, "T": 2**10, "": 2**-30}[match[2]]


def parse_cpu_seconds(text: str) -> float:
    """Parse a processor time of SLURM's into seconds: 00:00.113, 01:02:03, 1-00:00:00."""
    days, _, clock = text.rpartition("-")
    seconds = 0.0
    for part in _floats(clock.split(":")):
        seconds = 60 * seconds + part
    return 86400 * _number(days) + seconds


def _floats(parts: Sequence[str]) -> list[float]:
    return [float(part) if part.replace(".", "", 1).isdecimal() else 0.0 for part in parts]
