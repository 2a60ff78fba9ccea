"""Requests to stop a job: by a signal, by a search that prunes it, or after a number of steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
SIGNAL_NAMES = tuple(number.name for number in STOP_SIGNALS)
PRUNED = "pruning"  # instead of a signal's name
PAUSED = "rung"  # as well; no process has to tell the others

# Numbers that the processes of a run exchange; the largest wins.
_NUMBERS = {"": 0, **{name: index for index, name in enumerate(SIGNAL_NAMES, 1)}, PRUNED: 1000}
_NAMES = {number: name for name, number in _NUMBERS.items()}


def stop_number(name: str) -> int:
    """Encode a signal's name, pruning, or nothing (0) as a number."""
    return _NUMBERS[name]


def stop_name(number: int) -> str:
    """Decode a number of `stop_number`."""
    return _NAMES[number]


class StopSignals:
    """Record a stop signal, so that the loop can stop after its current step.

    Attributes:
        received: the name of the last signal, empty before. SIGUSR2 stays: it comes ahead of a time limit, and the
            SIGTERM that follows it at the limit is nobody's wish to end the run.
    """

    def __init__(self) -> None:
        self.received = ""

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Handle stop signals within a block, in the main thread only."""

        def stop(number: int, _: object) -> None:
            if self.received != signal.SIGUSR2.name:
                self.received = signal.Signals(number).name

        # A worker that was started with SIGINT ignored must not react to Ctrl-C: its parent does, and sends SIGTERM.
        ignored = {number for number in [signal.SIGINT] if signal.getsignal(number) == signal.SIG_IGN}
        try:
            before = {number: signal.signal(number, stop) for number in STOP_SIGNALS if number not in ignored}
        except ValueError:  # not the main thread
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
