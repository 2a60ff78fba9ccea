"""Error of real images that DDIM encodes and decodes, against its number of steps (DDIM, table 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.analysis.figures import curves, style
from harness.analysis.figures.style import Figure
from harness.analysis.runs import Measurement, RunRecord
from harness.analysis.settings import measured_weights
from harness.analysis.statistics.intervals import describe_bands
from harness.spec.metrics import curve_name, metric_kind

TITLE = "Reconstruction by DDIM"
NEEDS = "an evaluation with reconstruction"


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return the mean squared error on [0, 1] over replicates, for each protocol, arm and number of steps."""
    return curves.over_replicates(curves.collect(runs, "reconstruction", _read), "num_steps", "mse")


def _read(run: RunRecord, measurement: Measurement) -> tuple[str, dict[str, Any], dict[str, Any]]:
    evaluation, part = measurement.evaluation, measurement.evaluation["reconstruction"]
    name = curve_name(measurement.prefix, "reconstruction", "reconstruction_mse_by_steps")
    num_steps, values = run.history(name)
    protocol = {name: evaluation.get(name) for name in ("split", "fixed_variance")} | measured_weights(evaluation)
    count = "all" if part["num_images"] is None else part["num_images"]
    protocol["num_images"] = part["num_images"]
    return f"{count} {evaluation['split']} images", protocol, {"num_steps": num_steps, "mse": curves.finite(values)}


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    """Draw one panel for each protocol."""
    return curves.draw_by_protocol(frame, "num_steps", "steps of DDIM", metric_kind("reconstruction_mse").axis)


def caption(frame: pd.DataFrame) -> str:
    return (
        "Error of real images after DDIM has turned them into noise and back, per dimension on [0, 1]; DDIM, table 2. "
        f"Shown: {describe_bands(frame['kind'])}."
    )
