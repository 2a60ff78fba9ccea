"""Fréchet distance, MMD², modes and high quality by the number of sampling steps, beside SIDDM's table 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from harness.analysis import html, papers
from harness.analysis.answers.best import BOLD, DAGGER, LEGEND, UNDECIDED, AgainstBest, against_best
from harness.analysis.mixture import distance_scale, sampled_mixtures
from harness.analysis.runs import RunRecord
from harness.analysis.statistics.intervals import cell_of, summarise
from harness.analysis.tables.latex import DAGGER as LATEX_DAGGER
from harness.analysis.tables.latex import (
    NO_LABELS,
    PREAMBLE,
    Column,
    arm_text,
    comments,
    escape,
    number_cell,
    number_column,
)
from harness.analysis.tables.latex import table as latex_table
from harness.spec.metrics import metric_kind
from harness.text import markdown as markdown_text

TITLE = "The mixture by number of sampling steps"
NEEDS = "an evaluation with modes"
REFERENCE = papers.FOLDER / "siddm_table1_mixture.csv"
METRICS = {"frechet": 3, "mmd2": 3, "modes_covered": 1, "high_quality": 1}  # digits after the point
MEASURED = "measured"
COLUMNS = [
    "source",
    "row",
    "index",
    "num_steps",
    "metric",
    "n",
    "mean",
    "low",
    "high",
    "kind",
    "values",
    "against_best",
]


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row per method, number of steps and metric: `values` over replicates and their summary.

    `source` is `measured`, or how a value of the paper is known; `against_best` is the verdict of a row against the
    best one of its number of steps, in pairs. Fréchet distances are in the paper's coordinates,
    high quality is in per cent.
    """
    samples = sampled_mixtures(runs)
    values_of: dict[tuple, dict[int, float]] = {}  # by seed
    for sample in samples:
        scale = {"frechet": distance_scale(sample.run), "high_quality": 100.0}
        for metric in METRICS:
            key = (sample.row, sample.index, sample.num_steps, metric)
            value = scale.get(metric, 1.0) * sample.metric(metric)
            values_of.setdefault(key, {})[sample.run.spec["seed"]] = value
    judged = _against_best(values_of)
    rows = []
    for key, by_seed in values_of.items():
        values = list(by_seed.values())
        rows.append(dict(zip(COLUMNS, (MEASURED, *key, *summarise(values), _text(values), judged[key]), strict=True)))
    if any(distance_scale(sample.run) != 1 for sample in samples):
        rows += [
            dict(
                zip(
                    COLUMNS,
                    (source, method, -1, steps, "frechet", *summarise([value]), _text([value]), ""),
                    strict=True,
                )
            )
            for method, steps, value, source in pd.read_csv(REFERENCE).itertuples(index=False)
        ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _against_best(values_of: Mapping[tuple, Mapping[int, float]]) -> dict[tuple, AgainstBest]:
    """Compare the rows of each metric and number of steps with the best of them."""
    columns: dict[tuple, dict[tuple, dict[int, tuple[float, float]]]] = {}
    for key, by_seed in values_of.items():
        columns.setdefault(key[2:], {})[key] = {seed: (value, 0.0) for seed, value in by_seed.items()}
    result: dict[tuple, AgainstBest] = {}
    for (_, metric), sides in columns.items():
        result |= against_best(sides, higher_is_better=metric_kind(metric).direction == "maximize")
    return result


def _text(values: Sequence[float]) -> str:
    return " ".join(f"{value:.10g}" for value in values)


def tables(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table for each metric: its title, its columns, and rows with cells as text.

    A column is a number of steps. `best` has the columns in which the row's mean is the best of those measured, or
    cannot be told from it, and `undecided` those of them where that is not shown either; `cells` has the numbers.
    """
    steps = sorted(frame.loc[frame["source"] == MEASURED, "num_steps"].unique())
    return [_table(frame[frame["metric"] == metric], metric, steps) for metric in METRICS]


def _table(part: pd.DataFrame, metric: str, steps: list[int]) -> dict[str, Any]:
    kind, rows = metric_kind(metric), []
    for (source, name), cells in part.groupby(["source", "row"], sort=False):
        row: dict[str, Any] = {"source": source, "label": name, "index": int(cells["index"].iloc[0]), "best": set()}
        row |= {"undecided": set(), "cells": {}}
        row["measured"] = source == MEASURED
        if not row["measured"]:
            row["label"] = f"{name} (paper, {source})"
        for cell in cells.itertuples():
            digits = METRICS[metric] if row["measured"] else 2
            row["cells"][cell.num_steps] = cell_of([float(value) for value in cell.values.split()], digits)
            row[cell.num_steps] = row["cells"][cell.num_steps].text
            if cell.against_best in BOLD:
                row["best"].add(cell.num_steps)
            if cell.against_best in UNDECIDED:
                row["undecided"].add(cell.num_steps)
        rows.append(row)
    unit = " (%)" if metric == "high_quality" else ""
    return {"title": f"{kind.label}{unit} {kind.arrow}", "steps": steps, "rows": rows}


def caption(frame: pd.DataFrame) -> str:
    own = frame[frame["source"] == MEASURED]
    spread = {1: "One replicate.", 2: "Both values of two replicates; no interval."}.get(
        int(own["n"].max()), "Mean ± half of the 95 % t-interval over replicates, from three on."
    )
    paper = (
        " Fréchet distances are in the paper's coordinates, 121 times those of the records; its own values come from a "
        "second-hand summary, not from its table."
        if (frame["source"] != MEASURED).any()
        else ""
    )
    return (
        f"{spread} Columns: sampling steps, of a chain that was trained with so many, or of a longer one (T in the "
        f"row's name).{paper} The Fréchet distance and MMD² see two moments alone and are 0 for one Gaussian that "
        f"knows no mode; read them beside modes covered and high quality. {LEGEND}"
    )


def markdown(frame: pd.DataFrame) -> str:
    """Return the tables as Markdown."""
    lines = []
    for table in tables(frame):
        steps = table["steps"]
        lines += [f"**{markdown_text(table['title'])}**", ""]
        lines += [f"| steps | {' | '.join(map(str, steps))} |", "|---" + "|---:" * len(steps) + "|"]
        for row in table["rows"]:
            cells = [
                (f"**{row[step]}**" if step in row["best"] else row.get(step, "–"))
                + DAGGER * (step in row["undecided"])
                for step in steps
            ]
            lines.append(f"| {markdown_text(row['label'])} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, markdown_text(caption(frame)), ""])


def latex(frame: pd.DataFrame, comment: str = "", labels: Mapping[str, str] = NO_LABELS) -> str:
    """Return the tables for a paper, in the commands of booktabs and siunitx, one for each metric.

    Args:
        comment: what made them, for the first lines.
        labels: of arms, LaTeX in dollars.
    """
    parts = []
    for metric, shown in zip(METRICS, tables(frame), strict=True):
        steps, rows = shown["steps"], shown["rows"]
        columns = [Column("l", "steps")]
        columns += [
            number_column(
                str(step),
                [row["cells"].get(step) for row in rows],
                mark=LATEX_DAGGER if any(step in row["undecided"] for row in rows) else "",
            )
            for step in steps
        ]
        lines = [[_latex_label(row["label"], labels), *(_latex_cell(row, step) for step in steps)] for row in rows]
        parts.append(latex_table(columns, lines, escape(f"{shown['title']}. {caption(frame)}"), f"mixture-{metric}"))
    return comments(f"needs {PREAMBLE}\n{comment}") + "\n".join(parts)


def _latex_label(row: str, labels: Mapping[str, str]) -> str:
    arm = row.partition(", T = ")[0]
    return arm_text(arm, labels) + escape(row.removeprefix(arm))


def _latex_cell(row: dict[str, Any], step: int) -> str:
    mark = LATEX_DAGGER if step in row["undecided"] else ""
    return number_cell(row["cells"].get(step), bold=step in row["best"], mark=mark)


def as_html(frame: pd.DataFrame) -> Markup:
    """Return the tables as HTML, styled by the page."""
    return html.render("mixture.html", tables=tables(frame))
