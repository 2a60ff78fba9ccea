"""Format text and numbers for people."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return `did you mean 'x'?` or the list of choices."""
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choices: {', '.join(known)}"


def printable(text: object) -> str:
    """Return one line without control characters, which could move the cursor or fake lines."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def size(num_bytes: float) -> str:
    """Format a size in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def rounded_count(number: float) -> str:
    """Format a large number with three digits: 950, 14.2 k, 2.5 M."""
    for unit in ("", " k", " M"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} G"


def device_hours(hours: float) -> str:
    return f"{hours:.3g}" if hours >= 0.001 else "<0.001"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
