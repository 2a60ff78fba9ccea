"""NLL, FID, precision, recall and the metrics of plugins for every arm, with two baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from harness.analysis import html
from harness.analysis.answers.best import BOLD, DAGGER, LEGEND, UNDECIDED
from harness.analysis.answers.results import (
    DIGITS,
    GAUSSIAN,
    KINDS,
    NOT_OURS,
    OF_FEATURES,
    PAPER,
    TRAINED,
    others,
    sampling_errors_of,
)
from harness.analysis.statistics.intervals import Cell, Estimate, cell_of
from harness.analysis.statistics.noise import FEWEST_SEEDS
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
from harness.spec.run import METHODS
from harness.text import markdown as markdown_text

TITLE = "Results"
NEEDS = "an evaluation with nll, fidelity or metrics"


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the table's rows: one per model, arm and evaluation, with cells as text.

    `best` has the metrics in which the row's mean is the best of the trained ones, or cannot be told from it, and
    `undecided` those of them where that is not shown either; `cells` has the numbers. `note` is the evaluation's name
    if the study has several. `block` numbers the tables: values of different protocols are in no column together.
    """
    trained = frame[frame["model"] == TRAINED]
    several = trained["evaluation"].nunique() > 1
    table: list[dict[str, Any]] = []
    blocks: list[dict[str, str]] = []  # metric -> the protocol of its column
    for (model, arm, evaluation, _), whole in _by_row(frame):
        for part in _without_repeated_metrics(whole):
            row: dict[str, Any] = {"model": model, "arm": arm, "arm_index": int(part["arm_index"].iloc[0])}
            planned, n = int(part["planned"].iloc[0]), int(part["n"].max())
            missing = f" of {planned}" if model == TRAINED and n < planned else ""
            row |= {"best": set(), "undecided": set(), "cells": {}}
            row |= {"replicates": "" if model in (GAUSSIAN, NOT_OURS, PAPER) else f"{n}{missing}"}
            notes = [str(evaluation) if several and model == TRAINED else ""]
            row |= {"evaluation": str(evaluation), "means": dict(zip(part["metric"], part["mean"], strict=True))}
            row["note"] = " · ".join(
                filter(None, notes + (list(part["protocol"].unique()) if model == NOT_OURS else []))
            )
            row["source"] = part["source"].iloc[0] if model == PAPER else ""
            row["protocols"] = dict(zip(part["metric"], _columns(part), strict=True))
            row["block"] = _block(row["protocols"], blocks)
            for _, cell in part.iterrows():
                metric = cell["metric"]
                row["cells"][metric] = _cell(cell)
                row[metric] = row["cells"][metric].text
                if cell["against_best"] in BOLD:
                    row["best"].add(metric)
                if cell["against_best"] in UNDECIDED:
                    row["undecided"].add(metric)
            table.append(row)
    return sorted(table, key=lambda row: row["block"])


def _by_row(frame: pd.DataFrame) -> Any:
    """Group by model, arm, evaluation, and the source of what a paper has."""
    return frame.assign(of_paper=frame.get("source", "")).groupby(
        ["model", "arm", "evaluation", "of_paper"], sort=False
    )


def _columns(frame: pd.DataFrame) -> pd.Series:
    """Return what is the same of the values of a metric that may stand in one column: protocol and extractor."""
    return frame["protocol_id"] + " " + frame["extractor"]


def _block(protocols: dict[str, str], blocks: list[dict[str, str]]) -> int:
    """Return the first table in whose columns a row with these protocols by metric fits, or a new one."""
    for index, columns in enumerate(blocks):
        if all(columns.get(metric, protocol) == protocol for metric, protocol in protocols.items()):
            columns |= protocols
            return index
    blocks.append(dict(protocols))
    return len(blocks) - 1


