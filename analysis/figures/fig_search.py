"""The figures of a search: history, contour, slices, importances, Pareto front, parallel coordinates and others.

They are drawn from the search's own records, runs/.search/<name>: the point and the result of each trial. The shares of
importances.json are computed by `harness search`, which has optuna.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.figures import fig_trials, style
from harness.analysis.figures.style import Figure, MaxNLocator, Normalize, ScalarMappable
from harness.analysis.runs import RunRecord, load_records
from harness.analysis.search_records import at_rungs, importances, is_search, trials

logger = logging.getLogger(__name__)

MAP = "viridis"  # dark is good, light is bad, also in grey
GREY = "#9a9a9a"
SPREAD = 1.15  # of the kernel that joins the points of a contour, in its own bandwidths
SHORT = {"objective.lambda_vlb": "λ", "diffusion.schedule.s": "s"}


@dataclass(frozen=True)
class Picture:
    """One figure of a search, with the attributes of a figure module."""

    TITLE: str
    NEEDS: str
    data: Callable[[Sequence[RunRecord]], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Figure]
    caption: Callable[[pd.DataFrame], str]


def draw_all(runs_folder: Path, study: str, out: Path) -> list[Path]:
    """Draw the figures that there is data for into a folder; return the paths."""
    runs, paths = load_records(runs_folder, study), []
    versions = tuple(sorted({run.code_version for run in runs}))
    keys = tuple(run.run_key for run in runs)
    for name, picture in FIGURES.items() if is_search(runs) else ():
        try:
            frame = picture.data(runs)
            if not frame.empty:
                command = f"harness figures {study}"
                provenance = style.Provenance(picture.TITLE, study, keys, versions, command)
                style.save(picture.draw(frame), frame, out / name, provenance)
                paths.append(out / f"{name}.png")
        except Exception as error:  # of one figure: the others are drawn
            logger.warning(f"{study}: no {name} figure: {type(error).__name__}: {error}")
    return paths


# ---------------------------------------------------------------------------------------------------------------- data


def _complete(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[(frame["state"] == "complete") & frame["value"].notna()] if len(frame) else frame


def _best_so_far(values: pd.Series, direction: str) -> pd.Series:
    return values.cummin() if direction == "minimize" else values.cummax()


def _history_data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    frame = trials(runs)
    if frame.empty:
        return frame
    frame = frame.drop_duplicates(["trial", "metric"])[["trial", "order", "state", "metric", "direction", "value"]]
    best = []
    for (_, direction), part in frame.groupby(["metric", "direction"], sort=False):
        best.append(_best_so_far(part["value"].where(part["state"] == "complete"), str(direction)).ffill())
    return frame.assign(best=pd.concat(best)).reset_index(drop=True)


def _numeric(frame: pd.DataFrame) -> list[str]:
    """Return the parameters that are numbers and were used in every complete trial."""
    whole = frame.groupby("parameter", sort=False)["position"].apply(lambda column: column.notna().all())
    return [path for path in whole.index[whole] if (frame.loc[frame["parameter"] == path, "names"] == "").all()]


def _contour_data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return two numeric parameters, the most important ones if importances exist, and each trial's value."""
    frame = _complete(trials(runs))
    paths = _numeric(frame) if len(frame) else []
    if len(paths) < 2 or frame["trial"].nunique() < 4:
        return pd.DataFrame()
    shares, _ = importances(runs)
    total = {path: sum(rows.get(path, {}).get("share", 0.0) for rows in shares.values()) for path in paths}
    first, second = sorted(sorted(paths, key=lambda path: -total[path])[:2], key=paths.index)
    columns = ["trial", "metric", "direction", "value", "position", "low", "high", "log"]
    x, y = (frame.loc[frame["parameter"] == path, columns] for path in (first, second))
    joined = x.merge(y.drop(columns=["direction", "value"]), on=["trial", "metric"], suffixes=("_x", "_y"))
    return joined.assign(parameter_x=first, parameter_y=second)


