"""Times of several candidates that are measured in turns, so that what else the machine does meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Measure = Callable[[], tuple[float, float]]
"""Does some work; returns its seconds of processor and of wall time."""


class Times(NamedTuple):
    """Seconds of one unit of work: one value a round, in the order of the rounds."""

    processor: tuple[float, ...]
    wall: tuple[float, ...]


class Ratio(NamedTuple):
    """Ratios of two candidates within each round."""

    median: float
    lowest: float
    highest: float


def ratio(times: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Return how many times as long a candidate takes as the reference did in the same round.

    Raises:
        ValueError: they have different numbers of rounds.
    """
    ratios = [value / of_reference for value, of_reference in zip(times, reference, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def clock() -> tuple[float, float]:
    """Return this process's time on a processor, and the time on the wall."""
    return time.process_time(), time.perf_counter()


def timed(action: Callable[[], object], clock: Callable[[], tuple[float, float]] = clock) -> tuple[float, float]:
    began = clock()
    action()
    ended = clock()
    return ended[0] - began[0], ended[1] - began[1]


def in_turns(candidates: Mapping[str, Measure], *, rounds: int, units: Mapping[str, float]) -> dict[str, Times]:
    """Measure each candidate once a round, after a round that is not counted.

    Each round begins with the next candidate, so that none always follows the same one.

    Args:
        candidates: name -> what measures it.
        units: name -> units of work of a measurement; the times are of one.
    """
    names = list(candidates)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            processor, wall = candidates[name]()
            if number > 0:
                measured[name].append((processor / units[name], wall / units[name]))
    return {name: Times(*(tuple(column) for column in zip(*rows, strict=True))) for name, rows in measured.items()}
