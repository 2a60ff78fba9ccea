"""What a study's jobs asked for against what they used, and the requests that would fit.

SLURM's accounting tells it by job. Where there is none, the runs' own gauges do (`system/...` in their journals).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from harness.errors import LaunchError, RecordError
from harness.launch.claims import Claim, claims_of
from harness.records.directory import RunDirectory
from harness.records.journal import parse_line
from harness.records.manifest import Manifests
from harness.records.reading import read_bytes
from harness.slurm.profile import Profile, pack_of, slurm_parameters
from harness.slurm.usage import JobUsage, read_usage
from harness.spec.resources import Resources

NEAR_THE_LIMIT = 0.9  # of the time: a run that goes on after its time limit needs no longer one
SHORTEST_MINUTES = 11  # up to 10, submitit takes every preemption for a timeout
ROOM = {"memory_gib": 1.3, "time_minutes": 1.5, "cpus": 1.2}
"""How much more than was used is asked for, so that a run that differs a little fits, too."""
WORTH_CHANGING = 1.5
"""A request is called too large from this multiple of what would fit."""


@dataclass(frozen=True)
class Request:
    """What each job of a group asks for; memory, cores and GPUs of a node.

    Attributes:
        time_minutes: infinite where there is no limit.
        processes: of a node, of all runs that share the job.
        pack: runs that share the job.
    """

    time_minutes: float
    memory_gib: float | None
    cores: int
    gpus: int
    nodes: int = 1
    processes: int = 1
    pack: int = 1


@dataclass(frozen=True)
class Gauges:
    """What one run's own process has measured of itself; None where it measured nothing.

    Attributes:
        seconds: of its attempts.
        cores: that it kept busy on average.
    """

    seconds: tuple[float, ...] = ()
    peak_memory_gib: float | None = None
    cores: float | None = None
    gpu_percent: float | None = None
    gpu_memory_gib: float | None = None


@dataclass(frozen=True)
class Use:
    """Jobs of one request and what they used; of a node, as the request; None where it is not known.

    Attributes:
        jobs: how many there were, each perhaps several times.
        device_hours: that they held: of GPUs, without one of processes.
        longest_seconds: of the executions that came to an end.
        cores: that were busy on average.
        memory_kills: how often SLURM ended one for its memory.
        source: accounting or gauges.
    """

    arms: tuple[str, ...]
    request: Request
    jobs: int
    device_hours: float
    longest_seconds: float
    peak_memory_gib: float | None
    cores: float | None
    gpu_percent: float | None
    gpu_memory_gib: float | None
    memory_kills: int
    source: str

    def fits(self) -> dict[str, float]:
        """Return the fields of `resources`, or of a profile, that should change, with the values that would fit.

        Of jobs that were killed for their memory no more than the memory is known to be wrong.
        """
        if self.memory_kills:
            return {"memory_gib": memory} if (memory := self._memory()) else {}
        return {
            name: value
            for name, value in (
                ("memory_gib", self._memory()),
                ("time_minutes", self._minutes()),
                ("cpus", self._cpus()),
                ("pack", self._pack()),
            )
            if value is not None
        }

    def _memory(self) -> float | None:
        asked, peak = self.request.memory_gib, self.peak_memory_gib
        if asked is None:
            return None
        if self.memory_kills:
            return _rounded(asked * WORTH_CHANGING, 0.5)
        if peak is None:
            return None
        fitting = _rounded(ROOM["memory_gib"] * peak, 0.5 if peak < 8 else 1.0)
        return fitting if asked >= WORTH_CHANGING * fitting or asked < 1.1 * peak else None

    def _minutes(self) -> float | None:
        limit, longest = self.request.time_minutes, self.longest_seconds / 60
        if not longest or longest >= NEAR_THE_LIMIT * limit:
            return None
        step = 5 if longest < 60 else 30 if longest < 720 else 60
        fitting = max(SHORTEST_MINUTES, _rounded(ROOM["time_minutes"] * longest, step))
        return fitting if math.isfinite(limit) and limit >= WORTH_CHANGING * fitting else None

    def _cpus(self) -> float | None:
        """Return the cores of a process, or of a job that several runs share."""
        if self.cores is None:
            return None
        tasks = max(1, self.request.processes // self.request.pack)
        fitting = max(1, math.ceil(ROOM["cpus"] * self.cores / tasks))
        return fitting if self.request.cores / tasks >= WORTH_CHANGING * fitting else None

    def _pack(self) -> float | None:
        """Return how many runs could share a GPU, if one leaves most of it idle."""
        if self.gpu_percent is None or self.request.gpus != 1 or self.request.processes > self.request.pack:
            return None
        fitting = self.request.pack * math.floor(90 / max(self.gpu_percent, 10))
        return fitting if fitting >= 2 * self.request.pack else None


def efficiency(directories: Sequence[RunDirectory], study: str | None = None) -> list[Use]:
    """Return what the jobs of some runs asked for and used, by request.

    Args:
        directories: of runs in one folder.
        study: whose arms are named; None: the first that each run belongs to.
    """
    if not directories:
        return []
    runs_folder = directories[0].path.parent
    claims = claims_of(runs_folder, [directory.key for directory in directories])
    manifests = Manifests(runs_folder)
    runs = [_Run.of(directory, manifests, claims.get(directory.key, []), study) for directory in directories]
    by_job: dict[str, list[_Run]] = {}
    for run in runs:
        for job_id in run.job_ids:
            by_job.setdefault(job_id, []).append(run)
    try:
        usages = [usage for usage in read_usage(by_job) if usage.ended] if by_job else []
    except LaunchError:
        usages = []
    accounted = {usage.job_id for usage in usages}
    others = [run for run in runs if run.gauges.seconds and not accounted.intersection(run.job_ids)]
    return [*_by_accounting(usages, by_job), *_by_gauges(others)]


@dataclass(frozen=True)
class _Run:
    """A run as far as it matters here; `request` is the one that its newest submission would have made."""

    directory: RunDirectory
    arm: str
    request: Request
    job_ids: tuple[str, ...]
    gauges: Gauges = field(default_factory=Gauges)

    @classmethod
    def of(cls, directory: RunDirectory, manifests: Manifests, claims: Sequence[Claim], study: str | None) -> _Run:
        asked, earlier = manifests.split(directory)
        memberships = {**earlier, **asked}
        membership = memberships.get(study or "", next(iter(memberships.values()), {}))
        on_slurm = [claim for claim in claims if claim.on_slurm]
        profile = on_slurm[-1].submission.get("profile", {}) if on_slurm else {}
        job_ids = tuple(job_id for claim in on_slurm for job_id in claim.jobs)
        request = _stored_request(membership.get("resources", {}), profile)
        return cls(directory, membership.get("arm", ""), request, job_ids, read_gauges(directory))


def _stored_request(resources: Mapping[str, Any], profile: Mapping[str, Any]) -> Request:
    """Return what a run was submitted with; a resource that equals its default is taken as left to the profile."""
    defaults = Resources().model_dump(mode="json")
    said = {name: value for name, value in resources.items() if value != defaults.get(name)}
    try:
        return _request(Resources.model_validate(said), Profile.model_validate(profile))
    except ValidationError:  # of a version with other fields, or damaged
        return _request(Resources(), Profile())


def _request(resources: Resources, profile: Profile) -> Request:
    parameters, pack = slurm_parameters(resources, profile), pack_of(resources, profile)
    return Request(
        parameters["timeout_min"],
        profile.resolve(resources, "memory_gib") if profile.memory_request in ("mem", "mem-per-cpu") else None,
        parameters["cpus_per_task"] * parameters["tasks_per_node"],
        profile.gpus(resources)[0],
        resources.nodes,
        parameters["tasks_per_node"] * pack,
        pack,
    )


# ------------------------------------------------------------------------------------------------------------- sources


def _by_accounting(usages: Sequence[JobUsage], by_job: Mapping[str, Sequence[_Run]]) -> list[Use]:
    groups: dict[Request, list[JobUsage]] = {}
    for usage in usages:
        of_run = by_job[usage.job_id][0].request
        request = Request(
            usage.limit_seconds / 60,
            usage.memory_gib,
            usage.cores // usage.nodes,
            usage.gpus // usage.nodes,
            usage.nodes,
            of_run.processes,
            of_run.pack,
        )
        groups.setdefault(request, []).append(usage)
    uses = []
    for request, members in groups.items():
        runs = list({run.directory.key: run for usage in members for run in by_job[usage.job_id]}.values())
        held = sum(usage.elapsed_seconds for usage in members)
        devices = (request.gpus or max(1, request.processes // request.pack)) * request.nodes
        core_seconds = sum(usage.elapsed_seconds * usage.cores for usage in members)
        share = sum(usage.cpu_seconds for usage in members) / core_seconds if core_seconds else None
        uses.append(
            Use(
                _arms(runs),
                request,
                len({usage.job_id for usage in members}),
                held * devices / 3600,
                max(usage.elapsed_seconds for usage in members),
                _largest(usage.peak_memory_gib for usage in members),
                None if share is None else share * request.cores,
                _mean(run.gauges.gpu_percent for run in runs),
                _largest(run.gauges.gpu_memory_gib for run in runs),
                max(
                    sum(usage.killed_for_memory for usage in members),
                    sum(run.directory.status().cause == "out_of_memory" for run in runs),
                ),
                "accounting",
            )
        )
    return uses


def _by_gauges(runs: Sequence[_Run]) -> list[Use]:
    groups: dict[Request, list[_Run]] = {}
    for run in runs:
        groups.setdefault(run.request, []).append(run)
    uses = []
    for request, members in groups.items():
        memory, cores = (
            _largest(run.gauges.peak_memory_gib for run in members),
            _mean(run.gauges.cores for run in members),
        )
        held = sum(sum(run.gauges.seconds) for run in members)
        devices = (request.gpus or max(1, request.processes // request.pack)) * request.nodes / request.pack
        uses.append(
            Use(
                _arms(members),
                request,
                len(members),
                held * devices / 3600,
                max(max(run.gauges.seconds) for run in members),
                None if memory is None else memory * request.processes,
                None if cores is None else cores * request.processes,
                _mean(run.gauges.gpu_percent for run in members),
                _largest(run.gauges.gpu_memory_gib for run in members),
                sum(run.directory.status().cause == "out_of_memory" for run in members),
                "gauges",
            )
        )
    return uses


def read_gauges(directory: RunDirectory) -> Gauges:
    """Read what a run's process has measured of itself and its GPU, in all attempts."""
    seconds, values = [], dict[str, list[float]]()
    for path in directory.journal_paths():
        try:
            lines = read_bytes(path).split(b"\n")[:-1]
        except RecordError:  # `why` and `status` say what is wrong with it
            continue
        ends = [entry["ms"] for line in (*lines[:1], *lines[-1:]) if (entry := parse_line(line))]
        if len(ends) == 2:
            seconds.append((ends[1] - ends[0]) / 1000)
        for line in lines:
            if b'"system/' in line and (entry := parse_line(line)):
                for key, value in entry.get("metrics", {}).items():
                    values.setdefault(key, []).append(value)
    busy = _mean(values.get("system/process_cpu_percent", ()))
    return Gauges(
        tuple(seconds),
        _largest(values.get("system/process_memory_gib", ())),
        None if busy is None else busy / 100,
        _mean(values.get("system/gpu_utilization_percent", ())),
        _largest(values.get("system/gpu_memory_used_gib", ())),
    )


def _arms(runs: Iterable[_Run]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(run.arm for run in runs))


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _rounded(value: float, step: float) -> float:
    """Round up to a multiple of a step."""
    return math.ceil(value / step - 1e-9) * step
