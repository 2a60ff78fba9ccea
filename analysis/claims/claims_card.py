"""The card of the papers' claims: one verdict each, over all studies of a folder of runs.

A contrast keeps the verdict that it has in its study, where Holm's correction was applied. Of a contrast that several
studies have, the one with the most pairs counts. What the claim is called:

- reproduced or contradicted, if some contrasts are and none is the other; `mixed`, if there are both;
- else suggests, or suggests the opposite, likewise; else inconclusive;
- not run, if no run of the folder is on both sides of a contrast: the card then names the study that tests it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from harness.analysis import html
from harness.analysis.claims.claim import Claim
from harness.analysis.claims.papers_claims import CLAIMS
from harness.analysis.claims.verdicts import Contrast, JudgedClaim, judge
from harness.analysis.runs import RunRecord, load_records, study_names
from harness.text import count

TITLE = "The papers' claims"
VERDICTS = (
    "reproduced",
    "contradicted",
    "mixed",
    "suggests",
    "suggests the opposite",
    "inconclusive",
    "not run",
)
COLOURS = {"reproduced": "good", "suggests": "good", "contradicted": "bad", "suggests the opposite": "bad"}
HEADERS = ("verdict", "claim", "source", "what these runs say")


@dataclass(frozen=True)
class Row:
    """A claim on the card, and its contrasts, each with the study that has it."""

    claim: Claim
    contrasts: tuple[tuple[str, Contrast], ...] = ()

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`."""
        verdicts = {contrast.verdict for _, contrast in self.contrasts}
        for pro, contra, both in (
            ("reproduced", "contradicted", "mixed"),
            ("suggests", "suggests the opposite", "inconclusive"),
        ):
            if {pro, contra} <= verdicts:
                return both
            if decided := {pro, contra} & verdicts:
                return decided.pop()
        return "inconclusive" if self.contrasts else "not run"

    @property
    def command(self) -> str:
        """What runs the study that tests the claim."""
        return f"harness submit experiments/{self.claim.study}"

    @property
    def summary(self) -> str:
        """How many contrasts have which verdict; of a single one its numbers; of none what to run."""
        if not self.contrasts:
            return self.command
        if len(self.contrasts) == 1:
            [(study, contrast)] = self.contrasts
            return f"{contrast.metric}, {contrast.context}: {contrast.numbers()} ({study})"
        verdicts = [contrast.verdict for _, contrast in self.contrasts]
        counted = ", ".join(f"{verdicts.count(name)} {name}" for name in VERDICTS if name in verdicts)
        return f"{count(len(verdicts), 'contrast')}: {counted}"


def card(judged: Mapping[str, Sequence[JudgedClaim]], claims: Sequence[Claim] = CLAIMS) -> list[Row]:
    """Return a row for each claim, in the table's order.

    Args:
        judged: by study.
    """
    best: dict[str, dict[str, tuple[str, Contrast]]] = {claim.id: {} for claim in claims}
    for study, of_study in judged.items():
        for one in of_study:
            contrasts = best[one.claim.id]
            for contrast in one.contrasts:
                known = contrasts.get(contrast.key)
                if known is None or len(contrast.pairs) > len(known[1].pairs):
                    contrasts[contrast.key] = (study, contrast)
    return [Row(claim, tuple(best[claim.id].values())) for claim in claims]


def judge_folder(runs_folder: Path) -> tuple[dict[str, list[JudgedClaim]], dict[str, str]]:
    """Judge the claims by each study of a folder.

    Returns:
        the claims by study; and why runs whose records are odd were left out, by run_key.
    """
    judged: dict[str, list[JudgedClaim]] = {}
    left_out: dict[str, str] = {}
    for study in study_names(runs_folder):
        runs = load_records(runs_folder, study)
        try:
            judged[study] = judge(runs)
        except Exception:  # whatever an odd record causes in a reader that expects a right one
            reasons = {run.run_key: reason for run in runs if (reason := _why_unusable(run))}
            judged[study] = judge([run for run in runs if run.run_key not in reasons])
            left_out |= reasons
    return judged, left_out


def _why_unusable(run: RunRecord) -> str:
    try:
        judge([run])
    except Exception as error:
        return f"its records are odd: {type(error).__name__}: {error}"
    return ""


def counts(rows: Sequence[Row]) -> str:
    """Return `2 reproduced, 1 contradicted, 30 not run`."""
    verdicts = [row.verdict for row in rows]
    return ", ".join(f"{verdicts.count(name)} {name}" for name in VERDICTS if name in verdicts)


def cells(row: Row) -> tuple[str, ...]:
    """Return a row's cells under `HEADERS`."""
    return row.verdict, row.claim.statement, row.claim.source.text, row.summary


def as_values(row: Row) -> dict[str, Any]:
    """Return a row as plain values, for JSON."""
    return {
        "id": row.claim.id,
        "statement": row.claim.statement,
        "source": row.claim.source.text,
        "verdict": row.verdict,
        "study": f"experiments/{row.claim.study}",
        "contrasts": [
            {
                "study": study,
                "context": contrast.context,
                "metric": contrast.metric,
                "ours": contrast.ours,
                "other": contrast.other,
                "pairs": [list(pair) for pair in contrast.pairs],
                "p_holm": contrast.comparison.p_holm,
                "verdict": contrast.verdict,
            }
            for study, contrast in row.contrasts
        ],
    }


def as_html(rows: Sequence[Row]) -> Markup:
    """Return the card as HTML, styled by the page."""
    return html.render("claims.html", headers=HEADERS, rows=rows, cells=cells, colours=COLOURS)
