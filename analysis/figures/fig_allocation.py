"""Model size against length of training: L(N, D), and the best size at equal compute (Hoffmann et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from harness.analysis.figures import style
from harness.analysis.figures.style import Figure
from harness.analysis.runs import RunRecord
from harness.analysis.statistics.intervals import summarise
from harness.analysis.statistics.scaling import Interval
from harness.analysis.statistics.scaling_grid import best_size_exponent, fit_size_and_length, iso_flops
from harness.analysis.statistics.scaling_series import KINDS, Series, series_of

TITLE = "Model size against length of training"
NEEDS = "a grid of at least three sizes of the model and three lengths of training, or three sizes at equal compute"
LENGTH, ISO_FLOP = "length", "isoFLOP"
MEASURED, LAW, BEST = "measured", "law", "best"
_POINTS = 40
_COLUMNS = ("panel", "role", "series", "metric", "protocol", "arm", "group", "x", "n", "mean", "low", "high", "note")


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return the rows of two kinds of panels, for each series with a grid.

    Panel `length`: value over examples seen (x), grouped by parameters, with L(N, D). Panel `isoFLOP`: value over
    parameters (x), grouped by compute, with the parabola and its minimum (`best`, low and high are those of x).
    """
    rows: list[dict[str, object]] = []
    for series in series_of(runs):
        shared = {"series": series.name, "metric": series.metric, "protocol": series.protocol}
        rows += [shared | row for row in (*_lengths(series), *_iso_flops(series))]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _lengths(series: Series) -> list[dict[str, object]]:
    law = fit_size_and_length(series.sizes)
    if law is None:
        return []
    note = (
        f"L(N, D) = E + A / N^α + B / D^β with E = {_text(law.asymptote)}, α = {_text(law.alpha)}, "
        f"β = {_text(law.beta)}; so the best N grows as compute to the power {_text(law.best_size_exponent)}"
    )
    rows: list[dict[str, object]] = []
    examples = np.geomspace(min(s.examples for s in series.sizes), max(s.examples for s in series.sizes), _POINTS)
    for size in series.sizes:
        row = {"panel": LENGTH, "role": MEASURED, "arm": size.arm, "group": size.parameters, "x": size.examples}
        rows.append({**row, **_summary(size.values), "note": note})
    for parameters in dict.fromkeys(size.parameters for size in series.sizes):
        for x, value in zip(examples, law(parameters, examples), strict=True):
            rows.append({"panel": LENGTH, "role": LAW, "group": parameters, "x": x, "mean": value, "note": note})
    return rows


def _iso_flops(series: Series) -> list[dict[str, object]]:
    budgets = iso_flops(series.sizes)
    exponent = best_size_exponent(budgets)
    note = f"by the minima the best N grows as compute to the power {_text(exponent)}" if exponent else ""
    rows: list[dict[str, object]] = []
    for budget in budgets:
        shared: dict[str, object] = {"panel": ISO_FLOP, "group": budget.compute, "note": note}
        for size in budget.sizes:
            row = {"role": MEASURED, "arm": size.arm, "x": size.parameters}
            rows.append(shared | row | _summary(size.values))
        trained = [size.parameters for size in budget.sizes]
        for x in np.geomspace(min(trained) / 1.2, max(trained) * 1.2, _POINTS):
            rows.append(shared | {"role": LAW, "x": x, "mean": float(budget(np.array(x)))})
        if not budget.at_edge:
            best = budget.best_parameters
            value = float(budget(np.array(best.value)))
            rows.append(shared | {"role": BEST, "x": best.value, "mean": value, "low": best.low, "high": best.high})
    return rows


def _summary(values: dict[int, float]) -> dict[str, object]:
    summary = summarise(values.values())
    return {"n": summary.n, "mean": summary.mean, "low": summary.low, "high": summary.high}


def _text(interval: Interval) -> str:
    span = "" if np.isnan(interval.low) else f" ({interval.low:.2g} to {interval.high:.2g})"
    return f"{interval.value:.3g}{span}"


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    """Draw a row of panels for each series and metric."""
    keys = ["series", "metric", "protocol"]
    rows = list(frame.groupby(keys, sort=False))
    kinds = [kind for kind in (LENGTH, ISO_FLOP) if kind in set(frame["panel"])]
    figure, all_axes = style.subplots(
        len(rows), len(kinds), width=style.ONE_COLUMN * len(kinds), height=3.2 * len(rows)
    )
    for line, ((series, metric, _), part) in zip(all_axes, rows, strict=True):
        for axes, kind in zip(line, kinds, strict=True):
            of_panel = part[part["panel"] == kind]
            if of_panel.empty:
                axes.set_axis_off()
                continue
            _panel(axes, of_panel, kind)
            axes.set_ylabel(style.label(KINDS[metric].axis))
            where = f", {series}" if frame["series"].nunique() > 1 else ""
            title = "At equal compute" if kind == ISO_FLOP else "By size of the model"
            axes.set_title(style.label(f"{title}{where}"))
    return figure


def _panel(axes: style.Axes, rows: pd.DataFrame, kind: str) -> None:
    for index, (group, part) in enumerate(rows.sort_values("group", kind="stable").groupby("group", sort=True)):
        look = style.arm_style(index)
        points, law = part[part["role"] == MEASURED], part[part["role"] == LAW]
        unit = "parameters" if kind == LENGTH else "multiply-adds"
        axes.plot(law["x"], law["mean"], color=look["color"], linewidth=1, linestyle=look["linestyle"])
        axes.errorbar(
            points["x"], points["mean"], [points["mean"] - points["low"], points["high"] - points["mean"]],
            color=look["color"], marker=look["marker"], linestyle="", elinewidth=0.9, capsize=2.5,
            label=f"{_short(float(group))} {unit}",
        )  # fmt: skip
        for best in part[part["role"] == BEST].itertuples():
            if not np.isnan(best.low):
                axes.plot([best.low, best.high], [best.mean] * 2, color=style.INK, linewidth=0.8)
            axes.plot(best.x, best.mean, marker="*", markersize=8, color=style.INK, linestyle="")
    x = "examples seen in training" if kind == LENGTH else "parameters of the model"
    axes.set(xscale="log", yscale="log", xlabel=x)
    trained = rows[rows["role"] == MEASURED]["x"]
    axes.set_xlim(trained.min() / 1.5, trained.max() * 1.5)
    style.plain_log_numbers(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(-0.1, -0.2), ncols=2, fontsize=6.5, columnspacing=1)


def _short(number: float) -> str:
    exponent = int(np.floor(np.log10(number)))
    return f"{number:.3g}" if exponent < 4 else rf"${number / 10**exponent:.2g}\times10^{{{exponent}}}$"


def caption(frame: pd.DataFrame) -> str:
    parts = ["Measurements of a grid of model sizes N and lengths of training D (examples seen); Hoffmann et al. 2022."]
    for (series, metric, _), rows in frame.groupby(["series", "metric", "protocol"], sort=False):
        for note in dict.fromkeys(rows["note"]):
            if note:
                parts.append(f"{KINDS[metric].label}, {series}: {note}.")
    if BEST in set(frame["role"]):
        parts.append("Stars: the best size at equal compute, minimum of a parabola in log N, with its 95 % interval.")
    return " ".join(parts)
