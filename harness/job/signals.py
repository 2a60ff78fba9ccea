"""How a job is asked to stop: by a signal, by a search that prunes it, or after a number of steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
SIGNAL_NAMES = tuple(number.name for number in STOP_SIGNALS)
PRUNED = "pruning"  # in the place of a signal's name

# What the processes of a run send one another; the largest wins.
_NUMBERS = {"": 0, **{number.name: int(number) for number in STOP_SIGNALS}, PRUNED: 1000}
_NAMES = {number: name for name, number in _NUMBERS.items()}


def stop_number(name: str) -> int:
    """Return the number that stands for a signal's name, for pruning, or (0) for nothing."""
    return _NUMBERS[name]


def stop_name(number: int) -> str:
    """Return what a number of `stop_number` stands for."""
    return _NAMES[number]


class StopSignals:
    """Remember the signal that asked to stop, so that the loop can do so at its next step.

    Attributes:
        received: the name of the last one, empty before.
    """

    def __init__(self) -> None:
        self.received = ""

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Take the signals to stop within a block, in the main thread; elsewhere whoever owns it handles them."""

        def stop(number: int, _: object) -> None:
            self.received = signal.Signals(number).name

        # A worker that was begun with SIGINT ignored is not to hear Ctrl-C: who began it hears it, and asks by SIGTERM.
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
