"""Results as plain values, and the tables that people read."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.peers.timing import Times, ratio

LARGEST_DIFFERENCE = 0.02
"""Networks whose numbers of parameters differ by more are not compared."""


@dataclass(frozen=True)
class Row:
    """One candidate's measurement.

    Attributes:
        parameters: of its network; None where it is no property of the row.
        gflop: of a forward pass of one image, a multiplication and an addition counted as two.
    """

    name: str
    times: Times
    parameters: int | None = None
    gflop: float | None = None


@dataclass(frozen=True)
class Table:
    """Candidates that did the same work.

    Attributes:
        unit: what the seconds are of.
        reference: name of the row that all others are divided by.
    """

    title: str
    unit: str
    reference: str
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        """Refuse networks of other sizes, and a reference that is no row."""
        sizes = {row.name: row.parameters for row in self.rows if row.parameters is not None}
        own = sizes.get(self._of(self.reference).name)
        for name, size in sizes.items():
            if own is not None and abs(size / own - 1) > LARGEST_DIFFERENCE:
                raise ValueError(
                    f"{self.title}: {name} has {size:,} parameters and {self.reference} {own:,}, which is not within "
                    f"{LARGEST_DIFFERENCE:.0%}: change its widths in benchmarks/peers/settings.py"
                )

    def _of(self, name: str) -> Row:
        rows = [row for row in self.rows if row.name == name]
        if not rows:
            raise ValueError(f"{self.title}: no row {name!r}; there are {', '.join(row.name for row in self.rows)}")
        return rows[0]

    def values(self) -> dict[str, Any]:
        """Return the table with its ratios as plain values."""
        rows = []
        for row in self.rows:
            reference = self._of(self.reference).times
            rows.append(
                asdict(row)
                | {"times": row.times._asdict()}
                | {
                    f"{clock}_ratio": ratio(getattr(row.times, clock), getattr(reference, clock))._asdict()
                    for clock in Times._fields
                }
            )
        return {"title": self.title, "unit": self.unit, "reference": self.reference, "rows": rows}

    def markdown(self) -> str:
        """Return the table as Markdown; columns that no row has a value for are left out."""
        header = ["", "parameters", "GFLOP", f"processor, {self.unit}", f"wall, {self.unit}", "processor", "wall"]
        lines = [self._cells(row) for row in self.rows]
        filled = [i for i in range(len(header)) if i == 0 or any(line[i] for line in lines)]
        table = [header, ["---"] * len(header), *lines]
        return "\n".join(["| " + " | ".join(line[i] for i in filled) + " |" for line in table])

    def _cells(self, row: Row) -> list[str]:
        reference = self._of(self.reference).times
        name = f"**{row.name}**" if row.name == self.reference else row.name
        cells = [
            name,
            "" if row.parameters is None else f"{row.parameters:,}",
            "" if row.gflop is None else f"{row.gflop:.4f}",
        ]
        cells += [seconds(values) for values in row.times]
        for values, of_reference in zip(row.times, reference, strict=True):
            of = ratio(values, of_reference)
            cells.append(
                "1" if row.name == self.reference else f"{of.median:.2f} ({of.lowest:.2f} to {of.highest:.2f})"
            )
        return cells


def seconds(values: Sequence[float]) -> str:
    """Write the median with the smallest and largest of some seconds, in one unit: '1.05 s (1.01 to 1.20)'."""
    median = statistics.median(values)
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if median * factor >= 0.1 or unit == "us":
            break
    return f"{median * factor:.3g} {unit} ({min(values) * factor:.3g} to {max(values) * factor:.3g})"


def replace_section(text: str, name: str, body: str) -> str:
    """Return a Markdown file with the section between its two marks replaced, or appended where it has none yet."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{begin}\n{body.strip()}\n{end}"
    if begin not in text:
        return f"{text.rstrip()}\n\n{section}\n".lstrip()
    before, _, rest = text.partition(begin)
    _, marked, after = rest.partition(end)
    if not marked:
        raise ValueError(f"the section {name} has no end: write the line {end} where it should be")
    return before + section + after
