"""The terms of the bound over t, arm by arm: a few small t carry most of the bits (IDDPM, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from harness.analysis.figures import style
from harness.analysis.figures.style import Figure
from harness.analysis.runs import RunRecord, arm_index

TITLE = "Terms of the variational bound"
NEEDS = "an evaluation with nll"


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return L_t in bits/dim for each evaluation, arm and t (counted from 1 as the paper does), over replicates.

    `share` is the part of the curve's sum at or before t; a t without an estimate is interpolated from its neighbours
    there (never in `mean`, `low`, `high`, which are the mean and the range).
    """
    index = arm_index(runs)
    parts = []
    for run in runs:
        for measurement in run.measured("nll"):
            L_t = run.L_t(measurement)
            if L_t is None:
                continue
            t = np.arange(len(L_t))
            known = np.isfinite(L_t)
            whole = np.interp(t, t[known], L_t[known])
            row = {"evaluation": measurement.name, "arm": run.arm, "arm_index": index[run.arm]}
            parts.append(pd.DataFrame({**row, "t": t + 1, "L_t": L_t, "share": whole.cumsum() / whole.sum()}))
    columns = ["evaluation", "arm", "arm_index", "t", "n", "mean", "low", "high", "share"]
    if not parts:
        return pd.DataFrame(columns=columns)
    grouped = pd.concat(parts).groupby(columns[:4], sort=False)
    frame = grouped["L_t"].agg(["count", "mean", "min", "max"]).set_axis(["n", "mean", "low", "high"], axis=1)
    return frame.assign(share=grouped["share"].mean()).reset_index()[columns]


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    evaluations = list(frame["evaluation"].unique())
    figure, panels = style.subplots(len(evaluations), 2, height=2.6 * len(evaluations) + 0.4)
    for (left, right), evaluation in zip(panels, evaluations, strict=True):
        for arm, part in frame[frame["evaluation"] == evaluation].groupby("arm", sort=False):
            look = style.arm_style(part["arm_index"].iloc[0])
            colour, line = look["color"], look["linestyle"]
            known = part[part["mean"] > 0]
            low = known["low"].where(known["low"] > 0, known["mean"])
            left.plot(known["t"], known["mean"], color=colour, linestyle=line, linewidth=1.2)
            left.fill_between(known["t"], low, known["high"], color=colour, alpha=0.18, lw=0)
            right.plot(part["t"], part["share"], color=colour, linestyle=line, label=style.arm_label(arm))
        several = f" ({evaluation})" if len(evaluations) > 1 else ""
        for axes in (left, right):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        left.set(yscale="log", xlabel="diffusion step t", ylabel="$L_{t-1}$ (bits/dim)")
        left.set_title(f"Terms of the bound{several}")
        right.set(xlabel="diffusion step t", ylabel="share of the bound up to t", ylim=(0, 1.02))
        right.set_title("Where the bits are")
    style.legend_below(figure, panels[0, 1])
    return figure


def caption(frame: pd.DataFrame) -> str:
    half = frame[frame["share"] >= 0.5].groupby(["evaluation", "arm"], sort=False)["t"].min()
    many = int(frame["n"].max())
    bands = f"Bands: range over {many} replicates. " if many > 1 else ""
    low, high = int(half.min()), int(half.max())
    first = f"{low} to {high} steps, depending on the arm" if high > low else f"{low} step{'s' if low > 1 else ''}"
    return (
        "Each term of the variational bound (left) and the share of the bound that the steps up to t carry (right); "
        f"IDDPM, figure 2. {bands}Half of the bound lies in the first {first}."
    )
