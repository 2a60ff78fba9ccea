"""What a job says of an evaluation while it measures."""

from __future__ import annotations

from typing import NamedTuple


class Measured(NamedTuple):
    """The evaluation that a job is measuring, and how much of it is done, where that is known."""

    what: str
    done: int | None = None
    total: int | None = None
    eta_seconds: float | None = None
