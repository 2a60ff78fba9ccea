"""How the benchmarks of devices and data write what they measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.peers.environment import describe_machine
from benchmarks.peers.timing import Times, ratio


def head(title: str, rounds: int) -> list[str]:
    machine = describe_machine()
    return [
        f"## {title}",
        f"`python -m benchmarks.devices`, {time.strftime('%Y-%m-%d')}: {machine['cpu']}, {machine['cores']} cores, one "
        f"thread a process, load {machine['load']}, torch {machine['torch']}, gloo. Medians of {rounds} interleaved "
        "rounds (lowest to highest).",
    ]


def efficiency(one: Sequence[float], several: Sequence[float]) -> str:
    of = ratio(one, several)
    return f"{of.median:.0%} ({of.lowest:.0%} to {of.highest:.0%})"


def times_as_long(values: Sequence[float], reference: Sequence[float]) -> str:
    of = ratio(values, reference)
    return f"{of.median:.3f} ({of.lowest:.3f} to {of.highest:.3f})"


def cost(part: Times, step: Times, *, wall: bool = True) -> str:
    """Write the processor time of a part, its share of a step's, and its time on the wall."""
    processor = statistics.median(part.processor)
    share = processor / statistics.median(step.processor)
    on_the_wall = f"; {1e3 * statistics.median(part.wall):.3g} ms" if wall else ""
    return f"{1e3 * processor:.3g} ms, {share:.2%}{on_the_wall}"


def difference(values: np.ndarray, reference: np.ndarray) -> str:
    largest = float(np.abs(values - reference).max())
    return f"{largest:.1e}" if largest else "equal"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows))
