"""The time limit of a job: when a training has to begin with its last checkpoint."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

TIME_LIMIT_SIGNAL = "SIGUSR2"
_BEGAN = "HARNESS_JOB_BEGAN"
NOTE_BEGINNING = (f'export {_BEGAN}="$(date +%s)"',)
"""Shell lines of a batch script that note when the job began: modules, containers and imports may take minutes."""


@dataclass(frozen=True)
class TimeLimit:
    """The time limit of the job that this process belongs to.

    Attributes:
        ends_monotonic: when the job is killed, by time.monotonic().
        limit_seconds, lead_seconds: the limit, and how long before it SIGUSR2 comes.
    """

    ends_monotonic: float
    limit_seconds: float
    lead_seconds: float

    @classmethod
    def of_this_job(cls, limit_seconds: float, lead_seconds: float) -> TimeLimit:
        """Return the limit of a job whose batch script noted when it began; of one that did not, as if it began now."""
        began = os.environ.get(_BEGAN, "")
        since = max(0.0, time.time() - int(began)) if began.isdecimal() else 0.0
        return cls(time.monotonic() + limit_seconds - since, limit_seconds, lead_seconds)

    def seconds_left(self) -> float:
        return self.ends_monotonic - time.monotonic()

    def is_near(self, checkpoint_seconds: float) -> bool:
        """Return whether a checkpoint that takes so long should begin now, because SIGUSR2 would come too late."""
        needed = needed_lead_seconds(checkpoint_seconds, self.limit_seconds)
        return needed > self.lead_seconds and needed > self.seconds_left()


def needed_lead_seconds(checkpoint_seconds: float, limit_seconds: float) -> float:
    """Return how long before a time limit a training has to stop, if its checkpoints take so long.

    One may take three times as long when many jobs write at once, but no more than half of the limit is given up.
    """
    return min(3 * checkpoint_seconds + min(15.0, checkpoint_seconds), limit_seconds / 2)
