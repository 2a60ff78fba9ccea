"""The noise of each metric of features: how far trainings of one arm are apart, and draws of one training's samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from markupsafe import Markup

from harness.analysis import html
from harness.analysis.runs import RunRecord, by_arm
from harness.analysis.statistics.noise import Components, components, values_by_seed
from harness.spec.base import canonical_json
from harness.spec.evaluation import Fidelity
from harness.spec.fidelity_metrics import FIDELITY_METRICS
from harness.spec.metrics import metric_kind
from harness.text import markdown as markdown_text

TITLE = "Noise of these numbers"
NEEDS = "an evaluation with fidelity.seeds of 2 or more"
_HEADS = ("metric", "evaluation", "trainings an arm", "seeds", "between trainings", "between seeds", "of it shared")


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row per evaluation and metric with several sampling seeds, pooled over the arms.

    `between_trainings`, `between_seeds` and `shared` are standard deviations; NaN where they are not known.
    """
    tables: dict[tuple[str, str, str, str], dict[str, list[list[float]]]] = {}
    for arm, replicates in by_arm(runs).items():
        for run in replicates:
            for measurement in run.measured("fidelity"):
                part = measurement.evaluation["fidelity"]
                if part.get("seeds", 1) < 2:
                    continue
                for name in part.get("metrics", Fidelity.model_fields["metrics"].default):
                    for kind in FIDELITY_METRICS[name].outputs:
                        if (
                            metric_kind(kind).direction
                            and len(values := values_by_seed(run, measurement, kind)) == part["seeds"]
                        ):
                            key = (measurement.name, canonical_json(part), run.extractor(part), kind)
                            tables.setdefault(key, {}).setdefault(arm, []).append(values)
    rows = [
        _row(evaluation, extractor, kind, components(arms.values()))
        for (evaluation, _, extractor, kind), arms in tables.items()
    ]
    columns = ["evaluation", "metric", "extractor", "trainings", "seeds"]
    return pd.DataFrame(rows, columns=[*columns, "between_trainings", "between_seeds", "shared", "buy_next"])


def _row(evaluation: str, extractor: str, kind: str, noise: Components) -> dict[str, object]:
    return {
        "evaluation": evaluation,
        "metric": kind,
        "extractor": extractor,
        "trainings": noise.num_trainings,
        "seeds": noise.num_seeds,
        "between_trainings": math.sqrt(noise.training),
        "between_seeds": math.sqrt(noise.sampling),
        "shared": math.sqrt(noise.shared),
        "buy_next": noise.buy_next,
    }


def cells(frame: pd.DataFrame) -> list[list[str]]:
    """Return the rows as text, in the order of `heads`."""
    return [
        [
            f"{metric_kind(row.metric).label} ({row.extractor})",
            row.evaluation,
            str(row.trainings),
            str(row.seeds),
            *(_number(value) for value in (row.between_trainings, row.between_seeds, row.shared)),
            row.buy_next or "–",
        ]
        for row in frame.itertuples()
    ]


def heads() -> list[str]:
    """Return the columns' titles."""
    return [*_HEADS, "buy next"]


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def caption(frame: pd.DataFrame) -> str:
    return (
        "Standard deviations of one number, pooled over the arms: between trainings of an arm, without the noise of "
        "sampling; between sampling seeds of one training; and the part of it that a seed does to all trainings alike, "
        "which an interval over trainings alone does not see. Buy next: whichever has the larger share of the "
        "variance of an arm's mean, trainings or sampling seeds; more seeds never bring it below the trainings' share. "
        "–: not known without several of both. A standard deviation of few values is itself uncertain: of four, by a "
        "factor of two and more."
    )


def markdown(frame: pd.DataFrame) -> str:
    """Return the table as Markdown."""
    lines = [f"| {' | '.join(heads())} |", "|---|---" + "|---:" * (len(_HEADS) - 2) + "|---|"]
    lines += [f"| {' | '.join(map(markdown_text, row))} |" for row in cells(frame)]
    return "\n".join([*lines, "", markdown_text(caption(frame)), ""])


def as_html(frame: pd.DataFrame) -> Markup:
    """Return the table as HTML, styled by the page."""
    return html.render("noise.html", heads=heads(), rows=cells(frame))
