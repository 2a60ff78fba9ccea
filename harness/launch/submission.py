"""A submission, and how to wait for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import LaunchError
from harness.launch.planning import PlannedRun, planned_run
from harness.launch.states import read_run_states


class Refused(LaunchError):
    """SLURM refused jobs: for a limit, or for good."""


@dataclass
class Submission:
    """What was submitted: the runs, and the folder of logs and jobs.

    Attributes:
        left: runs that SLURM did not accept, because it takes no more jobs at present.
        refusal: what SLURM said when it refused.
    """

    runs: list[PlannedRun]
    folder: Path
    jobs: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left: list[PlannedRun] = field(default_factory=list)
    refusal: str = ""

    def now(self) -> list[PlannedRun]:
        """Return each submitted run with its current state."""
        states = read_run_states([planned.path for planned in self.runs])
        return [planned_run(planned.run, planned.path, states) for planned in self.runs]

    def unfinished(self) -> list[PlannedRun]:
        return [planned for planned in self.now() if planned.state not in ("done", "paused", "pruned")]

    def logs_of_killed(self) -> list[Path]:
        """Return the logs of workers that were killed."""
        return []


class BlockingSubmission(Submission, ABC):
    """A submission that `submit` waits for."""

    @abstractmethod
    def wait(self, tick: Callable[[], object]) -> bool:
        """Wait until the work has ended; return False if it was asked to stop."""
