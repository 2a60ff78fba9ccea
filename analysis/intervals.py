"""What may be said about a few replicates: an interval from three on, both values at two, the value at one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike


class Summary(NamedTuple):
    """Replicates in short; `kind` says what `low` and `high` are: `interval`, `range` or `value`."""

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
    from scipy.stats import t

    found = np.asarray(values, float)
    half = t.ppf((1 + level) / 2, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
    return float(found.mean() - half), float(found.mean() + half)


def summarise(values: Iterable[float]) -> Summary:
    """Summarise replicates; NaN is no replicate.

    From three on the 95 % t-interval of the mean; of two both values; of one the value.
    """
    found = np.array([value for value in values if not np.isnan(value)], float)
    if len(found) == 0:
        return Summary(0, float("nan"), float("nan"), float("nan"), "value")
    if len(found) < 3:
        low, high = float(found.min()), float(found.max())
        return Summary(len(found), float(found.mean()), low, high, "range" if len(found) == 2 else "value")
    return Summary(len(found), float(found.mean()), *t_interval(found), "interval")


def summarise_by(frame: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """Summarise one column over replicates: a row for each combination of `keys`, in their order of appearance."""
    import pandas as pd

    rows = []
    for group, values in frame.groupby(keys, sort=False, dropna=False)[value]:
        rows.append({**dict(zip(keys, group, strict=True)), **summarise(values)._asdict()})
    return pd.DataFrame(rows, columns=[*keys, *Summary._fields])


def spell(values: Sequence[float], digits: int) -> str:
    """Write replicates for a table: `3.17 ± 0.02`, `3.15 / 3.19`, `3.17`, `–`; `3.17, 1 NaN` where one diverged."""
    found = [value for value in values if not np.isnan(value)]
    summary = summarise(found)
    text = " / ".join(f"{value:.{digits}f}" for value in found)
    if summary.kind == "interval":
        text = f"{summary.mean:.{digits}f} ± {summary.high - summary.mean:.{digits}f}"
    diverged = f"{len(values) - len(found)} NaN" if len(found) < len(values) else ""
    return ", ".join(filter(None, [text, diverged])) or "–"


def say_bands(kinds: Iterable[str]) -> str:
    """Say what the bands or bars of a figure are, for its caption."""
    kinds = set(kinds)
    said = []
    if "interval" in kinds:
        said.append("mean and 95 % t-interval over replicates")
    if "range" in kinds:
        said.append("mean and range of two replicates")
    if kinds == {"value"}:
        said.append("one replicate")
    return "; ".join(said)
