"""Record that a run failed before its attempt began, so that no run stays queued without a reason."""

from __future__ import annotations

import logging
import traceback
from dataclasses import replace
from pathlib import Path

from harness.errors import HarnessError, RecordError
from harness.job.signals import PAUSED, PRUNED, SIGNAL_NAMES
from harness.records.directory import RunDirectory
from harness.records.status import Cause

logger = logging.getLogger(__name__)


def describe_failure(error: BaseException) -> tuple[str, str]:
    """Return an error's reason for people, and its traceback if it is not one that a user can fix."""
    if isinstance(error, HarnessError):
        return str(error), ""
    return f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))


def ending_of_stop(request: str, step: int, directory: RunDirectory) -> tuple[str, str, Cause]:
    """Return the state, the reason and the cause of a run that stopped at a step as it was asked to (`signals`)."""
    if request == PRUNED:
        return "pruned", directory.pruning_requested(), "pruned"
    if request == PAUSED:
        return "paused", f"waits at the rung of step {step} until its study lets it go on", "rung"
    cause: Cause = "signal" if request in SIGNAL_NAMES else "step_limit"
    return "interrupted", f"stopped by {request}; resubmit to resume", cause


def ending_of_error(error: BaseException, directory: RunDirectory) -> tuple[str, str, Cause, str]:
    """Return the state, the reason, the cause and the traceback of a run that an error has ended."""
    from harness.job.device_probe import fault_of  # loads torch

    if fault := fault_of(error, directory.path.parent):
        return "interrupted", fault, "device", ""
    reason, trace = describe_failure(error)
    return "failed", reason, "error", trace


def record_failure(path: Path, error: BaseException, *, attempt: bool = True, wait_seconds: float = 0.0) -> None:
    """Record that a run failed, unless another process works on it; then the error is only logged.

    Args:
        attempt: whether this was an attempt; else only the status says it, and the next start uses the same log.
        wait_seconds: how long to wait for another writer, which may be dead.
    """
    directory = RunDirectory(path)
    try:
        with directory.lock(wait_seconds):
            if attempt:
                write_failure(directory, error)
            else:
                _write_status(directory, _log(error)[0])
    except (RecordError, OSError) as refusal:
        logger.error(f"run {path.name} failed: {describe_failure(error)[0]}; this could not be recorded: {refusal}")


def write_failure(directory: RunDirectory, error: BaseException) -> None:
    """Write an attempt that only failed: its event and the run's status; requires the lock.

    Raises:
        RecordError: the directory cannot be written.
    """
    reason, trace = _log(error)
    with directory.open_journal(resumed_from_step=directory.durable_step()) as journal:
        journal.event("failed", **{"reason": reason} | ({"traceback": trace} if trace else {}))
    _write_status(directory, reason)


def _log(error: BaseException) -> tuple[str, str]:
    reason, trace = describe_failure(error)
    logger.error(trace or reason)
    return reason, trace


def _write_status(directory: RunDirectory, reason: str) -> None:
    attempt = max(directory.attempts(), default=0)
    status = replace(directory.status(), state="failed", cause="error", reason=reason, stopped_by="", attempt=attempt)
    directory.set_status(status)
