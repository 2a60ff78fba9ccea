"""FID against the number of sampling steps (IDDPM, figure 8)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from harness.analysis import style
from harness.analysis.intervals import describe_bands, summarise_by
from harness.analysis.runs import RunRecord, arm_index
from harness.analysis.settings import Labels, sampling_protocol
from harness.analysis.style import Figure, Line2D
from harness.spec.evaluation import Sampler
from harness.spec.metrics import metric_kind
from harness.spec.parts import choices

TITLE = "FID against sampling steps"
NEEDS = "an evaluation with sweep"
FID = metric_kind("fid").label


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return FID over replicates for each protocol, arm, fixed variance, sampler and number of steps.

    Two protocols or two samplers of one name are told apart by the values in which they differ.
    """
    index, rows = arm_index(runs), []
    protocols, samplers = Labels(), Labels()
    for run in runs:
        for measurement in run.measured("sweep"):
            sweep = measurement.evaluation["sweep"]
            protocol = sampling_protocol(measurement, "sweep") | {"sweep": {"reference": sweep["reference"]}}
            del protocol["fixed_variance"]  # a column of its own
            name = f"{run.extractor(sweep)}, {sweep['num_samples']} samples"
            row = {"protocol": protocols.add(name, protocol), "arm": run.arm, "arm_index": index[run.arm]}
            row["variance"] = run.variance(measurement)
            parameters = {sampler["name"]: sampler for sampler in sweep["samplers"]}
            for sampler, (steps, values) in run.sweep(measurement).items():
                row["sampler"] = samplers.add(sampler, parameters[sampler])
                rows += [
                    row | {"num_steps": num_steps, "fid": fid} for num_steps, fid in zip(steps, values, strict=True)
                ]
    keys = ["protocol", "arm", "arm_index", "variance", "sampler", "num_steps"]
    frame = pd.DataFrame(rows, columns=[*keys, "fid"])
    frame = frame.assign(
        protocol=frame["protocol"].map(protocols.texts()), sampler=frame["sampler"].map(samplers.texts())
    )
    return summarise_by(frame, keys, "fid")


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    protocols, lines = list(frame["protocol"].unique()), sampler_lines(frame["sampler"].unique())
    figure, (panels,) = style.subplots(1, len(protocols), width=2.2 + 3.4 * len(protocols), height=3.0)
    several = frame.groupby("arm")["variance"].nunique().max() > 1
    for axes, protocol in zip(panels, protocols, strict=True):
        shown = frame[frame["protocol"] == protocol]
        for (_, variance, sampler), part in shown.groupby(["arm", "variance", "sampler"], sort=False):
            part, look = part.sort_values("num_steps"), style.arm_style(part["arm_index"].iloc[0])
            face = "white" if several and variance == "β̃" else look["color"]
            axes.errorbar(
                part["num_steps"], part["mean"], [part["mean"] - part["low"], part["high"] - part["mean"]],
                color=look["color"], linestyle=lines[str(sampler)], marker=look["marker"], markerfacecolor=face,
                elinewidth=0.8, capsize=2,
            )  # fmt: skip
        ticks = sorted(shown["num_steps"].unique())
        axes.set(xscale="log", yscale="log", xlabel="sampling steps", ylabel=style.label(f"{FID} ({protocol})"))
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.set_xticks([], minor=True)
        style.plain_log_numbers(axes)
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
    arms = frame.drop_duplicates("arm").sort_values("arm_index")
    looks = [style.arm_style(index) for index in arms["arm_index"]]
    handles = [
        Line2D([], [], color=look["color"], marker=look["marker"], linestyle="", label=style.label(arm))
        for arm, look in zip(arms["arm"], looks, strict=True)
    ]
    for name in frame["sampler"].unique():
        handles.append(Line2D([], [], color=style.INK, linestyle=lines[name], label=style.label(name)))
    for name, face in (("β", style.INK), ("β̃", "white")) if several_variances else ():
        face_only: dict[str, Any] = {"color": style.INK, "marker": "o", "markerfacecolor": face, "linestyle": ""}
        handles.append(Line2D([], [], label=f"σ² = {name}", **face_only))
    return handles


def caption(frame: pd.DataFrame) -> str:
    return (
        "Fréchet distance of samples against the number of sampling steps; IDDPM, figure 8. "
        f"Shown: {describe_bands(frame['kind'])}. "
        "FID depends on the feature extractor and the number of samples: compare within this figure only."
    )
