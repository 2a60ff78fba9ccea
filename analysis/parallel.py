"""Calls spread over processes, with what they log."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")

_LOGGER = logging.getLogger("harness")


def results(calls: Sequence[Callable[[], Result]], num_processes: int) -> list[Result]:
    """Return the results of calls in their order; what they log is logged here, in the same order.

    Args:
        calls: with one process they are made here; else they and their results are pickled.
    """
    num_processes = min(num_processes, len(calls))
    if num_processes < 2:
        return [call() for call in calls]
    # Not forked: a library's threads would not be in the copies.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        outcomes = []
        for future in [pool.submit(_call, call) for call in calls]:
            result, messages = future.result()
            for message in messages:
                if _LOGGER.isEnabledFor(message.levelno):
                    logging.getLogger(message.name).handle(message)
            outcomes.append(result)
        return outcomes


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
