"""What was submitted, and how to wait for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.launch.planning import PlannedRun, planned_run
from harness.launch.states import read_run_states


@dataclass
class Submission:
    """What was handed to submitit: the runs, the folder of its logs, and its jobs."""

    runs: list[PlannedRun]
    folder: Path
    jobs: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def now(self) -> list[PlannedRun]:
        """Return each run that was submitted with where it stands now."""
        states = read_run_states([planned.path for planned in self.runs])
        return [planned_run(planned.run, planned.path, states) for planned in self.runs]

    def unfinished(self) -> list[PlannedRun]:
        return [planned for planned in self.now() if planned.state not in ("done", "pruned")]

    def logs_of_killed(self) -> list[Path]:
        """Return the logs of workers that ended without a word."""
        return []


class BlockingSubmission(Submission, ABC):
    """One that ends while `submit` looks on."""

    @abstractmethod
    def wait(self, tick: Callable[[], None]) -> bool:
        """Wait until the work has ended; return whether it ended by itself, not because somebody asked it to stop."""