def _slices_data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    frame = _complete(trials(runs))
    return frame[frame["position"].notna()].reset_index(drop=True) if len(frame) else frame


def _importances_data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    shares, num_trials = importances(runs)
    return pd.DataFrame(
        {"metric": metric, "parameter": path, **row, "num_trials": num_trials}
        for metric, rows in shares.items()
        for path, row in rows.items()
    )


def _pareto_data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    frame = _complete(trials(runs))
    if frame.empty or frame["metric"].nunique() < 2:
        return pd.DataFrame()
    first, second = frame["metric"].unique()[:2]
    left, right = (frame[frame["metric"] == name].drop_duplicates("trial") for name in (first, second))
    joined = left.merge(right, on="trial", suffixes=("_x", "_y"))
    columns = ["trial", *(f"{name}_{axis}" for axis in "xy" for name in ("metric", "direction", "value"))]
    joined = joined[[*columns, "order_x"]].rename(columns={"order_x": "order"})
    x, y = (joined[f"value_{a}"] * (1 if joined[f"direction_{a}"][0] == "minimize" else -1) for a in "xy")
    front = [not any((x <= a) & (y <= b) & ((x < a) | (y < b))) for a, b in zip(x, y, strict=True)]
    return joined.assign(on_front=front)


def _parallel_data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    frame = _complete(trials(runs))
    return frame if len(frame) and frame["trial"].nunique() > 1 else pd.DataFrame()


# ------------------------------------------------------------------------------------------------------------- drawing


def _name(path: str) -> str:
    return SHORT.get(path, path)


def _axis(axes: Any, axis: str, row: Any) -> None:
    """Scale an axis for its parameter: logarithmic, or with the names of its choices."""
    scale = getattr(axes, f"{axis}axis")
    if row["names"]:
        names = row["names"].split("|")
        scale.set_ticks(range(len(names)), list(map(style.label, names)))
    getattr(axes, f"set_{axis}scale")("log" if row["log"] else "linear")
    getattr(axes, f"set_{axis}lim")(row["low"], row["high"])


def _clip(values: Iterable[float], direction: str) -> tuple[float, float]:
    """Return axis limits that contain the best and most other values, but not a few diverged trials."""
    ordered = np.sort(np.asarray(list(values), float))
    low, high, median = ordered[0], ordered[-1], np.median(ordered)
    spread = np.median(np.abs(ordered - median)) or (high - low) or 1.0
    if direction == "minimize":
        return low, min(high, median + 8 * spread)
    return max(low, median - 8 * spread), high


@style.in_style
def _draw_history(frame: pd.DataFrame) -> Figure:
    metrics = list(frame["metric"].unique())
    figure, (panels,) = style.subplots(1, len(metrics), width=style.ONE_COLUMN * len(metrics), height=2.5)
    for axes, metric in zip(panels, metrics, strict=True):
        part = frame[frame["metric"] == metric]
        whole, pruned = part[part["state"] == "complete"], part[part["state"] == "pruned"]
        if pruned["value"].notna().any():
            axes.plot(pruned["order"], pruned["value"], "x", color=GREY, label="pruned, last value", zorder=2)
        axes.step(part["order"], part["best"], where="post", color=style.COLOURS[0], label="best so far", zorder=3)
        direction = str(part["direction"].iloc[0])
        if len(whole):
            low, high = _clip(whole["value"], direction)
            inside = whole["value"].between(low, high)
            points = whole[inside]
            axes.plot(points["order"], points["value"], "o", color=style.COLOURS[5], label="trial", zorder=2)
            margin = 0.08 * ((high - low) or 1.0)
            axes.set_ylim(low - margin, high + margin)
            best = whole.loc[whole["value"].idxmin() if direction == "minimize" else whole["value"].idxmax()]
            axes.plot(best["order"], best["value"], "*", color=style.COLOURS[1], markersize=10, zorder=4)
            edge = high + margin if direction == "minimize" else low - margin
            if not inside.all():  # a line without points and without a clip would count as one at the figure's corner
                axes.plot(whole["order"][~inside], np.full((~inside).sum(), edge),
                          "^" if direction == "minimize" else "v", color=style.COLOURS[5], clip_on=False,
                          label="beyond the axis")  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="trials that have ended", ylabel=metric, title=metric if len(metrics) > 1 else "")
    style.legend_below(figure, panels[0])
    return figure


