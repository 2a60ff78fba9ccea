"""Where a run stands, as last said by whoever works on it."""

from __future__ import annotations

from dataclasses import dataclass, fields

STATES = ("new", "queued", "running", "interrupted", "failed", "pruned", "done")


@dataclass(frozen=True, slots=True)
class Status:
    """Where a run stands, as last said by whoever works on it."""

    state: str = "new"
    step: int = 0
    num_steps: int = 0
    attempt: int = 0
    reason: str = ""  # why it is interrupted, failed or pruned
    loss: float | None = None
    images_per_second: float | None = None
    eta_seconds: float | None = None
    updated_seconds: float = 0.0  # Unix time, set when written


_STATUS_FIELDS = {entry.name for entry in fields(Status)}
