"""Signs that a model has collapsed, events of the journal: methods and jobs write them, `status` and `why` show them.

    journal.event("collapse", step=..., sign="modes_lost", metrics={"eval/modes_covered_10000_ancestral4": 7}, of=25)

The fields but `sign` are numbers, or tables of numbers by name; `step`, `key` and `evaluation` say where they come
from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from harness.records.directory import RunDirectory
from harness.records.journal import Event
from harness.text import printable

EVENT = "collapse"
_MARK = json.dumps({"event": EVENT}).encode()[1:-1]
_WHERE = ("sign", "step", "key", "evaluation")


class Sign(NamedTuple):
    """A sign of a collapse: what it means, and what to try."""

    meaning: str
    advice: str


SIGNS = {
    "discriminator_saturated": Sign(
        "the discriminator tells real from generated without error, so the generator gets no gradient",
        "lower the discriminator's learning rate, or raise the weight of R1 or apply it at every step",
    ),
    "recall_zero": Sign(
        "no real image lies near a sample: recall is 0",
        "look at the samples; train for longer; compare ema with raw weights: an average over too many steps is noise",
    ),
    "modes_lost": Sign(
        "the samples cover fewer modes than the data have",
        "look at the samples' scatter; take more sampling steps, train for longer, or weaken the discriminator "
        "(learning rate, R1)",
    ),
}


def collapses(directory: RunDirectory, journals: Sequence[bytes] | None = None) -> list[Event]:
    """Return the events of a collapse that are not superseded.

    Args:
        journals: the contents of the run's journals; without the event in them nothing is parsed.
    """
    if journals is not None and not any(_MARK in journal for journal in journals):
        return []
    return [event for event in directory.events(EVENT) if not event.superseded]


def signs(events: Iterable[Event]) -> tuple[str, ...]:
    """Return the signs of events, each once."""
    return tuple(dict.fromkeys(str(event.fields.get("sign", "unknown")) for event in events))


def describe(event: Event) -> str:
    """Say what a sign means, with its numbers: `the samples cover ...: eval/modes_covered_100_ddim4 7 of 25`."""
    sign, of = str(event.fields.get("sign", "unknown")), event.fields.get("of")
    meaning = SIGNS[sign].meaning if sign in SIGNS else sign
    numbers = []
    for name, value in event.fields.items():
        table = value if isinstance(value, dict) else {name: value}
        if name not in (*_WHERE, "of"):
            numbers += [
                f"{key} {_number(number)}" + (f" of {_number(of)}" if of else "") for key, number in table.items()
            ]
    return printable(f"{meaning}: {', '.join(numbers)}" if numbers else meaning)


def advice(signs: Iterable[str]) -> list[str]:
    """Return what to try against each sign that is known."""
    return [SIGNS[sign].advice for sign in signs if sign in SIGNS]


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
