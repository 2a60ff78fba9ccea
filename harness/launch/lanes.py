"""Keep a limit on the jobs that run at a time over several arrays: SLURM limits each array by itself.

A lane is a share of the limit, and the shares of all lanes add up to no more than the limit. The arrays of one lane
come one after another: each depends on the end of the one before it. Earlier submissions of the study count while SLURM
has jobs of theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.launch.claims import read_submission
from harness.records.layout import submission_folders


@dataclass
class Lane:
    """A share of the limit, and what has it already."""

    share: int
    last: str = ""  # the number of its last array; empty: it has none yet
    jobs: int = 0  # of its arrays


@dataclass
class Lanes:
    """The lanes of a study.

    Attributes:
        limit: how many jobs may run at a time.
    """

    limit: int
    lanes: list[Lane] = field(default_factory=list)

    def place(self, size: int, rest: int) -> Lane:
        """Return a lane for an array: a new one, or the one that comes to its end first.

        Args:
            size: the array's jobs.
            rest: jobs that are still to be submitted, those of the array included, among which the limit is divided.
        """
        free = self.limit - sum(lane.share for lane in self.lanes)
        if free > 0:
            return Lane(max(1, min(size, free * size // rest)))
        return min(self.lanes, key=lambda lane: lane.jobs / lane.share)

    def add(self, lane: Lane, number: str, size: int) -> None:
        """Note that SLURM has accepted an array in a lane."""
        if not lane.last:
            self.lanes.append(lane)
        lane.last, lane.jobs = number, lane.jobs + size


def lanes_of(arrays: Mapping[str, tuple[int, str]], queued: Mapping[str, int], limit: int) -> Lanes:
    """Return the lanes that earlier submissions still use.

    Args:
        arrays: number -> its share, and the number of the array that it comes after, if any.
        queued: number -> jobs that SLURM has of it.
    """
    lanes = Lanes(limit)
    of_array: dict[str, Lane] = {}
    for number in sorted(arrays.keys() & queued.keys(), key=int):
        share, before = arrays[number]
        lane = of_array.get(before) or Lane(min(share, queued[number]))
        lanes.add(lane, number, queued[number])
        lane.share = max(lane.share, min(share, queued[number]))
        of_array[number] = lane
    return lanes


def earlier_arrays(runs_folder: Path, study: str, present: Path) -> dict[str, tuple[int, str]]:
    """Return the arrays of a study's earlier submissions: number -> share, and the number that it comes after.

    Args:
        present: the folder of the submission that is being made; its description is not complete yet.
    """
    arrays: dict[str, tuple[int, str]] = {}
    for folder in submission_folders(runs_folder, study):
        if folder.absolute() == present:
            continue
        for number, (share, before) in read_submission(folder).get("arrays", {}).items():
            arrays[number] = int(share), str(before)
    return arrays


def count_arrays(job_ids: Iterable[str]) -> Counter[str]:
    """Count jobs by the number of their array."""
    return Counter(job_id.split("_")[0] for job_id in job_ids)
