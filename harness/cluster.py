"""A SLURM cluster: its facts (slurm/clusters/*.yaml), what we ask of it, and what it says of our jobs. No submitit."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from harness.errors import LaunchError
from harness.spec import Part, Resources
from harness.study import Mark, did_you_mean, parse_yaml


class Profile(Part):
    """The facts of a cluster. What a study says in `resources` goes before what stands here."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time_minutes: int | None = Field(None, ge=1)
    gpus_per_node: int | None = Field(None, ge=0)
    cpus: int | None = Field(None, ge=1)
    memory_gib: float | None = Field(None, gt=0)
    pack: int | None = Field(None, ge=1)
    max_parallel: int = Field(64, ge=1)  # jobs of one array at a time
    max_array_size: int | None = Field(None, ge=1)  # None: what `scontrol show config` says
    modules: tuple[str, ...] = ()  # loaded before the job: cuda/12.4
    setup: tuple[str, ...] = ()  # more shell lines before the job
    scratch: str | None = None  # a folder on the compute node for temporary files; may name $SLURM_JOB_ID
    preempt_mode: Literal["requeue", "cancel"] = "requeue"  # cancel: SLURM ends a preempted job for good
    tracking_uri: str | None = None  # an MLflow server
    compute_nodes_reach_server: bool = False  # else `harness sync --watch` on the login node carries the records

    def need(self, resources: Resources, name: str) -> Any:
        """Return what the study says, else what this cluster gives, else the default."""
        here = getattr(self, name)
        return here if here is not None and name not in resources.model_fields_set else getattr(resources, name)


def load_profile(path: Path) -> Profile:
    """Read a cluster's facts.

    Raises:
        LaunchError: the file cannot be read, or says what a profile cannot hold: `file:line: key: what is wrong`.
        SpecError: it is not plain YAML.
    """
    try:
        value, marks = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(value, dict | None):
        raise LaunchError(f"{path}:1: a profile is a mapping, such as partition: gpu")
    try:
        return Profile.model_validate(value or {})
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = problem["loc"][0]
            what = problem["msg"][0].lower() + problem["msg"][1:]
            if problem["type"] == "extra_forbidden":
                what = f"unknown key; {did_you_mean(str(key), list(Profile.model_fields))}"
            lines.append(f"{marks.get((key,), Mark(str(path), 1))}: {key}: {what}")
        raise LaunchError("\n".join(lines)) from None


def slurm_parameters(resources: Resources, profile: Profile, jobs: int | None = None) -> dict[str, Any]:
    """Return what submitit asks of SLURM for one class of resources; of an array, `jobs` at a time."""
    cpus = max(profile.need(resources, "cpus"), resources.threads or 1)
    gpus, minutes = profile.need(resources, "gpus_per_node"), profile.need(resources, "time_minutes")
    scratch = [f'export TMPDIR="{profile.scratch}"', 'mkdir -p "$TMPDIR"'] if profile.scratch else []
    setup = [*_REQUEUE_THE_KILLED, *(f"module load {module}" for module in profile.modules), *scratch, *profile.setup]
    return {
        "timeout_min": minutes,
        "nodes": resources.nodes,
        "tasks_per_node": resources.num_processes // resources.nodes,
        "cpus_per_task": cpus,
        "gpus_per_node": gpus or None,
        "mem_gb": profile.need(resources, "memory_gib"),
        "slurm_partition": profile.partition,
        "slurm_account": profile.account,
        "slurm_qos": profile.qos,
        "slurm_constraint": profile.constraint,
        "slurm_signal_delay_s": min(90, 6 * minutes),  # before the time limit, to write a checkpoint
        "slurm_array_parallelism": jobs or profile.max_parallel,
        "slurm_setup": setup,
        # Since 22.05 srun does not take the number over from sbatch, and the task would be bound to one core.
        "slurm_srun_args": [f"--cpus-per-task={cpus}"],
        "slurm_additional_parameters": {"requeue": True},  # after a node failure, whatever the cluster's default is
    }


# A task that was killed (out of memory, as a rule) ends its step alone: the batch script lives, and can have the job
# begin again. One that SLURM is ending already, for whatever reason, is no longer RUNNING. An array's last task bears
# the number of the whole array, which must not be requeued for it.
_REQUEUE_THE_KILLED = (
    "harness_requeue_the_killed() {",
    "    local code=$? job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
    "    job=${job:-$SLURM_JOB_ID}",
    '    if [ "$code" -gt 128 ] && scontrol show job "$job" | grep -q "JobState=RUNNING"; then',
    '        echo "killed (exit code $code): requeued" && scontrol requeue "$job"',
    "    fi",
    "}",
    "trap harness_requeue_the_killed EXIT",
)


# ------------------------------------------------------------------------------------------------- what SLURM says


@dataclass(frozen=True)
class Life:
    """One stay of a job on its nodes; a job that is requeued has several."""

    state: str  # PENDING, RUNNING, COMPLETED, OUT_OF_MEMORY, ...
    node: str = ""
    start: str = ""  # local time, 2026-11-22T19:30:05
    end: str = ""
    exit_code: str = ""  # code:signal


@dataclass(frozen=True)
class JobFacts:
    """What SLURM knows of one job, or of one task of an array: its last life, and those before."""

    job_id: str
    state: str
    node: str = ""
    reason: str = ""  # why it waits: Priority, Dependency, ...
    exit_code: str = ""
    start: str = ""
    end: str = ""
    live: bool = False  # waits or runs; SLURM will go on with it by itself
    user: str = ""  # who cancelled it
    lives: tuple[Life, ...] = ()

    @property
    def restarts(self) -> int:
        return max(0, len(self.lives) - 1)

    @property
    def waits(self) -> bool:
        return self.live and self.state not in ("RUNNING", "COMPLETING")

    def how_it_ended(self) -> str:
        """Say `OUT_OF_MEMORY on n1`, `CANCELLED by ada`."""
        by = f" by {self.user}" if self.user else ""
        return f"{self.state}{by}" + (f" on {self.node}" if self.node else "")