def _cell(cell: pd.Series) -> Cell:
    """Return a cell: values with an interval, and what that covers if it is not all."""
    if cell["kind"] == PAPER:
        return cell_of([cell["mean"]], len(cell["values"].partition(".")[2]))  # with the digits that are printed there
    values, digits = [float(value) for value in cell["values"].split()], DIGITS.get(cell["metric"], 3)
    errors, source = sampling_errors_of(cell), str(cell.get("sampling_errors_from"))
    if cell["kind"] == "interval":
        diverged = f"{len(values) - cell['n']} NaN" if cell["n"] < len(values) else ""
        return Cell(((cell["mean"], cell["high"] - cell["mean"]),), digits, diverged)
    if cell["n"] < len(values) or not values:
        return cell_of(values, digits)
    if not errors:
        return cell_of(values, digits)._replace(source=NO_INTERVAL if cell["metric"] == "fid" else "")
    halves = [Estimate(*pair, cell["sampling_freedom"]).half_width for pair in zip(values, errors, strict=True)]
    return Cell(tuple(zip(values, halves, strict=True)), digits, source=source)


NO_INTERVAL = "no interval"


def _without_repeated_metrics(part: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Split rows of one model, arm and evaluation so that each part has every metric once."""
    order = part.groupby("metric", sort=False).cumcount()
    return (part[order == index] for index in sorted(order.unique()))


def protocols(frame: pd.DataFrame) -> str:
    """Describe how each metric was measured, and for which arms if they differ."""
    trained = frame[frame["model"] == TRAINED]
    sentences = []
    others_of_features = set(trained["metric"]) & ({*OF_FEATURES} - {"fid", "precision", "recall"})
    of_features = "metrics of features" if others_of_features else "FID, precision and recall"
    groups: dict[str, tuple[str, ...]] = {"NLL": ("nll",), of_features: OF_FEATURES}
    groups |= {name: (name,) for name in others(frame)}
    for name, metrics in groups.items():
        part = trained[trained["metric"].isin(metrics)]
        for protocol in part["protocol"].unique():
            sentences.append(f"{name}{_whose(part, 'protocol', protocol)}: {protocol}.")
    fixed = trained[trained["fixed_variance"] != ""]
    for variance in fixed["fixed_variance"].unique():
        sentences.append(f"Where the variance is fixed{_whose(fixed, 'fixed_variance', variance)}: σ² = {variance}.")
    return " ".join(sentences)


def _whose(frame: pd.DataFrame, column: str, value: str) -> str:
    """Return the evaluations or arms that a value belongs to, empty if it belongs to all."""
    if frame[column].nunique() == 1:
        return ""
    for owner in ("evaluation", "arm"):
        if frame.groupby(owner)[column].nunique().max() == 1:
            return f" ({', '.join(frame.loc[frame[column] == value, owner].unique())})"
    matches = frame.loc[frame[column] == value].drop_duplicates(["arm", "evaluation"])
    return f" ({', '.join(matches['arm'] + ' · ' + matches['evaluation'])})"


def selections(frame: pd.DataFrame) -> str:
    """Say which steps the checkpoints are of that a metric selected; empty where the last ones were measured."""
    if "selected_steps" not in frame:
        return ""
    chosen = frame[frame["selected_steps"] != ""].drop_duplicates("evaluation")
    return "".join(
        f" Checkpoints of {name}: of steps {steps}."
        for name, steps in zip(chosen["evaluation"], chosen["selected_steps"], strict=True)
    )


def undefined(frame: pd.DataFrame) -> str:
    """Say for which methods a column of NLL has a dash because they have no likelihood; empty where there are none."""
    if "method" not in frame:
        return ""
    methods = [name for name in frame["method"].unique() if name in METHODS and "nll" not in METHODS[name].measures]
    if "nll" not in set(frame["metric"]) or not methods:
        return ""
    return f" –: {KINDS['nll'].label} is not defined for {' and '.join(methods)}, for want of a likelihood."


def caption(frame: pd.DataFrame) -> str:
    notes = f"{selections(frame)}{classifiers(frame)}{undefined(frame)}{of_papers(frame)}"
    return f"{intervals(frame)} {LEGEND} {protocols(frame)}{notes}"


def intervals(frame: pd.DataFrame) -> str:
    """Say what the intervals in the cells cover."""
    n = frame.loc[frame["model"] == TRAINED, "n"].max()
    sentences = {1: ["One replicate."], 2: ["Both values of two replicates."]}.get(
        n, ["Mean ± half of the 95 % t-interval over replicates, from three on."]
    )
    of_features = frame[(frame["kind"] == "interval") & frame["metric"].isin(OF_FEATURES)]
    if len(of_features):
        covers_all = "shared_error" in of_features and of_features["shared_error"].notna().all()
        sentences.append(
            "It covers trainings and samples."
            if covers_all
            else "It covers trainings, and of samples what differs between replicates, which share their noise; with "
            f"`seeds: {FEWEST_SEEDS}` or more in fidelity it covers both."
        )
    few = frame[(frame["kind"] != "interval") & (frame["n"] > 0)]
    texts = {
        "seeds": "± (seeds): half of the 95 % t-interval over sampling seeds",
        "features": "± (features): 1.96 standard errors, from the features of one draw",
    }
    sources = few["sampling_errors_from"].dropna().unique() if "sampling_errors_from" in few else []
    if shown := [text for source, text in texts.items() if source in sources]:
        sentences.append(f"{'; '.join(shown)}: samples alone, not other trainings.")
    if any(_cell(cell).source == NO_INTERVAL for _, cell in few[few["metric"] == "fid"].iterrows()):
        sentences.append("No interval: neither several trainings nor FID's standard error were recorded.")
    if "fid" in set(frame["metric"]):
        sentences.append("No interval covers FID's bias, which depends on the number of samples.")
    return " ".join(sentences)


def of_papers(frame: pd.DataFrame) -> str:
    """Say what the papers' rows are; empty where there are none."""
    if "source" not in frame:
        return ""
    return (
        " (paper: ...): what a paper reports of the same data, training and protocol, as printed; it is in no mean and "
        "never the best."
    )


def classifiers(frame: pd.DataFrame) -> str:
    """Say how good the classifiers are whose features are compared; empty where there is none."""
    if "extractor_accuracy" not in frame:
        return ""
    known = frame[frame["extractor_accuracy"] != ""].drop_duplicates("extractor")
    return "".join(
        f" {name} is a classifier of the data's own labels, right on {accuracy} of the test images."
        for name, accuracy in zip(known["extractor"], known["extractor_accuracy"], strict=True)
    )


def heads(frame: pd.DataFrame) -> dict[str, str]:
    """Return the columns' titles by metric, with the feature extractors; the first of these has their accuracy.

    What has no better direction, such as an error or the end of an interval, is in results.csv alone.
    """
    nll = KINDS["nll"]
    titles = {"nll": f"{nll.axis} {nll.arrow}"} if "nll" in set(frame["metric"]) else {}
    accuracies = dict(zip(frame["extractor"], frame.get("extractor_accuracy", [""] * len(frame)), strict=True))
    for metric in OF_FEATURES:
        extractors = frame.loc[frame["metric"] == metric, "extractor"].unique()
        if len(extractors) and KINDS[metric].direction:
            names = " / ".join(
                f"{name}, accuracy {accuracy}" if (accuracy := accuracies.pop(name, "")) else name
                for name in extractors
            )
            titles[metric] = f"{KINDS[metric].label} ({names}) {KINDS[metric].arrow}"
    return titles | {metric: metric for metric in others(frame)}


def _label(row: dict, arm: str | None = None) -> str:
    arm = row["arm"] if arm is None else arm
    whose = f" ({arm})" if arm else ""
    name = arm if row["model"] == TRAINED else row["model"] + whose
    if row["model"] == NOT_OURS:
        name = f"{arm} ({NOT_OURS})"
    if row["model"] == PAPER:
        return f"{arm} ({PAPER}: {row['source']})"
    return f"{name} · {row['note']}" if row["note"] else name


def tables(frame: pd.DataFrame) -> list[tuple[str, dict[str, str], list[dict[str, Any]]]]:
    """Return a heading, titles of columns by metric, and rows for each table; a single table has no heading."""
    result, all_rows = [], rows(frame)
    for block in dict.fromkeys(row["block"] for row in all_rows):
        members = [row for row in all_rows if row["block"] == block]
        columns = {column for row in members for column in row["protocols"].items()}
        part = frame[[column in columns for column in zip(frame["metric"], _columns(frame), strict=True)]]
        result.append((protocols(part) or " ".join(part["protocol"].unique()), heads(part), members))
    return result if len(result) > 1 else [("", titles, members) for _, titles, members in result]


def markdown(frame: pd.DataFrame) -> str:
    """Return the table as Markdown; one for each of several protocols."""
    lines = []
    for heading, titles, members in tables(frame):
        lines += [markdown_text(heading), ""] if heading else []
        lines.append(f"| arm | runs | {' | '.join(map(markdown_text, titles.values()))} |")
        lines.append("|---|---" + "|---:" * len(titles) + "|")
        for row in members:
            cells = [
                (f"**{row[metric]}**" if metric in row["best"] else row.get(metric, "–"))
                + DAGGER * (metric in row["undecided"])
                for metric in titles
            ]
            label = markdown_text(_label(row))
            if row["model"] == PAPER:
                label, cells = f"*{label}*", [cell if cell == "–" else f"*{cell}*" for cell in cells]
            lines.append(f"| {label} | {row['replicates']} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join([*lines, markdown_text(caption(frame)), ""])


def latex(frame: pd.DataFrame, comment: str = "", labels: Mapping[str, str] = NO_LABELS) -> str:
    """Return the table for a paper, in the commands of booktabs and siunitx; one for each of several protocols.

    Args:
        comment: what made it, for the first lines.
        labels: of arms, LaTeX in dollars.
    """
    parts = []
    for number, (heading, titles, members) in enumerate(tables(frame)):
        columns = [Column("l", "arm"), Column("r", "runs")]
        columns += [
            number_column(
                title,
                [row["cells"].get(metric) for row in members],
                mark=LATEX_DAGGER if any(metric in row["undecided"] for row in members) else "",
            )
            for metric, title in titles.items()
        ]
        lines = [
            [_latex_label(row, labels), escape(row["replicates"]), *(_latex_cell(row, metric) for metric in titles)]
            for row in members
        ]
        text = escape(" ".join(filter(None, [heading, _replicates(members), caption(frame)])))
        parts.append(latex_table(columns, lines, text, f"results{f'-{number + 1}' if number else ''}"))
    return comments(f"needs {PREAMBLE}\n{comment}") + "\n".join(parts)


def _replicates(members: Sequence[dict[str, Any]]) -> str:
    """Say how many replicates the trained rows of a table have."""
    counts = sorted({row["replicates"] for row in members if row["model"] == TRAINED})
    return f"n = {' or '.join(counts)} replicates (seeds) of each arm."


def _latex_label(row: dict, labels: Mapping[str, str]) -> str:
    texts = {name: escape(row[name]) for name in ("model", "note", "source")}
    text = _label(row | texts, arm_text(row["arm"], labels))
    return rf"\textit{{{text}}}" if row["model"] == PAPER else text


def _latex_cell(row: dict, metric: str) -> str:
    mark = LATEX_DAGGER if metric in row["undecided"] else ""
    return number_cell(row["cells"].get(metric), bold=metric in row["best"], mark=mark)


def as_html(frame: pd.DataFrame, below: Callable[[dict[str, Any], str], Any] = lambda row, metric: None) -> Markup:
    """Return the table as HTML, styled by the page; one for each of several protocols.

    Args:
        below: the difference that stands below the value of a row and a metric, as in `page_differences`; None if none.
    """
    shown = [
        (heading, titles, [row | {"label": _label(row), "trained": row["model"] == TRAINED} for row in members])
        for heading, titles, members in tables(frame)
    ]
    return html.render("results.html", tables=shown, below=below)
