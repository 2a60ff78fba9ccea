"""The curves of a study for the page's script, which draws them: over all replicates, and of each seed.

Every number comes from the data of the figures. The script draws, and reads values out at the pointer; it computes
none. The number of points is bounded, so that a page of many runs stays small: points are left out, never averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.figures import fig_L_t, fig_learning_curves, fig_sampling_steps, style
from harness.analysis.runs import RunRecord, arm_index
from harness.spec.metrics import METRIC_KINDS, metric_kind
from harness.text import count, printable

MAX_POINTS = 400
"""Most points of a curve."""
MAX_POINTS_OF_PANEL = 12_000
MAX_CURVES_OF_SEEDS = 48
"""Most curves of single seeds in a panel; of a larger study only means are shown."""
MAX_BANDS = 24


@dataclass(frozen=True)
class Curve:
    """One curve.

    Attributes:
        note: what it is of besides its arm: the sampler and whose mean, or which seed.
        x, y, low, high: [n] each; low and high may be empty.
    """

    arm: str
    note: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    dash: str
    of_one_seed: bool = False


@dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
        points: whether values are marked on the curves.
        lines: what dashes stand for besides arms, such as samplers: name -> dash.
    """

    title: str
    x_label: str
    y_label: str
    x_log: bool
    y_log: bool
    points: bool
    curves: list[Curve] = field(default_factory=list)
    lines: dict[str, str] = field(default_factory=dict)


