"""beta-tilde_t / beta_t over the chain: the choice of a fixed variance matters only near t = 0 (IDDPM, figure 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from harness.analysis import papers
from harness.analysis.figures import style
from harness.analysis.figures.style import Figure
from harness.analysis.runs import RunRecord
from harness.diffusion.schedules import SCHEDULES, tables

TITLE = "Upper and lower bound of the reverse variance"
LENGTHS = (100, 1000, 10_000)
REFERENCE = papers.FOLDER / "iddpm_fig1_beta_ratio.csv"


def data(runs: Sequence[RunRecord] = ()) -> pd.DataFrame:
    """Return the ratio for the linear schedule, t counted from 1 as in the paper; `reference` where known."""
    parts = []
    for num_timesteps in LENGTHS:
        known = tables(SCHEDULES["linear"](num_timesteps))
        t = np.arange(1, num_timesteps + 1)
        ratio = known.posterior_variance / known.betas
        part = pd.DataFrame({"num_timesteps": num_timesteps, "t": t, "u": t / num_timesteps, "ratio": ratio})
        # Every t up to 100, then enough for a smooth curve on a logarithmic axis.
        kept = np.unique(np.concatenate([t[:100], np.geomspace(1, num_timesteps, 300).round().astype(int)]))
        parts.append(part[part["t"].isin(kept)])
    reference = pd.read_csv(REFERENCE).rename(columns={"ratio": "reference"}).drop(columns="source")
    return pd.concat(parts).merge(reference, on=["num_timesteps", "t"], how="left")


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    figure, ((axes,),) = style.subplots(width=style.ONE_COLUMN * 1.25, height=2.7)
    for index, (num_timesteps, part) in enumerate(frame.groupby("num_timesteps")):
        colour = style.COLOURS[index]
        axes.plot(part["u"], part["ratio"], color=colour)
        height = 0.14 + 0.2 * index  # so that names do not touch each other in a narrow figure
        middle = part.iloc[(part["ratio"] - height).abs().argmin()]
        axes.annotate(
            f"T = {num_timesteps:,}", (middle["u"], height), (6, -4), textcoords="offset points", color=colour
        )
        known = part.dropna(subset="reference")
        axes.plot(known["u"], known["reference"], "o", color=colour, markerfacecolor="white", markersize=4)
    axes.set(
        xscale="log",
        xlabel="diffusion step t / T",
        ylabel=r"$\tilde\beta_t\,/\,\beta_t$",
        ylim=(-0.02, 1.04),
        title=TITLE,
    )
    return figure


def caption(frame: pd.DataFrame) -> str:
    worst = (frame["ratio"] - frame["reference"]).abs().max()
    return (
        "Ratio of the two fixed variances, β̃ₜ (small) and βₜ (large), for the linear schedule; IDDPM, figure 1. "
        f"Circles: values recomputed from the paper's formulas; the largest difference is {worst:.1g} (they have four "
        "decimals). The longer the chain, the smaller the share of it where the choice matters."
    )
