"""Draw the card of the papers' claims for the page, over all studies that it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness.analysis.claims import claims_card
from harness.analysis.claims.claims_card import Row
from harness.analysis.figures import fig_claims
from harness.analysis.page.page import Card, Section
from harness.analysis.provenance import Provenance
from harness.analysis.report.drawing import Planned, shown
from harness.analysis.report.drawn import Output
from harness.spec.presentation import FigureStyle

STEM = "claims"


def planned_card(sections: Sequence[Section], look: FigureStyle) -> tuple[list[Row], Planned] | None:
    """Return the card's rows and its figure; None if no study has a contrast of a claim."""
    judged = {section.name: section.claims for section in sections if section.claims}
    if not judged:
        return None
    rows = claims_card.card(judged)
    frame = fig_claims.data(rows)
    runs = {run.run_key: run.code_version for section in sections if section.claims for run in section.runs}
    versions = tuple(sorted({*runs.values()}))
    made_of = Provenance(fig_claims.TITLE, ", ".join(judged), tuple(runs), versions, "harness figures")
    return rows, Planned(STEM, fig_claims, frame, fig_claims.caption(frame), made_of, look)


def draw_card(
    sections: Sequence[Section], out: Path, before: Output | None, look: FigureStyle, *, fresh: bool
) -> tuple[Card, Output] | None:
    """Draw the card, unless it is there as it would be drawn.

    Args:
        before: the card that an earlier report has drawn.

    Returns:
        what the page shows, and the files; None if no study has a contrast of a claim.
    """
    if (card := planned_card(sections, look)) is None:
        return None
    rows, planned = card
    drawn = before if before and not fresh and planned.is_drawn(before, out) else planned.draw(out)
    output = replace(drawn, caption=planned.caption)
    return Card(rows, shown(STEM, output)), output
