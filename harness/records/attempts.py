"""When each attempt at a run began and ended, from the first and the last line of its journal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.records.directory import RunDirectory
from harness.records.journal import attempt_number, parse_line

_HEAD_BYTES = _TAIL_BYTES = 16384
ENDINGS = ("finished", "failed", "interrupted", "paused", "pruned")


@dataclass(frozen=True)
class AttemptSpan:
    """One attempt at a run.

    Attributes:
        started_seconds, ended_seconds: Unix time of the journal's first and last line; what an attempt did after its
            last line, before it was killed, is not recorded.
        ending: `finished`, `failed`, `interrupted`, `paused` or `pruned`; empty if it ended without saying so, or
            goes on.
    """

    number: int
    started_seconds: float
    ended_seconds: float
    ending: str

    @property
    def seconds(self) -> float:
        return max(0.0, self.ended_seconds - self.started_seconds)


def attempt_spans(directory: RunDirectory) -> list[AttemptSpan]:
    """Return the attempts at a run, oldest first, without reading whole journals; those without a line are left out."""
    return [span for path in directory.journal_paths() if (span := _span(path))]


def _span(path: Path) -> AttemptSpan | None:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read()
    first = next(filter(None, map(parse_line, head.split(b"\n")[:-1])), None)
    last = next(filter(None, map(parse_line, reversed(tail.split(b"\n")[:-1]))), None)
    if first is None or last is None:
        return None
    event = last.get("event")
    return AttemptSpan(attempt_number(path), first["ms"] / 1000, last["ms"] / 1000, event if event in ENDINGS else "")
