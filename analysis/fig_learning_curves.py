"""Training losses and the test NLL against iterations, arm by arm (IDDPM, figure 6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from harness.analysis import style
from harness.analysis.runs import RunRecord, arm_index

TITLE = "Learning curves"
NEEDS = "a run that has trained"
BINS = 60
LABELS = {
    "mse": ("Prediction error", "mean squared error"),
    "bound": ("Bound on training batches", "$T \\times L_t$ (bits/dim)"),
    "nll": ("NLL", "bits/dim"),
}


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return curves over replicates: `mse` and `bound` (T times train/vb) as means over bins of iterations, and `nll`
    where evaluations ran during training.
    """
    index = arm_index(runs)
    longest = max((run.spec["train"]["steps"] for run in runs), default=1)
    rows = [
        {"curve": curve, "arm": run.arm, "arm_index": index[run.arm], "iteration": iteration, "value": value}
        for run in runs
        for curve, steps, values in _curves(run, max(1, -(-longest // BINS)))
        for iteration, value in zip(steps, values, strict=True)
    ]
    keys = ["curve", "arm", "arm_index", "iteration"]
    values = pd.DataFrame(rows, columns=[*keys, "value"]).groupby(keys, sort=False)["value"]
    # The range, not an interval: of three replicates it is wide, and on a logarithmic axis it hides the curves.
    frame = values.agg(["count", "mean", "min", "max"]).reset_index()
    return frame.rename(columns={"count": "n", "min": "low", "max": "high"})


def _curves(run: RunRecord, width: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    num_timesteps = run.spec["diffusion"]["num_timesteps"]
    for curve, key, factor in (("mse", "train/mse", 1), ("bound", "train/vb", num_timesteps)):
        steps, values = run.history(key)
        if len(steps):
            bins = -(-steps // width)
            ends = np.unique(bins)
            yield curve, ends * width, np.array([factor * values[bins == end].mean() for end in ends])
    for one in run.measured("nll"):
        steps, values = run.history(f"{one.prefix}/nll_bpd")
        if len(steps) > 1:
            yield "nll", steps, values


def draw(frame: pd.DataFrame) -> Figure:
    curves = [curve for curve in LABELS if curve in set(frame["curve"])]
    figure, (panels,) = style.subplots(1, len(curves), height=2.75)
    for axes, curve in zip(panels, curves, strict=True):
        for arm, part in frame[frame["curve"] == curve].groupby("arm", sort=False):
            look = style.arm_style(part["arm_index"].iloc[0])
            marker = look["marker"] if curve == "nll" else ""
            axes.plot(
                part["iteration"], part["mean"], label=arm, color=look["color"], linestyle=look["linestyle"],
                marker=marker, markersize=3, linewidth=1.2,
            )  # fmt: skip
            axes.fill_between(
                part["iteration"], part["low"], part["high"],
                color=look["color"], alpha=0.15, lw=0,
            )  # fmt: skip
        title, unit = LABELS[curve]
        axes.set(yscale="log", xlabel="iterations", ylabel=unit, title=title)
        style.plain_log_numbers(axes)
    style.legend_below(figure, panels[0])
    return figure


def caption(frame: pd.DataFrame) -> str:
    bands = f"Lines: means over {frame['n'].max()} replicates; bands: their range. " if frame["n"].max() > 1 else ""
    return (
        f"Training curves are means over bins of iterations. {bands}The bound on training batches is read without "
        "clipping and over the timesteps that were drawn, so it compares arms only where they draw t alike."
    )
