"""Curves over something else than training, arm by arm: what figures of one metric against one quantity share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.analysis.figures import style
from harness.analysis.figures.style import Figure, Line2D
from harness.analysis.runs import Measurement, RunRecord, arm_index
from harness.analysis.settings import Labels, sampling_protocol
from harness.analysis.statistics.intervals import summarise_by
from harness.spec.metrics import curve_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEYS = ["protocol", "arm", "arm_index", "variance"]

Read = Callable[[RunRecord, Measurement], tuple[str, dict[str, Any], dict[str, Any]]]


def collect(runs: Sequence[RunRecord], part: str, read: Read) -> pd.DataFrame:
    """Return the curves of all measurements that have a part, a row for each point of each run.

    Args:
        read: a run and a measurement -> its protocol in short, the protocol in full, and equally long columns; these
            are empty where the records lack them. Two protocols of one short name are told apart by what differs.

    Returns:
        the columns of `KEYS`, `run_key` and those of `read`.
    """
    index, protocols, parts = arm_index(runs), Labels(), []
    for run in runs:
        for measurement in run.measured(part):
            name, protocol, columns = read(run, measurement)
            del protocol["fixed_variance"]  # a column of its own
            if columns:
                keys = [protocols.add(name, protocol), run.arm, index[run.arm], run.variance(measurement), run.run_key]
                count = len(next(iter(columns.values())))
                repeated = {key: [value] * count for key, value in zip([*KEYS, "run_key"], keys, strict=True)}
                parts.append(pd.DataFrame(repeated | columns))
    if not parts:
        return pd.DataFrame(columns=[*KEYS, "run_key"])
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(protocol=frame["protocol"].map(protocols.texts()))


def fid_along_the_chain(
    run: RunRecord, measurement: Measurement, part: str, name_of: Callable[[str, int, str, int], str], points: str
) -> tuple[str, dict[str, Any], np.ndarray, np.ndarray]:
    """Return the short and the full protocol, and the curve, of FID at points along the reverse process.

    Args:
        name_of: the curve's name, from extractor, number of samples, sampler and number of steps.
        points: the parameter that says where, which is no part of the protocol.
    """
    parameters = measurement.evaluation[part]
    extractor, sampler = run.extractor(parameters), parameters["sampler"]["name"]
    name = name_of(extractor, parameters["num_samples"], sampler, parameters["num_steps"])
    steps, values = run.history(curve_name(measurement.prefix, part, name))
    protocol = sampling_protocol(measurement, part)
    protocol[part] = {key: value for key, value in parameters.items() if key not in (points, "num_steps")}
    return f"{extractor}, {parameters['num_samples']} samples, {sampler}", protocol, steps, finite(values)


def over_replicates(frame: pd.DataFrame, x: str, value: str) -> pd.DataFrame:
    """Summarise a column of `collect` over replicates, for each curve and x."""
    if frame.empty:
        return pd.DataFrame(columns=[*KEYS, x, "n", "mean", "low", "high", "kind"])
    return summarise_by(frame, [*KEYS, x], value)


def panels(count: int, *, height: float = 2.5) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels, in rows of three at most."""
    columns = min(count, 3)
    rows = -(-count // columns)
    width = style.TWO_COLUMNS if columns > 1 else style.ONE_COLUMN
    figure, axes = style.subplots(rows, columns, width=width, height=height * rows + 0.4)
    for left_over in axes.flat[count:]:
        left_over.set_axis_off()
    return figure, list(axes.flat[:count])


def draw_by_protocol(frame: pd.DataFrame, x: str, xlabel: str, ylabel: str) -> Figure:
    """Draw one panel for each protocol."""
    protocols = list(frame["protocol"].unique())
    figure, axes_of = panels(len(protocols))
    for axes, protocol in zip(axes_of, protocols, strict=True):
        draw_curves(axes, frame[frame["protocol"] == protocol], x)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_title(style.label(protocol), fontsize=7.5)
        if (frame["low"] > 0).all():
            axes.set_yscale("log")
            style.plain_log_numbers(axes)
    legend(figure, frame)
    return figure


def draw_curves(axes: Axes, frame: pd.DataFrame, x: str) -> None:
    """Draw the curves of one panel with bars over replicates."""
    several = _several_variances(frame)
    for (_, variance), part in frame.groupby(["arm", "variance"], sort=False):
        part, look = part.sort_values(x), style.arm_style(part["arm_index"].iloc[0])
        face = "white" if several and variance == "β̃" else look["color"]
        axes.errorbar(
            part[x], part["mean"], [part["mean"] - part["low"], part["high"] - part["mean"]], **look,
            markerfacecolor=face, markersize=3.5, elinewidth=0.8, capsize=2, linewidth=1.2,
        )  # fmt: skip


def legend(figure: Figure, frame: pd.DataFrame, *more: Line2D) -> None:
    """Add a legend below all panels: the arms, the fixed variances where an arm has both, and what else is drawn."""
    arms = frame.drop_duplicates("arm")
    handles = [
        Line2D([], [], **style.arm_style(index), markersize=3.5, linewidth=1.2, label=style.arm_label(arm))
        for arm, index in zip(arms["arm"], arms["arm_index"], strict=True)
    ]
    if _several_variances(frame):
        handles += [
            Line2D([], [], color=style.INK, marker="o", linestyle="", markerfacecolor=face, label=f"σ² = {name}")
            for name, face in (("β", style.INK), ("β̃", "white"))
        ]
    handles += more
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))


def _several_variances(frame: pd.DataFrame) -> bool:
    return bool(frame.groupby("arm")["variance"].nunique().max() > 1)


def finite(values: Any) -> np.ndarray:
    """Return values as floats, infinities as NaN."""
    array = np.asarray(values, float)
    return np.where(np.isfinite(array), array, np.nan)
