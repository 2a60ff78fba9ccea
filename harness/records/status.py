"""The status of a run, as last written by the process that works on it.

`state`, `cause` and `stopped_by` are for programs; `reason` is for people and is never parsed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from harness.records.reading import Fields

STATES = ("new", "queued", "running", "interrupted", "paused", "failed", "pruned", "done")

Cause = Literal[
    "",  # queued, running or done
    "signal",  # interrupted: stopped by the signal that `stopped_by` names, with a checkpoint
    "step_limit",  # interrupted: after the requested number of steps, with a checkpoint
    "killed",  # interrupted: its process or job was killed
    "device",  # interrupted: the device of its node is broken
    "out_of_memory",  # interrupted or, after three times, failed: killed for taking too much memory
    "cancelled",  # interrupted: by a user
    "canary",  # interrupted: the canary that it waited for failed
    "not_begun",  # interrupted: its job ended without starting it
    "never_submitted",  # interrupted: the submission was interrupted before the run had a job
    "no_progress",  # failed: killed repeatedly at one step
    "error",  # failed: by an error
    "pruned",  # pruned: by a search
    "rung",  # paused at a rung of its study, or pruned there
    "imported",  # interrupted: it was not finished where it was imported from
]
CAUSES = get_args(Cause)


def is_active(state: str) -> bool:
    """Return whether a run in this state is expected to go on by itself.

    Args:
        state: one of STATES, or `unknown` where SLURM does not say whether it has a job of the run.
    """
    return state in ("new", "queued", "running", "unknown")


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
    reason: str = ""  # why it is interrupted, paused, failed or pruned, for people
    loss: float | None = None
    images_per_second: float | None = None
    eta_seconds: float | None = None  # of the training, or of the part of an evaluation that is being measured
    updated_seconds: float = 0.0  # Unix time, set when written
    cause: Cause = ""
    stopped_by: str = ""  # SIGUSR2, SIGTERM or SIGINT, if the cause is a signal
    evaluation: str = ""  # the one that is being measured, and its part: eval, fidelity
    evaluation_done: int | None = None  # of evaluation_total images, steps, ...; None where this is not known
    evaluation_total: int | None = None


def status_from(stored: Any, place: str) -> Status:
    """Return the status in a status.json; fields of later versions are ignored.

    Args:
        place: names the file in errors.

    Raises:
        RecordError: a value is not of its type, or a state or cause is not a known one.
    """
    fields = Fields(stored, place)
    state, reason = fields.choice("state", STATES, "new"), fields.text("reason", "")
    if "cause" not in fields and reason:
        fields = Fields(stored | _fields_of_an_old_reason(state, reason), place)
    return Status(
        state=state,
        step=fields.integer("step", 0),
        num_steps=fields.integer("num_steps", 0),
        attempt=fields.integer("attempt", 0),
        reason=reason,
        loss=fields.optional_number("loss"),
        images_per_second=fields.optional_finite("images_per_second", low=0),
        eta_seconds=fields.optional_finite("eta_seconds", low=0),
        updated_seconds=fields.seconds("updated_seconds", 0.0),
        cause=fields.choice("cause", CAUSES, ""),
        stopped_by=fields.text("stopped_by", ""),
        evaluation=fields.text("evaluation", ""),
        evaluation_done=fields.optional_integer("evaluation_done"),
        evaluation_total=fields.optional_integer("evaluation_total"),
    )


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
