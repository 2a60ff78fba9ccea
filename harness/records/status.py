"""The status of a run, as last written by the process that works on it.

`state`, `cause` and `stopped_by` are for programs; `reason` is for people and is never parsed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

STATES = ("new", "queued", "running", "interrupted", "failed", "pruned", "done")

Cause = Literal[
    "",  # queued, running or done
    "signal",  # interrupted: stopped by the signal that `stopped_by` names, with a checkpoint
    "step_limit",  # interrupted: after the requested number of steps, with a checkpoint
    "killed",  # interrupted: its process or job was killed
    "out_of_memory",  # interrupted or, after three times, failed: killed for taking too much memory
    "cancelled",  # interrupted: by a user
    "canary",  # interrupted: the canary that it waited for failed
    "not_begun",  # interrupted: its job ended without starting it
    "never_submitted",  # interrupted: the submission was interrupted before the run had a job
    "no_progress",  # failed: killed repeatedly at one step
    "error",  # failed: by an error
    "pruned",  # pruned: by a search
]
CAUSES = get_args(Cause)


class Ending(NamedTuple):
    """Why a run ended: for programs, and for people."""

    cause: Cause
    reason: str


@dataclass(frozen=True, slots=True)
class Status:
    """The status of a run, as last written by the process that works on it."""

    state: str = "new"
    step: int = 0
    num_steps: int = 0
    attempt: int = 0
    reason: str = ""  # why it is interrupted, failed or pruned, for people
    loss: float | None = None
    images_per_second: float | None = None
    eta_seconds: float | None = None
    updated_seconds: float = 0.0  # Unix time, set when written
    cause: Cause = ""
    stopped_by: str = ""  # SIGUSR2, SIGTERM or SIGINT, if the cause is a signal
    evaluation: str = ""  # the one that is being measured, and its part: eval, fidelity
    evaluation_done: int | None = None  # of evaluation_total images, steps, ...; None where this is not known
    evaluation_total: int | None = None


_STATUS_FIELDS = {entry.name for entry in fields(Status)}


def status_from(stored: dict[str, Any]) -> Status:
    """Return the status in a status.json; fields of later versions are ignored."""
    if "cause" not in stored and stored.get("reason"):
        stored = stored | _fields_of_an_old_reason(stored["state"], stored["reason"])
    return Status(**{key: value for key, value in stored.items() if key in _STATUS_FIELDS})


def _fields_of_an_old_reason(state: str, reason: str) -> dict[str, str]:
    """Return the fields for a status.json of an earlier version, which had only the sentence.

    The patterns match sentences of that version; files written today have the fields and do not come here.
    """
    if state == "interrupted":
        if signal := re.match(r"stopped by (SIG[A-Z0-9]+)", reason):
            return {"cause": "signal", "stopped_by": signal[1]}
        if reason.startswith("stopped by request"):
            return {"cause": "step_limit"}
        if re.match(r"killed(:| by )", reason):
            return {"cause": "killed"}
    if state == "failed":
        return {"cause": _cause_of_an_old_failure(reason)}
    return {"cause": "pruned"} if state == "pruned" else {}


def _cause_of_an_old_failure(reason: str) -> str:
    if not re.match(r"killed \d+ times ", reason):
        return "error"
    return "out_of_memory" if ": OUT_OF_MEMORY on " in reason else "no_progress"
