"""FID when the first fraction of the reverse process is skipped (IDDPM, figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.analysis.figures import curves, style
from harness.analysis.figures.style import Figure
from harness.analysis.runs import Measurement, RunRecord
from harness.analysis.statistics.intervals import describe_bands
from harness.spec.metrics import metric_kind, skip_name

TITLE = "Skipping the start of the reverse process"
NEEDS = "an evaluation with skip"
FID = metric_kind("fid")


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return FID over replicates for each protocol, arm, fixed variance and percentage that is skipped."""
    return curves.over_replicates(curves.collect(runs, "skip", _read), "skipped_percent", "fid")


def _read(run: RunRecord, measurement: Measurement) -> tuple[str, dict[str, Any], dict[str, Any]]:
    text, protocol, percent, fid = curves.fid_along_the_chain(run, measurement, "skip", skip_name, "fractions")
    return text, protocol, {"skipped_percent": percent, "fid": fid}


@style.in_style
def draw(frame: pd.DataFrame) -> Figure:
    return curves.draw_by_protocol(frame, "skipped_percent", "skipped of the reverse process (%)", FID.label)


def caption(frame: pd.DataFrame) -> str:
    return (
        "FID of samples whose chain begins so far from its start with pure noise; IDDPM, figure 4. Where a curve stays "
        f"flat, those steps do little. Shown: {describe_bands(frame['kind'])}."
    )
