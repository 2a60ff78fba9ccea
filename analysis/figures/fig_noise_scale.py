"""The gradient noise scale of each arm: how noisy its objective's gradient is (IDDPM, figure 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.figures import curves, style
from harness.analysis.figures.style import Figure
from harness.analysis.runs import Measurement, RunRecord
from harness.analysis.settings import measured_weights
from harness.analysis.statistics.intervals import describe_bands
from harness.spec.metrics import metric_kind, metric_name

TITLE = "Gradient noise scale"
NEEDS = "an evaluation with noise_scale"
KIND = "gradient_noise_scale"


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return the noise scale in examples over replicates, for each protocol, arm and training step of its weights."""
    return curves.over_replicates(curves.collect(runs, "noise_scale", _read), "step", "noise_scale")


def _read(run: RunRecord, measurement: Measurement) -> tuple[str, dict[str, Any], dict[str, Any]]:
    evaluation, part = measurement.evaluation, measurement.evaluation["noise_scale"]
    steps, values = run.history(metric_name(measurement.prefix, KIND))
    protocol = {name: evaluation.get(name) for name in ("fixed_variance", "seed")}
    protocol |= measured_weights(evaluation) | {"noise_scale": part}
    text = f"batches of {part['batch_size']} and {part['batch_size'] * part['small_per_big']}"
    return text, protocol, {"step": steps, "noise_scale": curves.finite(values)}


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    """Draw a line for each arm and step, one panel for each protocol."""
    protocols = list(frame["protocol"].unique())
    lines = max(len(frame[frame["protocol"] == protocol]) for protocol in protocols)
    figure, panels = curves.panels(len(protocols), height=0.6 + 0.26 * max(2, lines))
    for axes, protocol in zip(panels, protocols, strict=True):
        part = frame[frame["protocol"] == protocol]
        part = part[np.isfinite(part["mean"]) & (part["mean"] > 0)]
        names = [_name(row, part) for row in part.itertuples()]
        for place, row in enumerate(part.itertuples()):
            look = style.arm_style(row.arm_index)
            low = row.low if row.low > 0 else row.mean
            axes.errorbar(
                row.mean, place, xerr=[[row.mean - low], [row.high - row.mean]], color=look["color"],
                marker=look["marker"], linestyle="", elinewidth=1, capsize=2.5,
            )  # fmt: skip
        axes.set(xscale="log", xlabel=metric_kind(KIND).axis, ylim=(len(part) - 0.5, -0.5))
        axes.set_yticks(range(len(part)), names)
        axes.set_title(style.label(protocol), fontsize=7.5)
        if len(part):
            axes.set_xlim(part["mean"].min() / 2.5, part["high"].max() * 2.5)
    return figure


def _name(row: Any, part: pd.DataFrame) -> str:
    text = f"{row.arm}, step {row.step:,}" if part["step"].nunique() > 1 else row.arm
    return style.title_of(text, row.arm)


def caption(frame: pd.DataFrame) -> str:
    undefined = int(((frame["mean"] <= 0) | frame["mean"].isna()).sum())
    lacking = (
        f" {undefined} of {len(frame)} not shown: the estimate of the squared gradient was not positive; measure it "
        "over more batches."
        if undefined
        else ""
    )
    return (
        "The batch size from which more examples no longer cut the gradient's noise, of each arm's own objective and "
        "draws of t; IDDPM, figure 7, which shows it over the training. The higher, the noisier. Shown: "
        f"{describe_bands(frame['kind'])}.{lacking}"
    )