def read_queue(job_ids: Iterable[str]) -> dict[str, JobFacts]:
    """Look jobs up in one query each of squeue (what waits and runs) and sacct (what has ended, and earlier lives).

    Args:
        job_ids: `12`, or `12_3` for a task of an array; what SLURM does not know is missing in the answer.

    Raises:
        LaunchError: squeue is not here or does not answer. Without sacct the past is missing, and no more.
    """
    wanted = set(job_ids)
    if not wanted:
        return {}
    found: dict[str, JobFacts] = {}
    arrays = sorted({job_id.split("_")[0] for job_id in wanted}, key=int)
    query = ["sacct", "-X", "-n", "-P", "--duplicates", "--format=JobID,State,NodeList,ExitCode,Start,End"]
    with contextlib.suppress(LaunchError):
        for row in _rows(_ask([*query, f"--jobs={','.join(arrays)}"]), 6):
            job_id, said, node, exit_code, start, end = row
            if job_id in wanted:
                found[job_id] = _another_life(found.get(job_id), job_id, said, node, exit_code, start, end)
    for job_id, state, node, reason, start in _rows(_ask([*_SQUEUE, "--format=%i|%T|%N|%r|%S"]), 5):
        if job_id in wanted:
            before = found.get(job_id, JobFacts(job_id, state))
            # sacct may not have heard of the newest life yet, and keeps the old one's end for a job that waits again.
            found[job_id] = replace(
                before, state=state, node=node, reason=reason, exit_code="", start=start, end="", live=True
            )
    return found


_SQUEUE = ("squeue", "--noheader", "--array", "--me")


def _another_life(
    before: JobFacts | None, job_id: str, said: str, node: str, exit_code: str, start: str, end: str
) -> JobFacts:
    state, _, by = said.partition(" by ")
    life = Life(state, "" if node == "None assigned" else node, _time(start), _time(end), exit_code)
    lives = (*(before.lives if before else ()), life)
    return JobFacts(
        job_id, state, life.node, "", exit_code, life.start, life.end, user=_user(by.strip()) if by else "", lives=lives
    )


def _user(uid: str) -> str:
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError):
        return uid


def _time(said: str) -> str:
    return "" if said in ("Unknown", "None", "N/A") else said


def _rows(text: str, width: int) -> list[list[str]]:
    return [row for line in text.splitlines() if len(row := line.split("|")) == width]


def queued_in_slurm() -> set[str]:
    """Return the user's jobs that wait or run, array tasks one by one.

    Raises:
        LaunchError: squeue does not answer.
    """
    return set(_ask([*_SQUEUE, "--format=%i"]).split())


def max_array_size(profile: Profile) -> int:
    """Return how many tasks an array may have: SLURM limits the index, and ours begins at 0."""
    if profile.max_array_size:
        return profile.max_array_size
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask(["scontrol", "show", "config"]), re.MULTILINE)
    return int(found[1]) if found else 1001  # SLURM's own default


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel exactly these jobs and tasks; those that have ended already do not matter.

    Raises:
        LaunchError: scancel does not answer or refuses.
    """
    for first in range(0, len(job_ids), 500):  # a command line has its limits
        _ask(["scancel", "--quiet", *job_ids[first : first + 500]])


def _ask(command: Sequence[str]) -> str:
    """Return a program's answer.

    Raises:
        LaunchError: it is not here, takes longer than a minute, or refuses.
    """
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        raise LaunchError(f"{command[0]} is not on this machine: ask where SLURM is (a login node)") from None
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{command[0]} did not answer within a minute; SLURM is busy or down: try again") from None
    if answer.returncode != 0:
        raise LaunchError(f"{command[0]} does not answer: {' '.join(answer.stderr.split())[-400:]}")
    return answer.stdout


# ----------------------------------------------------------------------------------------------------- inside a job


def this_job() -> str | None:
    """Return the job that this process belongs to as `12` or `12_3`, None outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def requeue(job_id: str) -> None:
    """Have SLURM begin this job again; it ends the present life at once."""
    _ask(["scontrol", "requeue", job_id])


def was_preempted(job_id: str) -> bool:
    """Tell whether SLURM itself is ending the job to make room, not a person by scancel."""
    found = re.search(r"\bPreemptTime=(\S+)", _ask(["scontrol", "show", "job", job_id]))
    return bool(found and _time(found[1]))


def outside_a_job() -> dict[str, str]:
    """Return the environment as a login shell has it: what SLURM told this job would become the new one's options."""
    told = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_", "PMI")
    return {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or not name.startswith(told)}


def submit_again(script: Path, job_id: str) -> str:
    """Submit the job again as a new one, where SLURM does not requeue what it preempted; return its name.

    Args:
        script: the file that sbatch was given.
        job_id: `12` or `12_3`.
    """
    task = job_id.partition("_")[2]
    command = ["sbatch", "--parsable", *([f"--array={task}"] if task else []), str(script)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=outside_a_job())
    if answer.returncode != 0:
        raise LaunchError(f"sbatch refused the job's successor: {answer.stderr.strip()}")
    number = answer.stdout.split(";")[0].strip()
    return f"{number}_{task}" if task else number
