"""alpha-bar over the chain: how fast each schedule destroys the data (IDDPM, figure 5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from harness.analysis import papers
from harness.analysis.figures import style
from harness.analysis.figures.style import Figure
from harness.analysis.runs import RunRecord
from harness.diffusion.schedules import SCHEDULES, tables

TITLE = "What is left of the data"
NUM_TIMESTEPS = 1000
REFERENCE = papers.FOLDER / "iddpm_fig5_alpha_bar.csv"


def data(runs: Sequence[RunRecord] = ()) -> pd.DataFrame:
    """Return alpha-bar of every registered schedule at u = t / T, t counted from 1; `reference` where known."""
    t = np.arange(1, NUM_TIMESTEPS + 1)
    frame = pd.concat(
        pd.DataFrame({"schedule": name, "t": t, "u": t / NUM_TIMESTEPS, "alpha_bar": tables(make(NUM_TIMESTEPS))[1]})
        for name, make in SCHEDULES.items()
    )
    reference = pd.read_csv(REFERENCE).rename(columns={"alpha_bar": "reference"})
    reference["t"] = (reference["u"] * NUM_TIMESTEPS).round().astype(int)
    return frame.merge(reference[["schedule", "t", "reference"]], on=["schedule", "t"], how="left")


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    figure, ((axes,),) = style.subplots(width=style.ONE_COLUMN * 1.25, height=2.7)
    labelled: list[float] = []
    for index, (schedule, part) in enumerate(frame.groupby("schedule", sort=False)):
        colour = style.COLOURS[index]
        middle = part.iloc[(part["alpha_bar"] - 0.62).abs().argmin()]
        lies_on_another = any(abs(middle["u"] - other) < 0.02 for other in labelled)  # vp on linear
        labelled.append(middle["u"])
        axes.plot(part["u"], part["alpha_bar"], "--" if lies_on_another else "-", color=colour)
        known = part.dropna(subset="reference")
        axes.plot(known["u"], known["reference"], "o", color=colour, markerfacecolor="white", markersize=4)
        on_the_left = lies_on_another or middle["u"] > 0.8
        axes.annotate(
            str(schedule),
            (middle["u"], middle["alpha_bar"]),
            (-5, -10) if on_the_left else (5, 3),
            textcoords="offset points",
            ha="right" if on_the_left else "left",
            color=colour,
        )
    axes.set(xlabel="diffusion step t / T", ylabel=r"$\bar\alpha_t$", xlim=(0, 1), ylim=(-0.02, 1.04), title=TITLE)
    return figure


def caption(frame: pd.DataFrame) -> str:
    return (
        f"Share of the signal's variance that is left at each step, T = {NUM_TIMESTEPS}; IDDPM, figure 5. "
        "Circles: values recomputed from the paper's formulas. The linear schedule has destroyed nearly everything at "
        "three quarters of the chain, the cosine schedule has not."
    )
