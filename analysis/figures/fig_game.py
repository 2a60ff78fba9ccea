"""Training against a discriminator: accuracies, both players' losses, the penalty and gradient norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from harness.analysis.figures import style
from harness.analysis.figures.style import Figure, Line2D
from harness.analysis.runs import RunRecord, arm_index
from harness.spec.metrics import OF_THE_GAME

TITLE = "Generator against discriminator"
NEEDS = "a method that trains a discriminator"
BINS = 60


class Panel(NamedTuple):
    """One panel: its title, its axis, and recorded names (without `train/`) with what each is called in the legend."""

    title: str
    axis: str
    curves: dict[str, str]
    log: bool = False


PANELS = (
    Panel("Discriminator", "accuracy", {"accuracy_real": "real", "accuracy_fake": "generated"}),
    Panel(
        "Losses",
        "nats",
        {"discriminator_loss_real": "D, real", "discriminator_loss_fake": "D, generated", "generator_loss": "G"},
    ),
    Panel("Penalty", "R1 penalty", {"r1_penalty": ""}, log=True),
    Panel(
        "Gradients",
        "norm",
        {"grad_norm_discriminator": "discriminator", "grad_norm_generator": "generator"},
        log=True,
    ),
    Panel("Forward diffusion", "AFD term", {"afd": ""}),
    Panel(
        "Regression heads",
        "squared error",
        {"regression_loss": "of $x_t$", "denoising_loss": "of $x_0$"},
        log=True,
    ),
)


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return the recorded curves of the game over replicates, as means over bins of iterations.

    `curve` is the recorded name without `train/`; a curve that no run has is left out.
    """
    index, rows = arm_index(runs), []
    longest = max((run.spec["train"]["steps"] for run in runs), default=1)
    width = max(1, -(-longest // BINS))
    for run in runs:
        for curve in OF_THE_GAME:
            steps, values = run.history(f"train/{curve}")
            bins = -(-steps // width)
            for end in np.unique(bins):
                row = {"curve": curve, "arm": run.arm, "arm_index": index[run.arm], "iteration": end * width}
                rows.append(row | {"value": values[bins == end].mean()})
    keys = ["curve", "arm", "arm_index", "iteration"]
    values = pd.DataFrame(rows, columns=[*keys, "value"]).groupby(keys, sort=False)["value"]
    frame = values.agg(["count", "mean", "min", "max"]).reset_index()
    return frame.rename(columns={"count": "n", "min": "low", "max": "high"})


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    recorded = set(frame["curve"])
    panels = [panel for panel in PANELS if recorded & panel.curves.keys()]
    columns = 3 if len(panels) > 4 else 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    width = style.TWO_COLUMNS if columns > 1 else style.ONE_COLUMN
    figure, grid = style.subplots(rows, columns, width=width, height=2.15 * rows + 0.3)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, panels, strict=False):
        lines = dict(zip(panel.curves, style.LINES, strict=False))
        for (curve, _), part in frame[frame["curve"].isin(lines)].groupby(["curve", "arm"], sort=False):
            part = part.sort_values("iteration")
            colour = style.arm_style(part["arm_index"].iloc[0])["color"]
            axes.plot(part["iteration"], part["mean"], color=colour, linestyle=lines[str(curve)], linewidth=1.1)
            axes.fill_between(part["iteration"], part["low"], part["high"], color=colour, alpha=0.15, lw=0)
        axes.set(xlabel="iterations", ylabel=panel.axis)
        axes.set_title(panel.title)
        axes.xaxis.set_major_locator(style.MaxNLocator(5))
        if panel.title == "Discriminator":
            axes.set_ylim(-0.03, 1.03)
        elif panel.log and (frame.loc[frame["curve"].isin(lines), "low"] > 0).all():
            axes.set_yscale("log")
            style.plain_log_numbers(axes)
        names = {curve: name for curve, name in panel.curves.items() if name and curve in recorded}
        if len(names) > 1:
            handles = [
                Line2D([], [], color=style.INK, linestyle=lines[curve], lw=1.1, label=names[curve]) for curve in names
            ]
            axes.legend(handles=handles, loc="best", handlelength=2.2, labelspacing=0.25)
    arms = frame.drop_duplicates("arm")
    if len(arms) > 1:
        looks = [style.arm_style(index)["color"] for index in arms["arm_index"]]
        handles = [
            Line2D([], [], color=colour, lw=1.5, label=style.arm_label(arm))
            for arm, colour in zip(arms["arm"], looks, strict=True)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(arms), 6))
    return figure


def caption(frame: pd.DataFrame) -> str:
    several = frame["n"].max() > 1
    bands = f" Lines: means over {frame['n'].max()} replicates; bands: their range." if several else ""
    return (
        "Means over bins of iterations. Accuracy: the share of real and of generated examples that the discriminator "
        "takes for what they are; at 1 for both the generator gets no gradient, at 0.5 the discriminator cannot tell "
        f"them apart.{bands}"
    )
