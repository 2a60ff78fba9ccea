"""Summaries of a few replicates: an interval from three on, both values for two, the value for one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike


class Summary(NamedTuple):
    """A summary of replicates; `kind` says what `low` and `high` are: `interval`, `range` or `value`."""

    n: int
    mean: float
    low: float
    high: float
    kind: str


def t_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Return Student's interval of the mean, mean -/+ t_{n-1} s / sqrt(n).

    Args:
        values: at least two, independent.
        level: of confidence, in (0, 1).
    """
    sample = np.asarray(values, float)
    half = _quantile(len(sample) - 1, level) * sample.std(ddof=1) / np.sqrt(len(sample))
    return float(sample.mean() - half), float(sample.mean() + half)


class Estimate(NamedTuple):
    """A mean with its standard error and the error's degrees of freedom, inf where the error itself is known."""

    mean: float
    standard_error: float
    freedom: float

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval."""
        return _quantile(self.freedom) * self.standard_error


def _quantile(freedom: float, level: float = 0.95) -> float:
    """Return how many standard errors half of an interval is: the numbers of scipy.stats, which takes a second."""
    from scipy.special import ndtri, stdtrit

    quantile = (1 + level) / 2
    return float(ndtri(quantile) if math.isinf(freedom) else stdtrit(freedom, quantile))


def summarise(values: Iterable[float]) -> Summary:
    """Summarise replicates; NaN is not counted.

    From three on the 95 % t-interval of the mean; for two both values; for one the value.
    """
    numbers = np.array([value for value in values if not np.isnan(value)], float)
    if len(numbers) == 0:
        return Summary(0, float("nan"), float("nan"), float("nan"), "value")
    if len(numbers) < 3:
        low, high = float(numbers.min()), float(numbers.max())
        return Summary(len(numbers), float(numbers.mean()), low, high, "range" if len(numbers) == 2 else "value")
    return Summary(len(numbers), float(numbers.mean()), *t_interval(numbers), "interval")


def summarise_by(frame: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """Summarise one column over replicates: a row for each combination of `keys`, in their order of appearance."""
    import pandas as pd

    rows = []
    for group, values in frame.groupby(keys, sort=False, dropna=False)[value]:
        rows.append({**dict(zip(keys, group, strict=True)), **summarise(values)._asdict()})
    return pd.DataFrame(rows, columns=[*keys, *Summary._fields])


class Cell(NamedTuple):
    """The numbers of a table's cell: values, each with half of its interval or None, and what is said of them."""

    values: tuple[tuple[float, float | None], ...]
    digits: int
    note: str = ""
    source: str = ""

    @property
    def text(self) -> str:
        """`3.17 ± 0.02`, `3.15 / 3.19`, `3.17`, `3.17 ± 0.02 (seeds)`; `3.17, 1 NaN` if one diverged; `–`."""
        numbers = " / ".join(
            f"{value:.{self.digits}f}" + ("" if half is None else f" ± {half:.{self.digits}f}")
            for value, half in self.values
        )
        text = ", ".join(filter(None, [numbers, self.note])) or "–"
        return f"{text} ({self.source})" if self.source else text


def cell_of(values: Sequence[float], digits: int) -> Cell:
    """Return the cell of replicates: mean and interval from three on, else the values; NaN are counted apart."""
    numbers = [value for value in values if not np.isnan(value)]
    summary = summarise(numbers)
    shown: list[tuple[float, float | None]] = [(value, None) for value in numbers]
    if summary.kind == "interval":
        shown = [(summary.mean, summary.high - summary.mean)]
    diverged = f"{len(values) - len(numbers)} NaN" if len(numbers) < len(values) else ""
    return Cell(tuple(shown), digits, diverged)


def format_values(values: Sequence[float], digits: int) -> str:
    """Format replicates for a table: `3.17 ± 0.02`, `3.15 / 3.19`, `3.17`, `–`; `3.17, 1 NaN` if one diverged."""
    return cell_of(values, digits).text


def describe_bands(kinds: Iterable[str]) -> str:
    """Describe a figure's bands or bars for its caption."""
    kinds = set(kinds)
    parts = []
    if "interval" in kinds:
        parts.append("mean and 95 % t-interval over replicates")
    if "range" in kinds:
        parts.append("mean and range of two replicates")
    if kinds == {"value"}:
        parts.append("one replicate")
    return "; ".join(parts)