@style.in_style
def _draw_contour(frame: pd.DataFrame) -> Figure:
    metrics = list(frame["metric"].unique())
    figure, (panels,) = style.subplots(1, len(metrics), width=style.ONE_COLUMN * len(metrics), height=3.0)
    for axes, metric in zip(panels, metrics, strict=True):
        part = frame[frame["metric"] == metric]
        row = part.iloc[0]
        scales = [(lambda v: np.log10(v)) if row[f"log_{a}"] else (lambda v: np.asarray(v, float)) for a in "xy"]
        spans = []
        for a, scale in zip("xy", scales, strict=True):
            first, last = map(float, scale([row[f"low_{a}"], row[f"high_{a}"]]))
            spans.append((first, last))
        units = [
            (scale(part[f"position_{a}"]) - span[0]) / (span[1] - span[0])
            for a, scale, span in zip("xy", scales, spans, strict=True)
        ]
        low, high = _clip(part["value"], row["direction"])
        levels = np.linspace(low, high if high > low else low + 1, 13)
        grid = np.linspace(0, 1, 81)
        surface = _smooth(np.column_stack(units), np.clip(part["value"], low, high), grid)
        ends = [np.linspace(*span, 81) for span in spans]
        ends = [10**end if row[f"log_{a}"] else end for a, end in zip("xy", ends, strict=True)]
        colours = MAP if row["direction"] == "minimize" else f"{MAP}_r"
        filled = axes.contourf(
            *ends, surface, levels, cmap=colours, extend="max" if high < part["value"].max() else "neither"
        )
        axes.contour(*ends, surface, levels[::2], colors="white", linewidths=0.4, alpha=0.6)
        axes.scatter(part["position_x"], part["position_y"], c=np.clip(part["value"], low, high), cmap=colours,
                     vmin=levels[0], vmax=levels[-1], s=26, edgecolors="white",
                     linewidths=0.8, clip_on=False, zorder=3)  # fmt: skip
        best = part.loc[part["value"].idxmin() if row["direction"] == "minimize" else part["value"].idxmax()]
        axes.plot(best["position_x"], best["position_y"], "*", color=style.COLOURS[1], markersize=13,
                  markeredgecolor="white", markeredgewidth=0.8, zorder=4, clip_on=False)  # fmt: skip
        for a in "xy":
            _axis(axes, a, {"names": "", "log": row[f"log_{a}"], "low": row[f"low_{a}"], "high": row[f"high_{a}"]})
        axes.set(xlabel=_name(row["parameter_x"]), ylabel=_name(row["parameter_y"]), title=metric)
        axes.grid(False)
        bar = figure.colorbar(filled, ax=axes, ticks=levels[::3], format="%.3g", pad=0.02)
        bar.outline.set_visible(False)
    return figure


