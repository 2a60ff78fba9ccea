"""More memory for runs that were killed for taking too much: half as much again, up to the profile's limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.launch.claims import Claim, claims_of
from harness.launch.planning import PlannedRun
from harness.slurm.profile import Profile
from harness.text import count

FACTOR = 1.5
RECORD = "memory_gib"
"""The entry of a submission's description: run_key -> {"asked", "said"}, `said` being by the study and the profile."""


@dataclass(frozen=True)
class MemoryRequests:
    """What runs ask for in GiB.

    Attributes:
        said: by the study and the profile, by run_key.
        asked: what is asked for, which is more after a kill.
        raised: the runs whose last kill was for memory and that ask for more now.
        at_limit: those that were killed at the limit of the profile.
    """

    said: dict[str, float] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)
    raised: tuple[str, ...] = ()
    at_limit: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return the entry of the submission's description; empty where memory is not raised."""
        requests = {key: {"asked": asked, "said": self.said[key]} for key, asked in self.asked.items()}
        return {RECORD: requests} if requests else {}

    def applied_to(self, planned: PlannedRun) -> PlannedRun:
        """Return a run that asks for its memory."""
        key, resources = planned.run_key, planned.run.resources
        if self.asked.get(key) == self.said.get(key):
            return planned
        more = resources.model_copy(update={"memory_gib": self.asked[key]})
        return replace(planned, run=replace(planned.run, resources=more))

    def notes(self, limit: float | None) -> list[str]:
        numbers = Counter(self.asked[key] for key in self.raised)
        notes = [
            f"killed for memory before: {count(number, 'run')} with {amount:g} GiB now (max_memory_gib: {limit:g})"
            for amount, number in sorted(numbers.items())
        ]
        if self.at_limit:
            notes.append(
                f"killed for memory at max_memory_gib {limit:g}: {', '.join(self.at_limit)}; raise it, or "
                "set resources.microbatch"
            )
        return notes


def memory_requests(runs: Sequence[PlannedRun], profile: Profile) -> MemoryRequests:
    """Return what runs ask for; empty for a profile without `max_memory_gib`, or with no request in GiB."""
    limit = profile.max_memory_gib
    if limit is None or not runs or profile.memory_request in ("all", "none"):
        return MemoryRequests()
    claims = claims_of(runs[0].path.parent, [planned.run_key for planned in runs])
    said, asked, raised, at_limit = dict[str, float](), dict[str, float](), list[str](), list[str]()
    for planned in runs:
        key = planned.run_key
        said[key] = profile.resolve(planned.run.resources, "memory_gib")
        before = _last_request(claims.get(key, ()), key, said[key])
        asked[key] = max(said[key], before["asked"]) if before["asked"] > before["said"] else said[key]
        if planned.status.cause == "out_of_memory" and asked[key] <= before["asked"]:
            if asked[key] >= limit:
                at_limit.append(key)
            else:
                asked[key] = min(limit, FACTOR * asked[key])
                raised.append(key)
    return MemoryRequests(said, asked, tuple(raised), tuple(at_limit))


def _last_request(claims: Sequence[Claim], key: str, said: float) -> dict[str, float]:
    """Return what a run asked for when it was submitted last; where that is not recorded, what is said now."""
    for claim in reversed(claims):
        entry = claim.submission.get(RECORD, {}).get(key)
        if isinstance(entry, dict) and all(isinstance(entry.get(name), int | float) for name in ("asked", "said")):
            return {name: float(entry[name]) for name in ("asked", "said")}
    return {"asked": said, "said": said}
