"""FID against the cost of a sample, arm by arm (DDGAN, figure 4: quality against sampling time on CIFAR-10)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from harness.analysis import papers
from harness.analysis.figures import curves, style
from harness.analysis.figures.style import Figure
from harness.analysis.runs import Measurement, RunRecord
from harness.analysis.settings import sampling_protocol
from harness.analysis.statistics.intervals import describe_bands
from harness.spec.metrics import metric_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Quality and cost of a sample"
NEEDS = "evaluations with fidelity in several numbers of steps"
COST = "network_evaluations"
MEASURED = "measured"
FID = metric_kind("fid").label


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return FID over replicates for each protocol, arm and number of evaluations of the network for one sample.

    `source` is `measured`, or the paper that reports a model of the same data under the same protocol, whose name is
    then in `arm`. Protocols under which everything costs the same are left out.
    """
    points = curves.collect(runs, "fidelity", _read)
    frame = curves.over_replicates(points, COST, "fid").assign(source=MEASURED)
    like_papers = list(points.loc[points["like_papers"], "protocol"].unique()) if len(points) else []
    published = pd.DataFrame(_published(runs, like_papers), columns=frame.columns)
    frame = pd.concat([frame, published], ignore_index=True) if len(published) else frame
    return frame[frame.groupby("protocol")[COST].transform("nunique") > 1].reset_index(drop=True)


def _read(run: RunRecord, measurement: Measurement) -> tuple[str, dict[str, Any], dict[str, Any]]:
    evaluation, part = measurement.evaluation, measurement.evaluation["fidelity"]
    protocol = sampling_protocol(measurement, "fidelity")
    protocol["fidelity"] = {name: part.get(name) for name in ("extractor", "num_samples", "reference")}
    protocol["fidelity"]["reference_sha256"] = part.get("reference_sha256")
    cost = part["num_steps"] * (2 if evaluation.get("guidance", 1.0) != 1 else 1)  # guided: two at each step
    del protocol["guidance"]
    columns = {COST: [cost], "fid": curves.finite([run.fidelity(measurement)])}
    columns["like_papers"] = [_OF_PAPERS.items() <= protocol["fidelity"].items()]
    return f"{run.extractor(part)}, {part['num_samples']} samples", protocol, columns


_OF_PAPERS = {"extractor": "inception", "num_samples": 50_000, "reference": "train"}


def _published(runs: Sequence[RunRecord], protocols: list[str]) -> Iterator[dict[str, Any]]:
    """Return what papers report, beside the first of our measurements that are like theirs."""
    for row in papers.of_data(runs) if protocols else ():
        if {COST, "fid"} <= row.values.keys():
            values = {"arm": row.model, "arm_index": -1, "variance": "", COST: int(row.values[COST]), "n": 0}
            yield values | {
                "protocol": protocols[0], "mean": float(row.values["fid"]), "kind": "paper", "source": row.origin
            }  # fmt: skip


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel for each protocol; papers' models as grey crosses with their names."""
    ours = frame[frame["source"] == MEASURED]
    protocols = list(ours["protocol"].unique())
    figure, panels = curves.panels(len(protocols), height=2.9)
    for axes, protocol in zip(panels, protocols, strict=True):
        curves.draw_curves(axes, ours[ours["protocol"] == protocol], COST)
        for line in axes.lines:
            line.set_linestyle("")  # points: other chains and other trainings, not one curve
        published = frame[(frame["source"] != MEASURED) & (frame["protocol"] == protocol)]
        _draw_published(axes, published)
        axes.set(xscale="log", yscale="log", xlabel="network evaluations for a sample", ylabel=FID)
        axes.set_title(style.label(protocol), fontsize=7.5)
        axes.margins(x=0.12, y=0.1)
        style.plain_log_numbers(axes)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda *_: "")
        if published.empty:
            axes.set_xticks(sorted(ours.loc[ours["protocol"] == protocol, COST].unique()))
    curves.legend(figure, ours)
    return figure


def _draw_published(axes: Axes, frame: pd.DataFrame) -> None:
    axes.plot(frame[COST], frame["mean"], "x", color=papers.COLOUR, markersize=3.5, markeredgewidth=0.8)
    right = frame[COST].max()
    for row in frame.itertuples():
        left_of_it = getattr(row, COST) > right / 20
        axes.annotate(
            style.label(row.arm), (getattr(row, COST), row.mean), (-4 if left_of_it else 4, 0), fontsize=5.5,
            textcoords="offset points", ha="right" if left_of_it else "left", va="center", color=papers.COLOUR,
        )  # fmt: skip


def caption(frame: pd.DataFrame) -> str:
    sources = list(dict.fromkeys(frame.loc[frame["source"] != MEASURED, "source"]))
    paper = f" Grey crosses: what papers report on these data, {'; '.join(sources)}." if sources else ""
    return (
        "FID of each evaluation of samples against the number of times that the network is evaluated for one of them; "
        f"after DDGAN, figure 4. Shown: {describe_bands(frame.loc[frame['source'] == MEASURED, 'kind'])}.{paper}"
    )
