"""FID of the x_0 that is predicted along the reverse process (DDPM, figures 10 and 14)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.analysis.figures import curves, style
from harness.analysis.figures.style import Figure
from harness.analysis.runs import Measurement, RunRecord
from harness.analysis.statistics.intervals import describe_bands
from harness.spec.metrics import metric_kind, progressive_name

TITLE = "Quality along the reverse process"
NEEDS = "an evaluation with progressive"
FID = metric_kind("fid")


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return FID over replicates for each protocol, arm, fixed variance and percentage of the steps that is made."""
    return curves.over_replicates(curves.collect(runs, "progressive", _read), "made_percent", "fid")


def _read(run: RunRecord, measurement: Measurement) -> tuple[str, dict[str, Any], dict[str, Any]]:
    text, protocol, made, fid = curves.fid_along_the_chain(
        run, measurement, "progressive", progressive_name, "num_frames"
    )
    num_steps = measurement.evaluation["progressive"]["num_steps"]
    return text, protocol, {"made_percent": 100 * made / num_steps, "fid": fid}


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    return curves.draw_by_protocol(
        frame, "made_percent", "made of the reverse process (%)", f"{FID.label} of the predicted $x_0$"
    )


def caption(frame: pd.DataFrame) -> str:
    return (
        "FID of the x_0 that is predicted after a part of the steps, from the first guess to the samples; DDPM, "
        f"figures 10 and 14. Shown: {describe_bands(frame['kind'])}."
    )
