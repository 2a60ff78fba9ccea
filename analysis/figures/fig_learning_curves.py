"""Training losses and the test NLL against iterations, arm by arm (IDDPM, figure 6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from harness.analysis import papers
from harness.analysis.figures import style
from harness.analysis.figures.style import Figure
from harness.analysis.runs import Measurement, RunRecord, arm_index
from harness.spec.metrics import METRIC_KINDS, MetricKind, metric_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Learning curves"
NEEDS = "a run that has been trained"
BINS = 60
NLL = "nll"
KIND_OF = {NLL: "nll_bpd", "bound": "vb"}  # names of curves that differ from the recorded names
CURVE_OF = {kind: curve for curve, kind in KIND_OF.items()}


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return curves over replicates: each term of the loss as means over bins of iterations, and the NLL.

    `curve` is the term's name, or `nll` if evaluations ran during training, with the evaluation's name if there are
    several. A term that is a mean over t of terms that
    are summed over t is multiplied by the chain's length: `bound` is T times train/vb. Where a paper has the NLL of the
    same training, `paper` is its value and `source` says which paper's.
    """
    index = arm_index(runs)
    several = len({measurement.name for run in runs for measurement in _nll_curves(run)}) > 1
    longest = max((run.spec["train"]["steps"] for run in runs), default=1)
    rows = [
        {"curve": curve, "arm": run.arm, "arm_index": index[run.arm], "iteration": iteration, "value": value}
        for run in runs
        for curve, steps, values in _curves(run, max(1, -(-longest // BINS)), several)
        for iteration, value in zip(steps, values, strict=True)
    ]
    keys = ["curve", "arm", "arm_index", "iteration"]
    values = pd.DataFrame(rows, columns=[*keys, "value"]).groupby(keys, sort=False)["value"]
    # The range, not an interval: an interval of three replicates is wide, and on a logarithmic axis hides the curves.
    frame = values.agg(["count", "mean", "min", "max"]).reset_index()
    frame = frame.rename(columns={"count": "n", "min": "low", "max": "high"})
    if published := _published(runs):
        nlls = [
            published.get(arm) if _is_nll(curve) else None for curve, arm in zip(frame.curve, frame.arm, strict=True)
        ]
        frame["paper"] = [row.values[NLL] if row else "" for row in nlls]
        frame["source"] = [row.origin if row else "" for row in nlls]
    return frame


def _published(runs: Sequence[RunRecord]) -> dict[str, papers.Published]:
    """Return by arm what a paper has for its NLL curve."""
    rows: dict[str, papers.Published] = {}
    for run in runs:
        for measurement in _nll_curves(run):
            for row in papers.of_measurement(run, measurement, NLL):
                rows.setdefault(run.arm, row)
    return rows


def _nll_curves(run: RunRecord) -> list[Measurement]:
    return [measurement for measurement in run.measured("nll") if len(run.nll_curve(measurement)[0]) > 1]


def _curves(run: RunRecord, width: int, several_nlls: bool) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for name in run.terms():
        steps, values = run.history(name)
        factor = run.spec["diffusion"]["num_timesteps"] if metric_kind(name).per_timestep else 1
        bins = -(-steps // width)
        ends = np.unique(bins)
        means = np.array([factor * values[bins == end].mean() for end in ends])
        term = name.removeprefix("train/")
        yield CURVE_OF.get(term, term), ends * width, means
    for measurement in _nll_curves(run):
        yield f"{NLL} {measurement.name}" if several_nlls else NLL, *run.nll_curve(measurement)


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    curves = sorted(frame["curve"].unique(), key=_panel_order)
    figure, (panels,) = style.subplots(1, len(curves), height=2.75)
    for axes, curve in zip(panels, curves, strict=True):
        for arm, part in frame[frame["curve"] == curve].groupby("arm", sort=False):
            look = style.arm_style(part["arm_index"].iloc[0])
            marker = look["marker"] if _is_nll(curve) else ""
            axes.plot(
                part["iteration"], part["mean"], label=style.arm_label(arm), color=look["color"],
                linestyle=look["linestyle"], marker=marker, markersize=3, linewidth=1.2,
            )  # fmt: skip
            axes.fill_between(
                part["iteration"], part["low"], part["high"],
                color=look["color"], alpha=0.15, lw=0,
            )  # fmt: skip
        if _is_nll(curve) and "paper" in frame:
            _mark_published(axes, frame[(frame["curve"] == curve) & (frame["paper"] != "")])
        kind = _kind(curve)
        unit = f"$T \\times L_t$ ({kind.unit})" if kind.per_timestep else kind.unit or style.label(curve)
        positive = (frame.loc[frame["curve"] == curve, "low"] > 0).all()
        axes.set(yscale="log" if positive else "linear", xlabel="iterations", ylabel=unit)
        axes.set_title(" ".join([kind.label, *curve.split()[1:]]))
        if positive:
            style.plain_log_numbers(axes)
        if frame["iteration"].max() >= 100_000:
            axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    style.legend_below(figure, panels[0])
    return figure


def _mark_published(axes: Axes, frame: pd.DataFrame) -> None:
    """Draw a thin grey line at what a paper reports of the same training, with its name."""
    for (arm, value, source), _ in frame.groupby(["arm", "paper", "source"], sort=False):
        axes.axhline(float(value), color=papers.COLOUR, linewidth=0.7, linestyle=(0, (2, 1.5)), zorder=1.5)
        text = style.title_of(f"{arm}: paper {value}, {source}", arm)
        axes.annotate(
            text, (1, float(value)), (0, 1.5), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
            ha="right", va="bottom", fontsize=5.5, color=papers.COLOUR,
        )  # fmt: skip


def _is_nll(curve: str) -> bool:
    return curve.split()[0] == NLL


def _kind(curve: str) -> MetricKind:
    name = curve.split()[0]
    return metric_kind(KIND_OF.get(name, name))


def _panel_order(curve: str) -> tuple[int, str]:
    """Order panels: terms of the loss as METRIC_KINDS lists them, then unknown ones by name, then the NLL."""
    names = list(METRIC_KINDS)
    name = KIND_OF.get(curve, curve)
    return (len(names) + 1 if _is_nll(curve) else names.index(name) if name in names else len(names), curve)


def caption(frame: pd.DataFrame) -> str:
    bands = f"Lines: means over {frame['n'].max()} replicates; bands: their range. " if frame["n"].max() > 1 else ""
    bound = any(_kind(curve).per_timestep for curve in frame["curve"].unique())
    note = (
        "The bound on training batches is read without clipping and over the timesteps that were drawn, so it compares "
        "arms only where they draw t alike."
    )
    paper = " Grey lines: what papers report of the same data, training and split." if "paper" in frame else ""
    return f"Training curves are means over bins of iterations. {bands}{note if bound else ''}".strip() + paper