def panels(name: str, frame: pd.DataFrame, runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return the plots of a figure as plain values; empty for a figure that has no curves here.

    Args:
        name: of the figure, such as `learning_curves`.
        frame: its data.
        runs: that these came from.
    """
    if name not in _FIGURES:
        return []
    read, split = _FIGURES[name]
    index = arm_index(runs)
    shown = set(frame["arm"].unique())  # a study may leave arms out of its figures
    runs = [run for run in runs if run.arm in shown]
    plots = list(split(frame))
    if len(shown) * _num_replicates(runs) <= MAX_CURVES_OF_SEEDS:
        for note, of_seed in _by_seed(runs).items():
            single = {(plot.title, plot.y_label): plot for plot in split(read(of_seed))}
            for plot in plots:
                if seen := single.get((plot.title, plot.y_label)):
                    plot.curves.extend(_of_seed(curve, note) for curve in seen.curves)
    return [_plain(plot, index) for plot in plots]


def _num_replicates(runs: Sequence[RunRecord]) -> int:
    return len({run.replicate for run in runs})


def _by_seed(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Return the runs of each replicate, under the name of their seed; empty if there is only one."""
    groups: dict[int, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(run.replicate, []).append(run)
    if len(groups) < 2:
        return {}
    seeds = {replicate: {run.spec["seed"] for run in of} for replicate, of in groups.items()}
    names = {r: f"seed {next(iter(of))}" if len(of) == 1 else f"replicate {r}" for r, of in seeds.items()}
    return {names[replicate]: groups[replicate] for replicate in sorted(groups)}


def _of_seed(curve: Curve, note: str) -> Curve:
    nothing = np.empty(0)
    notes = ", ".join([*curve.note.split(", ")[:-1], note])
    return replace(curve, note=notes, low=nothing, high=nothing, of_one_seed=True)


# -- the figures


def _learning_curves(frame: pd.DataFrame) -> Iterator[Panel]:
    order = list(METRIC_KINDS)
    names = {
        curve: fig_learning_curves.KIND_OF.get(curve.split()[0], curve.split()[0]) for curve in frame["curve"].unique()
    }
    nll = fig_learning_curves.NLL
    for curve in sorted(names, key=lambda c: (c.split()[0] == nll, _place(order, names[c]), c)):
        kind, part = metric_kind(names[curve]), frame[frame["curve"] == curve]
        unit = f"T × Lₜ ({kind.unit})" if kind.per_timestep else kind.unit or curve
        title = " ".join([kind.label, *curve.split()[1:]])
        yield Panel(
            title, "iterations", unit, False, bool((part["low"] > 0).all()), curve.split()[0] == nll,
            [_curve(own, "iteration", "mean") for _, own in part.groupby("arm", sort=False)],
        )  # fmt: skip


def _place(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def _L_t(frame: pd.DataFrame) -> Iterator[Panel]:
    several = frame["evaluation"].nunique() > 1
    for evaluation, part in frame.groupby("evaluation", sort=False):
        where = f" ({evaluation})" if several else ""
        arms = [own for _, own in part.groupby("arm", sort=False)]
        terms = [_curve(own, "t", "mean") for own in arms]
        yield Panel(f"Terms of the bound{where}", "diffusion step t", "Lₜ₋₁ (bits/dim)", True, True, False, terms)
        shares = [_curve(own, "t", "share") for own in arms]
        label = "share of the bound up to t"
        yield Panel(f"Where the bits are{where}", "diffusion step t", label, True, False, False, shares)


def _sampling_steps(frame: pd.DataFrame) -> Iterator[Panel]:
    lines = fig_sampling_steps.sampler_lines(frame["sampler"].unique())
    several = frame.groupby("arm")["variance"].nunique().max() > 1
    for (protocol, metric), part in frame.groupby(["protocol", "metric"], sort=False):
        curves = []
        for (_, variance, sampler), own in part.groupby(["arm", "variance", "sampler"], sort=False):
            note = f"{sampler}, σ² = {variance}" if several and variance else str(sampler)
            own = own.sort_values("num_steps")
            curves.append(replace(_curve(own, "num_steps", "mean", note), dash=_dash(lines[str(sampler)])))
        title, y_label = metric_kind(str(metric)).label, str(protocol)
        dashes = {str(sampler): _dash(lines[str(sampler)]) for sampler in part["sampler"].unique()}
        yield Panel(title, "sampling steps", y_label, True, metric == "fid", True, curves, dashes)


_FIGURES: dict[str, tuple[Callable[[Sequence[RunRecord]], pd.DataFrame], Callable[[pd.DataFrame], Iterator[Panel]]]] = {
    "learning_curves": (fig_learning_curves.data, _learning_curves),
    "L_t": (fig_L_t.data, _L_t),
    "sampling_steps": (fig_sampling_steps.data, _sampling_steps),
}
"""How each figure's data are read from runs, and split into plots."""


def _curve(frame: pd.DataFrame, x: str, y: str, note: str = "") -> Curve:
    """Return the curve of one arm; its band is there where the values are means with one."""
    n = int(frame["n"].max())
    whose = f"mean of {count(n, 'seed')}" if n > 1 else "one seed"
    banded = n > 1 and y == "mean"
    low, high = (frame[name].to_numpy(float) if banded else np.empty(0) for name in ("low", "high"))
    dash = _dash(style.arm_style(int(frame["arm_index"].iloc[0]))["linestyle"])
    notes = ", ".join(filter(None, [note, whose]))
    return Curve(str(frame["arm"].iloc[0]), notes, frame[x].to_numpy(float), frame[y].to_numpy(float), low, high, dash)


def _dash(line: Any) -> str:
    """Return a line style of matplotlib as SVG has it."""
    named = {"-": "", "--": "6 3", ":": "1.5 2.5", "-.": "6 3 1.5 3"}
    return named[line] if isinstance(line, str) else " ".join(f"{1.4 * part:.3g}" for part in line[1])


# -- plain values


def _plain(panel: Panel, index: dict[str, int]) -> dict[str, Any]:
    most = max(20, min(MAX_POINTS, MAX_POINTS_OF_PANEL // max(1, len(panel.curves))))
    bands = sum(not curve.of_one_seed for curve in panel.curves) <= MAX_BANDS
    xs: dict[tuple[float | int | None, ...], int] = {}
    rows = []
    for curve in panel.curves:
        kept = _kept(curve, most)
        x = tuple(_numbers(curve.x[kept]))
        row = {"arm": index[curve.arm], "note": printable(curve.note), "x": xs.setdefault(x, len(xs))}
        row["y"] = _numbers(curve.y[kept])
        if bands and len(curve.low):
            row |= {"low": _numbers(curve.low[kept]), "high": _numbers(curve.high[kept])}
        row |= {"dash": curve.dash} if curve.dash else {}
        rows.append(row | ({"seed": True} if curve.of_one_seed else {}))
    return {
        "title": printable(panel.title),
        "x_label": panel.x_label,
        "y_label": printable(panel.y_label),
        "x_log": panel.x_log,
        "y_log": panel.y_log,
        "points": panel.points,
        "lines": [{"name": printable(name), "dash": dash} for name, dash in panel.lines.items()],
        "x": [list(x) for x in xs],
        "curves": rows,
    }


def _kept(curve: Curve, most: int) -> np.ndarray:
    """Return which points of a curve are shown, [<= most]: half of them even in x's place, half in its logarithm."""
    finite = np.flatnonzero(np.isfinite(curve.x) & np.isfinite(curve.y))
    if len(finite) <= most:
        return finite
    last, half = len(finite) - 1, most // 2
    even, dense = np.linspace(0, last, half), np.geomspace(1, last + 1, half) - 1
    return finite[np.unique(np.concatenate([even, dense]).round().astype(int))]


def _numbers(values: np.ndarray) -> list[float | int | None]:
    """Round to five digits, which no screen shows."""
    return [_short(float(value)) for value in values]


def _short(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.5g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e9 else rounded
