"""Reverse trajectories from noise to data: pictures of x_t and the predicted x_0, or paths in the plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from harness.analysis.figures import style
from harness.analysis.figures.fig_samples import tile
from harness.analysis.figures.style import Figure
from harness.analysis.runs import RunRecord, arm_index, by_arm
from harness.spec.metrics import array_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Reverse trajectories"
NEEDS = "an evaluation with trajectories"
MAX_PICTURES, MAX_PATHS = 2, 5
COLUMNS = ["evaluation", "arm", "arm_index", "replicate", "run_key", "steps_left", "x_t", "x_0"]


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return the first trajectories of each arm's first measured replicate.

    `steps_left` is [F]; `x_t` and `x_0`, as predicted from it, are uint8 [F, n, C, H, W], or float [F, n, 2, 1, 1]
    where the data are points of the plane.
    """
    index, rows = arm_index(runs), list[dict]()
    for arm, replicates in by_arm(runs).items():
        first: dict[str, dict] = {}
        for run in replicates:
            for measurement in run.measured("trajectories"):
                arrays = run.arrays(array_file(measurement.prefix, "trajectories"))
                if not arrays or measurement.name in first:
                    continue
                count = MAX_PATHS if arrays["x_t"].shape[-1] == 1 else MAX_PICTURES
                values = [measurement.name, arm, index[arm], run.replicate, run.run_key, arrays["steps_left"]]
                values += [arrays[name][:, :count] for name in ("x_t", "x_0")]
                first[measurement.name] = dict(zip(COLUMNS, values, strict=True))
        rows += first.values()
    return pd.DataFrame(rows, columns=COLUMNS).sort_values("evaluation", kind="stable")


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    points = [row["x_t"].shape[-1] == 1 for _, row in frame.iterrows()]
    return _draw_paths(frame) if all(points) else _draw_pictures(frame[~np.array(points)])


def _title(axes: Axes, frame: pd.DataFrame, row: pd.Series, letters: float = 8.5) -> None:
    several = frame["evaluation"].nunique() > 1
    title = f"{row['arm']} ({row['evaluation']})" if several else row["arm"]
    axes.set_title(
        style.title_of(title, row["arm"]), color=style.arm_style(row["arm_index"])["color"], fontsize=letters
    )


def _draw_pictures(frame: pd.DataFrame) -> Figure:
    """Draw a panel for each arm: for each sample a row of x_t and one of the predicted x_0, a column for each frame."""
    shapes = [row["x_t"].shape for _, row in frame.iterrows()]
    longest = max(shape[0] for shape in shapes)
    size = min(0.62, (style.full_width() - 0.35) / longest)
    heights = [size * 2 * shape[1] + 0.42 for shape in shapes]
    width = max(size * longest + 0.35, 2.0)
    figure, panels = style.subplots(
        len(frame), 1, width=style.full_width(width), height=sum(heights) + 0.1, stacks=False, height_ratios=heights
    )
    for axes, (_, row) in zip(panels[:, 0], frame.iterrows(), strict=True):
        x_t, x_0, steps_left = row["x_t"], row["x_0"], row["steps_left"]
        num_frames, count = x_t.shape[:2]
        pictures = np.stack([x_t, x_0]).transpose(2, 0, 1, 3, 4, 5).reshape(-1, *x_t.shape[2:])
        canvas = tile(pictures, num_frames)
        step = (canvas.shape[1] + 2) / num_frames
        axes.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        middles = (np.arange(max(num_frames, 2 * count)) + 0.5) * step - 1
        axes.set_xticks(middles[:num_frames], [str(left) for left in steps_left])
        axes.set_yticks(middles[: 2 * count], ["$x_t$", r"$\hat{x}_0$"] * count)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        axes.set_anchor("W")
        _title(axes, frame, row)
    panels[-1, 0].set_xlabel("steps left")
    return figure


def _draw_paths(frame: pd.DataFrame) -> Figure:
    """Draw two panels for each arm: the paths of x_t, and those of the predicted x_0."""
    rows = list(frame.iterrows())
    columns = 2 if len(rows) == 1 or style.full_width() < 4.5 else 4
    lines = -(-2 * len(rows) // columns)
    size = style.full_width() / columns
    figure, panels = style.subplots(
        lines, columns, width=style.full_width(), height=(size + 0.15) * lines, stacks=False
    )
    for axes in panels.flat[2 * len(rows) :]:
        axes.set_axis_off()
    extents = {name: _extent(frame[name]) for name in ("x_t", "x_0")}
    for place, (_, row) in enumerate(rows):
        colour = style.arm_style(row["arm_index"])["color"]
        for axes, name, symbol in zip(
            panels.flat[2 * place : 2 * place + 2], ("x_t", "x_0"), ("$x_t$", r"predicted $x_0$"), strict=True
        ):
            paths = row[name].reshape(*row[name].shape[:2], -1)  # [F, n, 2]
            axes.plot(paths[..., 0], paths[..., 1], color=colour, lw=0.6, alpha=0.55)
            axes.scatter(paths[:-1, :, 0], paths[:-1, :, 1], s=3, color=colour, alpha=0.55, lw=0)
            axes.scatter(paths[0, :, 0], paths[0, :, 1], s=10, facecolor="white", edgecolor=colour, lw=0.7, zorder=3)
            axes.scatter(paths[-1, :, 0], paths[-1, :, 1], s=13, color=style.INK, lw=0, zorder=4)
            limits = (-extents[name], extents[name])
            axes.set(xlim=limits, ylim=limits, aspect="equal")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(style.MaxNLocator(5, integer=True))
            if name == "x_t":
                _title(axes, frame, row, min(8.5, 72 * size / (0.62 * max(len(row["arm"]), 1))))
            axes.text(0.98, 1.02, symbol, transform=axes.transAxes, ha="right", va="bottom", fontsize=7.5)
    return figure


def _extent(paths: pd.Series) -> float:
    """Return how far the paths of all arms reach along an axis, 1.1 at least; the same in all panels."""
    largest = [np.abs(values[np.isfinite(values)]).max(initial=0.0) for values in paths]
    return 1.05 * max(1.05, *largest)


def caption(frame: pd.DataFrame) -> str:
    first = frame["x_t"].iloc[0]
    if first.shape[-1] == 1:
        return (
            f"Paths of {first.shape[1]} samples of one replicate, in {len(first)} frames evenly spread over the chain: "
            "from noise (open) to the sample (black), x_t beside the x_0 that was predicted at each step. All arms "
            "start from the same noise."
        )
    return (
        "The first samples of one replicate, unselected: x_t from noise to the sample, and below it the x_0 that was "
        "predicted from it; numbers: steps left. All arms start from the same noise."
    )
