"""FID, precision and recall against the number of sampling steps (IDDPM, figure 8)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import pandas as pd

from harness.analysis.figures import style
from harness.analysis.figures.style import Figure, Line2D
from harness.analysis.runs import RunRecord, arm_index
from harness.analysis.settings import Labels, sampling_protocol
from harness.analysis.statistics.intervals import describe_bands, summarise_by
from harness.spec.evaluation import Sampler
from harness.spec.metrics import metric_kind
from harness.spec.parts import choices

TITLE = "Samples by the number of sampling steps"
NEEDS = "an evaluation with sweep"


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return metrics over replicates for each protocol, arm, fixed variance, sampler and number of steps.

    Two protocols or two samplers of one name are told apart by the values in which they differ.
    """
    index, rows = arm_index(runs), []
    protocols, samplers = Labels(), Labels()
    for run in runs:
        for measurement in run.measured("sweep"):
            sweep = measurement.evaluation["sweep"]
            neighbours = {name: sweep.get(name) for name in ("k", "prc_reference")}
            protocol = sampling_protocol(measurement, "sweep") | {
                "sweep": {"reference": sweep["reference"], **neighbours}
            }
            del protocol["fixed_variance"]  # a column of its own
            name = f"{run.extractor(sweep)}, {sweep['num_samples']} samples"
            row = {"protocol": protocols.add(name, protocol), "arm": run.arm, "arm_index": index[run.arm]}
            row["variance"] = run.variance(measurement)
            parameters = {sampler["name"]: sampler for sampler in sweep["samplers"]}
            for (kind, sampler), (steps, values) in run.sweep(measurement).items():
                row |= {"metric": kind, "sampler": samplers.add(sampler, parameters[sampler])}
                rows += [
                    row | {"num_steps": num_steps, "value": value}
                    for num_steps, value in zip(steps, values, strict=True)
                ]
    keys = ["protocol", "metric", "arm", "arm_index", "variance", "sampler", "num_steps"]
    frame = pd.DataFrame(rows, columns=[*keys, "value"])
    frame = frame.assign(
        protocol=frame["protocol"].map(protocols.texts()), sampler=frame["sampler"].map(samplers.texts())
    )
    return summarise_by(frame, keys, "value")


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel for each protocol and metric: side by side, but the metrics of several protocols in rows."""
    protocols, metrics = list(frame["protocol"].unique()), list(frame["metric"].unique())
    lines = sampler_lines(frame["sampler"].unique())
    rows, columns = (len(metrics), len(protocols)) if len(protocols) > 1 else (1, len(metrics))
    figure, panels = style.subplots(rows, columns, width=2.2 + 3.4 * columns, height=0.4 + 2.6 * rows)
    several = frame.groupby("arm")["variance"].nunique().max() > 1
    for axes, (metric, protocol) in zip(panels.flat, product(metrics, protocols), strict=True):
        shown = frame[(frame["protocol"] == protocol) & (frame["metric"] == metric)]
        for (_, variance, sampler), part in shown.groupby(["arm", "variance", "sampler"], sort=False):
            part, look = part.sort_values("num_steps"), style.arm_style(part["arm_index"].iloc[0])
            face = "white" if several and variance == "β̃" else look["color"]
            axes.errorbar(
                part["num_steps"], part["mean"], [part["mean"] - part["low"], part["high"] - part["mean"]],
                color=look["color"], linestyle=lines[str(sampler)], marker=look["marker"], markerfacecolor=face,
                elinewidth=0.8, capsize=2,
            )  # fmt: skip
        ticks = sorted(frame.loc[frame["protocol"] == protocol, "num_steps"].unique())
        axes.set(xscale="log", xlabel="sampling steps")
        axes.set_ylabel(style.label(f"{metric_kind(metric).label} ({protocol})"))
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.set_xticks([], minor=True)
        if metric == "fid":
            axes.set_yscale("log")
            style.plain_log_numbers(axes)
        if metric == metrics[0]:
            axes.set_title(TITLE if len(protocols) == 1 else style.label(protocol))
    figure.legend(handles=_handles(frame, lines, several), loc="outside right upper")
    return figure


def sampler_lines(samplers: Iterable[str]) -> dict[str, Any]:
    """Return a line style for each sampler: built-in ones always have the same, others follow in the order of names."""
    registered = list(choices(Sampler))
    others = sorted(set(samplers) - set(registered))
    return {name: style.SAMPLER_LINES[i % len(style.SAMPLER_LINES)] for i, name in enumerate([*registered, *others])}


def _handles(frame: pd.DataFrame, lines: dict[str, Any], several_variances: bool) -> list[Line2D]:
    """Return a legend by arm, sampler and, where an arm has both, fixed variance: a + b + c lines, not a x b x c."""
    arms = frame.drop_duplicates("arm")
    looks = [style.arm_style(index) for index in arms["arm_index"]]
    handles = [
        Line2D([], [], color=look["color"], marker=look["marker"], linestyle="", label=style.arm_label(arm))
        for arm, look in zip(arms["arm"], looks, strict=True)
    ]
    for name in frame["sampler"].unique():
        handles.append(Line2D([], [], color=style.INK, linestyle=lines[name], label=style.label(name)))
    for name, face in (("β", style.INK), ("β̃", "white")) if several_variances else ():
        face_only: dict[str, Any] = {"color": style.INK, "marker": "o", "markerfacecolor": face, "linestyle": ""}
        handles.append(Line2D([], [], label=f"σ² = {name}", **face_only))
    return handles


def caption(frame: pd.DataFrame) -> str:
    names = [metric_kind(metric).label for metric in frame["metric"].unique()]
    return (
        f"{', '.join(names)} of samples against the number of sampling steps; IDDPM, figure 8. "
        f"Shown: {describe_bands(frame['kind'])}. "
        "They depend on the feature extractor and the number of samples: compare within this figure only."
    )
