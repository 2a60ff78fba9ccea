"""Progressive lossy coding: distortion and rate over the reverse process, and against each other (DDPM, figure 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.analysis import papers
from harness.analysis.figures import curves, style
from harness.analysis.figures.style import Figure, Line2D
from harness.analysis.runs import Measurement, RunRecord
from harness.analysis.settings import measured_weights
from harness.spec.metrics import array_file, metric_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Rate and distortion"
NEEDS = "an evaluation with rate_distortion"
VALUES = ("rate_bpd", "distortion_rmse")
RATE, DISTORTION = (metric_kind(name).axis for name in VALUES)
MEASURED = "measured"


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return rate and distortion after each reverse step: mean and range over replicates, in bits/dim and RMSE.

    `source` is `measured`, or where a paper has the value of the same training. A method without a likelihood has no
    rate.
    """
    frame = curves.collect(runs, "rate_distortion", _read)
    keys = [*curves.KEYS, "reverse_steps"]
    names = [f"{name}{suffix}" for name in VALUES for suffix in ("", "_low", "_high")]
    if frame.empty:
        return pd.DataFrame(columns=["source", *keys, "n", *names])
    grouped = frame.groupby(keys, sort=False, dropna=False)
    spread = {f"{name}{suffix}": (name, how) for name in VALUES for suffix, how in _SPREAD.items()}
    frame = grouped.agg(n=("run_key", "nunique"), **spread).reset_index().assign(source=MEASURED)
    return pd.concat([frame, pd.DataFrame(_published(runs))], ignore_index=True)[["source", *keys, "n", *names]]


_SPREAD = {"": "mean", "_low": "min", "_high": "max"}


def _read(run: RunRecord, measurement: Measurement) -> tuple[str, dict[str, Any], dict[str, Any]]:
    evaluation, part = measurement.evaluation, measurement.evaluation["rate_distortion"]
    arrays = run.arrays(array_file(measurement.prefix, "rate_distortion"))
    columns: dict[str, Any] = {}
    if arrays:
        steps = arrays["reverse_steps"]
        columns = {"reverse_steps": steps} | {name: arrays.get(name, [float("nan")] * len(steps)) for name in VALUES}
    protocol = {name: evaluation.get(name) for name in ("split", "fixed_variance", "seed")}
    protocol |= measured_weights(evaluation) | {"num_images": part["num_images"], "clip": part["clip"]}
    count = len(arrays["image_index"]) if arrays else "?"
    return f"{count} {evaluation['split']} images", protocol, columns


def _published(runs: Sequence[RunRecord]) -> Iterator[dict[str, Any]]:
    known = set()
    for run in runs:
        for measurement in run.measured("rate_distortion"):
            for row in papers.of_measurement(run, measurement, VALUES[0]):
                if (point := tuple(row.values.items())) not in known:
                    known.add(point)
                    values = {name: float(row.values[name]) for name in VALUES}
                    nobody = dict(zip(curves.KEYS, ("", "", -1, ""), strict=True))
                    yield {"source": row.origin, "reverse_steps": int(row.values["reverse_steps"])} | nobody | values


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    """Draw three panels for each protocol; the distortion alone where no method has a likelihood."""
    measured = frame[frame["source"] == MEASURED]
    protocols = list(measured["protocol"].unique())
    columns = _PANELS if measured["rate_bpd"].notna().any() else _PANELS[:1]
    figure, panels = curves.panels(len(columns) * len(protocols), height=2.3)
    published = frame[frame["source"] != MEASURED]
    for number, axes in enumerate(panels):
        protocol, (x, y, xlabel, ylabel) = protocols[number // len(columns)], columns[number % len(columns)]
        _draw_panel(axes, measured[measured["protocol"] == protocol], x, y)
        marks: Any = {"color": papers.COLOUR, "marker": "x", "markersize": 4, "linestyle": "", "markeredgewidth": 0.9}
        axes.plot(published[x], published[y], zorder=4, **marks)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        if len(protocols) > 1 and number % len(columns) == 0:
            axes.set_title(style.label(protocol))
    more = [Line2D([], [], label=f"paper: {source}", **marks) for source in published["source"].unique()]
    curves.legend(figure, measured, *more)
    return figure


_PANELS = (
    ("reverse_steps", "distortion_rmse", "reverse steps", DISTORTION),
    ("reverse_steps", "rate_bpd", "reverse steps", RATE),
    ("rate_bpd", "distortion_rmse", RATE, DISTORTION),
)


def _draw_panel(axes: Axes, frame: pd.DataFrame, x: str, y: str) -> None:
    for (_, variance), part in frame.groupby(["arm", "variance"], sort=False):
        look = style.arm_style(part["arm_index"].iloc[0]) | {"marker": ""}
        width = 0.7 if variance == "β̃" and frame["variance"].nunique() > 1 else 1.3
        axes.plot(part[x], part[y], **look, linewidth=width)
        if x == "reverse_steps":
            axes.fill_between(part[x], part[f"{y}_low"], part[f"{y}_high"], color=look["color"], alpha=0.18, lw=0)


def caption(frame: pd.DataFrame) -> str:
    measured = frame[frame["source"] == MEASURED]
    many = int(measured["n"].max())
    bands = f" Means over {many} replicates; bands: their range." if many > 1 else ""
    paper = " Crosses: the paper's values of the same training." if len(measured) < len(frame) else ""
    return (
        "What a receiver knows of an image after each reverse step: its distortion, the bits that were sent, and one "
        f"against the other; DDPM, figure 5.{bands}{paper} {_last(measured)}"
    )


def _last(measured: pd.DataFrame) -> str:
    """Say what share of all bits the last tenth of the reverse steps costs, where rates are known."""
    shares = []
    for _, part in measured.dropna(subset="rate_bpd").groupby(curves.KEYS, sort=False):
        before = part.loc[part["reverse_steps"] <= 0.9 * part["reverse_steps"].max(), "rate_bpd"].max()
        shares.append(100 * (1 - before / part["rate_bpd"].max()))
    if not shares or pd.isna(shares).any():
        return ""
    low, high = f"{min(shares):.0f}", f"{max(shares):.0f}"
    return f"The last tenth of the steps sends {low if low == high else f'{low} to {high}'} % of the bits."