def _smooth(points: np.ndarray, values: Iterable[float], grid: np.ndarray) -> np.ndarray:
    """Interpolate scattered values by a Gaussian kernel of Scott's bandwidth: it does not overshoot between points."""
    heights = np.asarray(list(values), float)
    width = SPREAD * len(heights) ** (-1 / 6) * max(points.std(0).mean(), 1e-3)
    x, y = np.meshgrid(grid, grid)
    squared = (x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2
    weights = np.exp(-(squared - squared.min(-1, keepdims=True)) / (2 * width**2))
    return (weights * heights).sum(-1) / weights.sum(-1)


@style.in_style
def _draw_slices(frame: pd.DataFrame) -> Figure:
    metrics, paths = list(frame["metric"].unique()), list(frame["parameter"].unique())
    width = min(style.TWO_COLUMNS * 1.6, style.ONE_COLUMN * max(len(paths), 1))
    figure, panels = style.subplots(len(metrics), len(paths), width=width, height=2.2 * len(metrics), sharey="row")
    colours, stacked = Normalize(1, frame["order"].max()), style.is_stacked(panels)
    for row, metric in enumerate(metrics):
        for column, path in enumerate(paths):
            axes = panels[row, column]
            part = frame[(frame["metric"] == metric) & (frame["parameter"] == path)]
            direction = str(part["direction"].iloc[0])
            low, high = _clip(frame.loc[frame["metric"] == metric, "value"], direction)
            margin = 0.06 * ((high - low) or 1.0)
            beyond = (part["value"] < low) | (part["value"] > high)
            for mask, marker in [(~beyond, "o"), (beyond, "^" if direction == "minimize" else "v")]:
                shown = part[mask]
                axes.scatter(shown["position"], np.clip(shown["value"], low, high), c=shown["order"], norm=colours,
                             cmap="Blues", s=24, marker=marker, edgecolors=style.INK, linewidths=0.4, clip_on=False,
                             zorder=3)  # fmt: skip
            best = part.loc[part["value"].idxmin() if direction == "minimize" else part["value"].idxmax()]
            axes.plot(best["position"], best["value"], "*", color=style.COLOURS[1], markersize=11,
                      markeredgecolor="white", markeredgewidth=0.7, zorder=4)  # fmt: skip
            _axis(axes, "x", part.iloc[0])
            axes.set_ylim(low - margin, high + margin)
            axes.set_xlabel(_name(path) if stacked or row == len(metrics) - 1 else "")
            if stacked or column == 0:
                axes.set_ylabel(metric)
    bar = figure.colorbar(ScalarMappable(colours, "Blues"), ax=panels, pad=0.01, aspect=40,
                          ticks=MaxNLocator(integer=True), label="order of the trials")  # fmt: skip
    bar.outline.set_visible(False)
    return figure


@style.in_style
def _draw_importances(frame: pd.DataFrame) -> Figure:
    metrics = list(frame["metric"].unique())
    paths = list(dict.fromkeys(frame.sort_values("share")["parameter"]))
    figure, ((axes,),) = style.subplots(width=style.ONE_COLUMN * 1.3, height=1.4 + 0.3 * len(paths) * len(metrics))
    thick = 0.8 / len(metrics)
    for index, metric in enumerate(metrics):
        part = frame[frame["metric"] == metric].set_index("parameter").reindex(paths).fillna(0.0)
        y = np.arange(len(paths)) + (len(metrics) - 1 - 2 * index) * thick / 2
        colour = style.COLOURS[index % len(style.COLOURS)]
        axes.barh(y, part["share"], thick * 0.86, color=colour, alpha=0.85, label=metric, zorder=2)
        axes.hlines(y, part["low"], part["high"], color=style.INK, linewidth=1.1, zorder=3)
    axes.set_yticks(range(len(paths)), [_name(path) for path in paths])
    axes.set(xlim=(0, 1), xlabel="share of the variance (fANOVA)")
    axes.grid(False, axis="y")
    if len(metrics) > 1:
        style.legend_below(figure, axes)
    return figure


@style.in_style
def _draw_pareto(frame: pd.DataFrame) -> Figure:
    figure, ((axes,),) = style.subplots(width=style.ONE_COLUMN * 1.3, height=3.0)
    row = frame.iloc[0]
    front = frame[frame["on_front"]].sort_values("value_x")
    axes.plot(frame["value_x"], frame["value_y"], "o", color=style.COLOURS[5], alpha=0.8, label="trial", zorder=2)
    steps = "steps-post" if row["direction_y"] == "minimize" else "steps-pre"
    axes.plot(front["value_x"], front["value_y"], color=style.COLOURS[1], drawstyle=steps, linewidth=1.0, zorder=3)
    axes.plot(front["value_x"], front["value_y"], "D", color=style.COLOURS[1], label="Pareto front", zorder=4)
    for axis in "xy":
        low, high = _clip(frame[f"value_{axis}"], row[f"direction_{axis}"])
        margin = 0.08 * ((high - low) or 1.0)
        getattr(axes, f"set_{axis}lim")(low - margin, high + margin)
    axes.set(xlabel=row["metric_x"], ylabel=row["metric_y"])
    named: list[np.ndarray] = []
    for point in front.itertuples():  # as many numbers as do not overlap
        position = axes.transAxes.inverted().transform(axes.transData.transform((point.value_x, point.value_y)))
        if all(np.abs(position - other).max() > 0.06 for other in named):
            named.append(position)
            data_position = (point.value_x, point.value_y)
            axes.annotate(f"{point.trial}", data_position, (-5, -9), textcoords="offset points", fontsize=7)
    axes.legend(loc="upper right")
    return figure


@style.in_style
def _draw_parallel(frame: pd.DataFrame) -> Figure:
    metric = frame["metric"].iloc[0]
    frame = frame[frame["metric"] == metric]
    direction = str(frame["direction"].iloc[0])
    paths = list(frame["parameter"].unique())
    figure, ((axes,),) = style.subplots(width=min(style.TWO_COLUMNS, 1.5 + 1.7 * (len(paths) + 1)), height=3.0)
    low, high = _clip(frame["value"], direction)
    norm = Normalize(low, high if high > low else low + 1)
    colours = MAP if direction == "minimize" else f"{MAP}_r"
    shade = ScalarMappable(norm, colours)
    columns = [frame[frame["parameter"] == path].set_index("trial") for path in paths]
    heights = [_height(column) for column in columns]
    values = columns[0]["value"]
    heights.append((np.clip(values, low, high) - low) / ((high - low) or 1.0))
    ordered = values.sort_values(ascending=direction == "maximize").index
    for rank, trial in enumerate(ordered):
        line = [height[trial] for height in heights]
        best = rank == len(ordered) - 1
        look = {"color": style.COLOURS[1], "linewidth": 2.0} if best else {"color": shade.to_rgba(values[trial])}
        axes.plot(range(len(line)), line, **{"linewidth": 0.9, "alpha": 0.9} | look, zorder=2 + rank / len(ordered))
    for place, column in enumerate(columns):
        row = column.iloc[0]
        ticks = _ticks(row)
        axes.vlines(place, 0, 1, color=style.INK, linewidth=0.8, zorder=4)
        for height, text in ticks:
            axes.annotate(text, (place, height), (-4, 0), textcoords="offset points", ha="right", va="center",
                          fontsize=7, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.75},
                          zorder=5)  # fmt: skip
    axes.vlines(len(columns), 0, 1, color=style.INK, linewidth=0.8, zorder=4)
    for height in (0.0, 0.5, 1.0):
        axes.annotate(f"{low + height * (high - low):.3g}", (len(columns), height), (4, 0), textcoords="offset points",
                      va="center", fontsize=7, zorder=5)  # fmt: skip
    axes.set_xticks(range(len(columns) + 1), [*(_name(path) for path in paths), metric])
    axes.set(yticks=[], xlim=(-0.2, len(columns) + 0.2), ylim=(-0.04, 1.04))
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)
    return figure


