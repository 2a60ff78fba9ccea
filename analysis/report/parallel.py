"""Calls spread over processes, with what they log."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from harness.errors import HarnessError

Result = TypeVar("Result")

_LOGGER = logging.getLogger("harness")


def results(calls: Sequence[Callable[[], Result]], num_processes: int) -> list[Result]:
    """Return the results of calls in their order; what they log is logged here, in the same order.

    Args:
        calls: with one process they are made here; else they and their results are pickled.

    Raises:
        HarnessError: a process was killed.
    """
    num_processes = min(num_processes, len(calls))
    if num_processes < 2:
        return [call() for call in calls]
    # Not forked: a library's threads would not be in the copies.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        futures = [pool.submit(_call, call) for call in calls]
        try:
            return [_logged(*future.result()) for future in futures]
        except BrokenProcessPool as error:
            raise HarnessError(
                f"one of {num_processes} processes was killed, perhaps since there is too little memory for them; "
                "--jobs 1 does with one"
            ) from error


def _logged(result: Result, messages: list[logging.LogRecord]) -> Result:
    """Log the messages of a call, and return its result."""
    for message in messages:
        if _LOGGER.isEnabledFor(message.levelno):
            logging.getLogger(message.name).handle(message)
    return result


def _call(call: Callable[[], Result]) -> tuple[Result, list[logging.LogRecord]]:
    messages: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(_plain(record))  # type: ignore[method-assign]
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    try:
        return call(), messages
    finally:
        _LOGGER.removeHandler(handler)


def _plain(record: logging.LogRecord) -> logging.LogRecord:
    """Return a record that can be pickled: with its text instead of its arguments."""
    record.msg, record.args, record.exc_info = record.getMessage(), None, None
    return record
