"""Progress of long tasks: a bar with ETA on a terminal, occasional plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from harness.text import duration

logger = logging.getLogger(__name__)

_LINE_EVERY_SECONDS = 15.0


class Progress:
    """Show the progress of a task; a context manager, advanced by `update`.

    Args:
        label: of the task, e.g. "train 3f2a91c0".
        shown: False prints nothing.
    """

    def __init__(self, label: str, *, shown: bool = True):
        self._label, self._shown = label, shown
        self._bar: Any = None
        self._began = self._last_line = time.monotonic()
        self._first: int | None = None

    def __enter__(self) -> Progress:
        if self._shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=None, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, total: int, note: str = "") -> None:
        """Set how much of the total is done."""
        if not self._shown:
            return
        if self._bar:
            self._bar.update(self._task, completed=done, total=total, note=note)
            return
        now = time.monotonic()
        if self._first is None:  # a resumed training does not begin at 0
            self._first, self._began = done, now
        if now - self._last_line >= _LINE_EVERY_SECONDS and done > self._first:
            self._last_line = now
            left = (total - done) * (now - self._began) / (done - self._first)
            logger.info(f"{self._label}: {done}/{total}, {duration(left)} left" + (f", {note}" if note else ""))


class Pace:
    """Estimate how long a task takes from how fast it has gone on since it was first seen, by its name."""

    def __init__(self) -> None:
        self._task, self._first, self._began = "", 0, 0.0

    def seconds_left(self, task: str, done: int, total: int) -> float | None:
        """Return the time that the rest takes at this pace; None when the task has just begun."""
        now = time.monotonic()
        if task != self._task or done <= self._first:
            self._task, self._first, self._began = task, done, now
            return None
        return (total - done) * (now - self._began) / (done - self._first)
