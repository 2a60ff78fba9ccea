"""Times of several candidates that are measured in turns, so that what else the machine does meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Action = Callable[[], object]


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


def in_turns(
    actions: Mapping[str, Action],
    *,
    rounds: int,
    units: Mapping[str, float],
    clock: Callable[[], tuple[float, float]] = lambda: (time.process_time(), time.perf_counter()),
) -> dict[str, Times]:
    """Time each action once a round, after a call that is not counted.

    Each round begins with the next candidate, so that none always follows the same one.

    Args:
        actions: name -> what is timed.
        units: name -> units of work of a call; seconds are of one unit.
        clock: gives processor and wall time in seconds.
    """
    for action in actions.values():
        action()
    names = list(actions)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            began = clock()
            actions[name]()
            ended = clock()
            measured[name].append(
                ((ended[0] - began[0]) / units[name], (ended[1] - began[1]) / units[name]),
            )
    return {name: Times(*(tuple(column) for column in zip(*rows, strict=True))) for name, rows in measured.items()}
