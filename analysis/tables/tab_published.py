"""What was published on the same data, table by table: it stands beside the results, never among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from harness.analysis import html, papers
from harness.analysis.runs import RunRecord
from harness.spec.metrics import metric_kind
from harness.text import markdown as markdown_text

TITLE = "Published on the same data"
NEEDS = "data that the papers report on: cifar10, imagenet64"
_KINDS = {name: metric_kind({"nll": "nll_bpd"}.get(name, name)) for name in ("nll", *papers.OF_SAMPLES)}
HEADS = {name: f"{kind.axis} {kind.arrow}" for name, kind in _KINDS.items()} | {
    "network_evaluations": "network evaluations",
    "seconds": "seconds for 100 images",
}
ABOUT = ["model", "source", "certainty"]


def data(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row for each row of a paper's table on the runs' data: what is known of it, as printed."""
    rows = [
        {"model": row.model, "source": row.source, "certainty": row.certainty} | dict(row.values)
        for row in papers.of_data(runs)
        if row.values.keys() & HEADS.keys()
    ]
    frame = pd.DataFrame(rows, columns=[*ABOUT, *HEADS]).fillna("")
    return frame[[*ABOUT, *(name for name in HEADS if (frame[name] != "").any())]]


def tables(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a table for each table of a paper: its title, its columns' titles by metric, and rows."""
    result = []
    for source, part in frame.groupby("source", sort=False):
        heads = {name: HEADS[name] for name in frame.columns if name in HEADS and (part[name] != "").any()}
        sure = part["certainty"].unique()
        common = f" ({sure[0]})" if len(sure) == 1 and sure[0] != "paper" else ""
        rows = part.to_dict("records")
        for row in rows if len(sure) > 1 else ():
            row["model"] += f" ({row['certainty']})" if row["certainty"] == "unverified" else ""
        result.append({"title": f"{source}{common}", "heads": heads, "rows": rows})
    return result


def caption(frame: pd.DataFrame) -> str:
    return (
        "What the papers print of models of these data, whatever their training, with how sure the number is: of the "
        "paper itself where nothing is said. FID and what else comes from features is Inception's, mostly of 50,000 "
        "samples; only rows of the results that are marked with a paper have the same training and protocol."
    )


def markdown(frame: pd.DataFrame) -> str:
    """Return the tables as Markdown."""
    lines = []
    for table in tables(frame):
        heads = table["heads"]
        lines += [f"| {markdown_text(table['title'])} | {' | '.join(map(markdown_text, heads.values()))} |"]
        lines.append("|---" + "|---:" * len(heads) + "|")
        for row in table["rows"]:
            lines.append(f"| {markdown_text(row['model'])} | {' | '.join(row[name] or '–' for name in heads)} |")
        lines.append("")
    return "\n".join([*lines, markdown_text(caption(frame)), ""])


def as_html(frame: pd.DataFrame) -> Markup:
    """Return the tables as HTML, styled by the page."""
    return html.render("published.html", tables=tables(frame))