def _height(column: pd.DataFrame) -> pd.Series:
    row = column.iloc[0]
    position, low, high = column["position"].astype(float), row["low"], row["high"]
    if row["log"]:
        position, low, high = np.log10(position), np.log10(low), np.log10(high)
    return (position - low) / (high - low)


def _ticks(row: pd.Series) -> list[tuple[float, str]]:
    if row["names"]:
        names = row["names"].split("|")
        return [((index + 0.5) / len(names), style.label(name)) for index, name in enumerate(names)]
    if row["log"]:
        low, high = np.log10(row["low"]), np.log10(row["high"])
        powers = range(int(np.ceil(low - 1e-9)), int(np.floor(high + 1e-9)) + 1)
        return [((power - low) / (high - low), f"$10^{{{power}}}$") for power in powers]
    return [(part, f"{row['low'] + part * (row['high'] - row['low']):.3g}") for part in (0.0, 0.5, 1.0)]


# ------------------------------------------------------------------------------------------------------------ captions


def _caption_history(frame: pd.DataFrame) -> str:
    pruned = frame.loc[frame["state"] == "pruned", "trial"].nunique()
    of_trials = "1 trial that was" if pruned == 1 else f"{pruned} trials that were"
    note = f" Crosses: {of_trials} pruned, at their last intermediate value." if pruned else ""
    return f"Each trial as it ended, the best so far, and the best (star).{note}"


