"""More figures of a search: the trials over training and from rung to rung, and the distribution of their results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from harness.analysis.figures import style
from harness.analysis.figures.style import Figure
from harness.analysis.runs import RunRecord
from harness.analysis.search_records import trials

GREY = "#9a9a9a"


def intermediate_data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return the searched metrics of every run over its training, where they were measured more than once."""
    ended = trials(runs)
    metrics = dict(zip(ended["metric"], ended["direction"], strict=True)) if len(ended) else {}
    rows = []
    for run in runs:
        for metric, direction in metrics.items():
            steps, values = run.history(metric)
            row = {"metric": metric, "direction": direction, "run_key": run.run_key, "state": run.state}
            if metric in run.over_training and len(steps) > 1:
                points = zip(steps, values, strict=True)
                rows += [row | {"step": step, "value": value} for step, value in points if np.isfinite(value)]
    return pd.DataFrame(rows)


@style.in_style
def draw_intermediate(frame: pd.DataFrame) -> Figure:
    """Draw a panel for each metric: pruned runs in grey, the best at the end in orange."""
    metrics = list(frame["metric"].unique())
    figure, (panels,) = style.subplots(1, len(metrics), width=style.ONE_COLUMN * len(metrics), height=2.5)
    for axes, metric in zip(panels, metrics, strict=True):
        part = frame[frame["metric"] == metric].sort_values("step", kind="stable")
        last = part[part["state"] == "done"].groupby("run_key")["value"].last()
        lower_is_better = part["direction"].iloc[0] == "minimize"
        best = (last.idxmin() if lower_is_better else last.idxmax()) if len(last) else None
        for (key, state), curve in part.groupby(["run_key", "state"], sort=False):
            look = {"color": style.COLOURS[0], "linewidth": 0.8, "alpha": 0.7}
            if state == "pruned":
                look = {"color": GREY, "linewidth": 0.8, "linestyle": "--"}
            elif key == best:
                look = {"color": style.COLOURS[1], "linewidth": 1.8, "zorder": 4}
            axes.plot(curve["step"], curve["value"], **look)
            axes.plot(curve["step"].iloc[-1], curve["value"].iloc[-1], "x" if state == "pruned" else ".", **look)
        axes.set(xlabel="iterations", ylabel=style.label(metric))
        if (part["value"] > 0).all():
            axes.set_yscale("log")
            style.plain_log_numbers(axes)
    return figure


def caption_intermediate(frame: pd.DataFrame) -> str:
    pruned = frame.loc[frame["state"] == "pruned", "run_key"].nunique()
    return (
        f"What was measured during the training of {frame['run_key'].nunique()} runs; dashed grey: the {pruned} that "
        "were pruned, up to their last value; orange: the best at its end."
    )


@style.in_style
def draw_rungs(frame: pd.DataFrame) -> Figure:
    """Draw each trial up to its last rung: dropped ones end in a cross, the best at the end is orange."""
    figure, ((axes,),) = style.subplots(width=style.ONE_COLUMN * 1.3, height=2.7)
    steps = frame.drop_duplicates("rung").sort_values("rung")
    last = frame[frame["state"] == "complete"].groupby("trial")["value"].last()
    best = (last.idxmin() if frame["direction"].iloc[0] == "minimize" else last.idxmax()) if len(last) else None
    labels = set()
    for (trial, state), line in frame.groupby(["trial", "state"], sort=False):
        label, look = "dropped at a rung", {"color": GREY, "linewidth": 0.7, "linestyle": "--", "zorder": 2}
        if trial == best:
            label, look = "best", {"color": style.COLOURS[1], "linewidth": 2.0, "zorder": 4}
        elif state == "complete":
            label, look = "trained to the end", {"color": style.COLOURS[0], "linewidth": 1.1, "zorder": 3}
        marker = {"marker": "x" if state == "pruned" else "o", "markersize": 4, "markevery": [len(line) - 1]}
        axes.plot(line["rung"], line["value"], label=label if label not in labels else None, **look, **marker)
        labels.add(label)
    if (frame["value"].dropna() > 0).all():
        axes.set_yscale("log")
        style.plain_log_numbers(axes)
    for rung, number in frame.groupby("rung")["trial"].nunique().items():
        axes.annotate(f"{number}", (rung, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                      ha="center", fontsize=7)  # fmt: skip
    axes.set_xticks(steps["rung"], [f"{step:,}" for step in steps["step"]])
    axes.set(xlabel="rung (iterations)", ylabel=style.label(frame["metric"].iloc[0]))
    style.legend_below(figure, axes)
    return figure


def caption_rungs(frame: pd.DataFrame) -> str:
    dropped = frame.groupby("trial")["state"].first().eq("pruned").sum()
    lost = frame.loc[frame["value"].isna(), "trial"].nunique()
    note = f" {lost} had a value that is no number, which is not drawn." if lost else ""
    return (
        f"{frame['trial'].nunique()} trials from rung to rung, with the number that were measured at each; {dropped} "
        f"were dropped (crosses, at their last value), the others trained to the end.{note}"
    )


def distribution_data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return the complete trials' values of each metric in order, with the share of trials that are no worse."""
    frame = trials(runs)
    frame = frame[(frame["state"] == "complete") & frame["value"].notna()] if len(frame) else frame
    if frame.empty or frame["trial"].nunique() < 2:
        return pd.DataFrame()
    parts = []
    for (_, direction), part in frame.drop_duplicates(["trial", "metric"]).groupby(["metric", "direction"], sort=False):
        part = part.sort_values("value", ascending=direction == "minimize")[["metric", "direction", "trial", "value"]]
        parts.append(part.assign(share=np.arange(1, len(part) + 1) / len(part)))
    return pd.concat(parts, ignore_index=True)


@style.in_style
def draw_distribution(frame: pd.DataFrame) -> Figure:
    metrics = list(frame["metric"].unique())
    figure, (panels,) = style.subplots(1, len(metrics), width=style.ONE_COLUMN * len(metrics), height=2.4)
    for axes, metric in zip(panels, metrics, strict=True):
        part = frame[frame["metric"] == metric]
        axes.step(part["value"], part["share"], where="post", color=style.COLOURS[0], marker=".", markersize=4)
        axes.set(xlabel=style.label(metric), ylabel="share of trials as good", ylim=(0, 1.05))
        if part["direction"].iloc[0] == "maximize":
            axes.invert_xaxis()
    return figure


def caption_distribution(frame: pd.DataFrame) -> str:
    return (
        f"The share of the {frame['trial'].nunique()} complete trials that are at least as good as a value, better "
        "values on the left: how hard good settings are to find."
    )
