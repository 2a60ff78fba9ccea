"""Tables on a terminal, aligned plain lines elsewhere; the same text in both."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.text import printable

STATE_ORDER = ("new", "queued", "running", "evaluate", "interrupted", "paused", "failed", "pruned", "done")


_STATE_COLOURS = {"running": "cyan", "evaluate": "cyan", "done": "green", "failed": "red", "interrupted": "yellow"}


@dataclass(frozen=True)
class Table:
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]

    def plain(self) -> str:
        """Align the columns with spaces."""
        lines = [[printable(cell) for cell in row] for row in (self.headers, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = (zip(line, widths, strict=True) for line in lines)
        return "\n".join("  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in padded)

    def rich(self) -> Any:
        """Return the table for rich, with coloured states."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for header in self.headers:
            table.add_column(header, no_wrap=header in ("run", "state"))
        for row in self.rows:
            table.add_row(*[Text(printable(cell), _STATE_COLOURS.get(cell, "")) for cell in row])
        return table

    def show(self) -> None:
        """Print a table on a terminal, plain lines elsewhere."""
        if sys.stdout.isatty():
            from rich.console import Console

            Console().print(self.rich())
        else:
            print(self.plain())


def state_counts(states: Iterable[str]) -> str:
    """Return `3 done, 1 running`, in the order of the states."""
    counts = Counter(states)
    return ", ".join(f"{counts[state]} {state}" for state in STATE_ORDER if counts[state])