def _caption_contour(frame: pd.DataFrame) -> str:
    return (
        f"The {frame['trial'].nunique()} trials (points) over {_name(frame['parameter_x'].iloc[0])} and "
        f"{_name(frame['parameter_y'].iloc[0])}; the surface joins them by a Gaussian kernel and knows nothing where "
        "there are no points. Star: the best. Other parameters, if any, vary from point to point."
    )


def _caption_slices(frame: pd.DataFrame) -> str:
    return "Each trial against each parameter, later ones darker; values far beyond the others are drawn at the edge."


def _caption_importances(frame: pd.DataFrame) -> str:
    return (
        f"Each parameter's share of the variance, by fANOVA on {frame['num_trials'].iloc[0]} trials (Hutter et al. "
        "2014). Lines: 10 % to 90 % over bootstrap samples of the trials; where they overlap, the order is not settled."
    )


def _caption_pareto(frame: pd.DataFrame) -> str:
    return (
        f"{frame['on_front'].sum()} of {len(frame)} trials are beaten by none in both metrics; their numbers by them."
    )


def _caption_parallel(frame: pd.DataFrame) -> str:
    return f"Each line is a trial, coloured by {frame['metric'].iloc[0]}, dark is better; the best in orange."


FIGURES: dict[str, Picture] = {
    "search_history": Picture(
        "History of the search", "a trial that has ended", _history_data, _draw_history, _caption_history
    ),
    "search_contour": Picture(
        "Contour", "two numbers in the space, and four complete trials", _contour_data, _draw_contour, _caption_contour
    ),
    "search_slices": Picture("Slices", "a complete trial", _slices_data, _draw_slices, _caption_slices),
    "search_importances": Picture(
        "Importances",
        "importances.json, which `harness search` leaves at its end",
        _importances_data,
        _draw_importances,
        _caption_importances,
    ),
    "search_pareto": Picture(
        "Pareto front", "two metrics and a complete trial", _pareto_data, _draw_pareto, _caption_pareto
    ),
    "search_parallel": Picture(
        "Parallel coordinates", "two complete trials", _parallel_data, _draw_parallel, _caption_parallel
    ),
    "search_intermediate": Picture(
        "Values during training",
        "an evaluation with every, of a metric of the search",
        fig_trials.intermediate_data,
        fig_trials.draw_intermediate,
        fig_trials.caption_intermediate,
    ),
    "search_rungs": Picture(
        "From rung to rung",
        "a search with rungs, and a trial that has ended",
        at_rungs,
        fig_trials.draw_rungs,
        fig_trials.caption_rungs,
    ),
    "search_distribution": Picture(
        "Distribution of the results",
        "two complete trials",
        fig_trials.distribution_data,
        fig_trials.draw_distribution,
        fig_trials.caption_distribution,
    ),
}
