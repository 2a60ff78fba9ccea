"""Samples of a mixture in the plane, for each method and number of sampling steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from harness.analysis.figures import style
from harness.analysis.figures.style import Figure
from harness.analysis.mixture import sampled_mixtures
from harness.analysis.runs import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Samples of the mixture"
NEEDS = "an evaluation with modes"
MAX_POINTS = 4000  # drawn in each panel
COLUMNS = ["row", "arm", "arm_index", "replicate", "run_key", "num_steps", "high_quality", "modes_covered", "num_modes"]


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return the samples of the first measured replicate for each row and number of steps.

    `points` is float32 [n, 2], `centres` [K, 2]; both belong to the run of `run_key`, and so do the numbers.
    """
    shown: dict[tuple[str, int], dict] = {}
    for sample in sampled_mixtures(runs):
        key = (sample.row, sample.num_steps)
        if key in shown or not (arrays := sample.arrays()):
            continue
        run, shares = sample.run, arrays["shares"]
        values = [sample.row, run.arm, sample.index, run.replicate, run.run_key, sample.num_steps]
        values += [sample.metric("high_quality"), sample.metric("modes_covered"), len(shares)]
        row = dict(zip(COLUMNS, values, strict=True))
        shown[key] = row | {"points": arrays["points"], "centres": arrays["centres"]}
    return pd.DataFrame(list(shown.values()), columns=[*COLUMNS, "points", "centres"])


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    rows, steps = list(frame["row"].unique()), sorted(frame["num_steps"].unique())
    size = min(2.0, (style.full_width() - 0.3) / max(3, len(steps)), 9.0 / len(rows))
    width, height = size * len(steps) + 0.3, (size + 0.2) * len(rows) + 0.25
    figure, panels = style.subplots(
        len(rows), len(steps), width=style.full_width(max(width, 1.8)), height=height, stacks=False
    )
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.05, wspace=0.02, hspace=0.02)
    cells = {(row["row"], row["num_steps"]): row for _, row in frame.iterrows()}
    for line, name in enumerate(rows):
        first = frame[frame["row"] == name].iloc[0]
        colour = style.arm_style(first["arm_index"])["color"]
        for column, num_steps in enumerate(steps):
            axes = panels[line, column]
            cell = cells.get((name, num_steps))
            _draw_panel(axes, cell, colour, letters=min(6.5, size * 6.5))
            if line == 0:
                axes.annotate(
                    f"{num_steps} step{'s' if num_steps > 1 else ''}", (0.5, 1), (0, 13), xycoords="axes fraction",
                    textcoords="offset points", ha="center", va="bottom", fontsize=8, fontweight="bold",
                )  # fmt: skip
        letters = min(8.0, 72 * size / (0.6 * max(len(name), 1)))
        panels[line, 0].set_ylabel(
            style.title_of(name, first["arm"]), color=colour, fontsize=letters, fontweight="bold", labelpad=3
        )
    return figure


def _draw_panel(axes: Axes, cell: pd.Series | None, colour: str, letters: float) -> None:
    """Draw one number of steps; an empty frame without lines where it was not sampled."""
    axes.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal", xticks=[], yticks=[])
    axes.spines[:].set_visible(cell is not None)
    axes.spines[:].set(color="#bbbbbb", linewidth=0.5)
    if cell is None:
        axes.text(0, 0, "–", color="#999999", ha="center", va="center")
        return
    points = cell["points"][:MAX_POINTS]
    points = points[np.isfinite(points).all(1)]
    axes.scatter(points[:, 0], points[:, 1], s=0.7, color=colour, lw=0, alpha=0.35, rasterized=True)
    axes.scatter(
        cell["centres"][:, 0], cell["centres"][:, 1], s=7, marker="+", color=style.INK, linewidths=0.45, zorder=3
    )
    quality = "–" if np.isnan(cell["high_quality"]) else f"{100 * cell['high_quality']:.1f} %"
    text = f"{quality} · {cell['modes_covered']:.0f}/{cell['num_modes']}"
    axes.annotate(
        text, (0.5, 1), (0, 2), xycoords="axes fraction", textcoords="offset points", ha="center", va="bottom",
        fontsize=letters,
    )  # fmt: skip


def caption(frame: pd.DataFrame) -> str:
    most = max(map(len, frame["points"]))
    some = f", the first {MAX_POINTS:,} of {most:,}" if most > MAX_POINTS else ""
    return (
        f"Samples of the first replicate{some}; crosses: the centres of the modes. Above each panel: the share of "
        "samples within three standard deviations of a mode, and how many modes have one. Samples outside are not "
        "shown, but counted."
    )
