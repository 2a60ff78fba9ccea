"""The page of all figures: a section for each study, from its question and answer to its runs.

It loads nothing but pictures: a content security policy says so, and allows one style sheet and one script, by their
hashes. The script sorts tables, switches between baselines, draws curves and marks an arm; without it all figures and
tables are there as they are. Every number on the page was computed in Python.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd
from markupsafe import Markup

from harness import __version__
from harness.analysis import html
from harness.analysis.answers.contrasts import Contrast, deciding
from harness.analysis.claims import claims_card
from harness.analysis.claims.claims_card import Row
from harness.analysis.claims.verdicts import RULE, JudgedClaim
from harness.analysis.figures import style
from harness.analysis.page import page_runs
from harness.analysis.page.page_differences import Differences, undecided
from harness.analysis.runs import RunRecord, by_arm, count_states
from harness.analysis.tables import tab_contrasts, tab_mixture, tab_noise, tab_published, tab_results
from harness.spec.presentation import FigureStyle, Presentation
from harness.text import printable

_VERDICT_COLOURS = {"reproduced": "good", "suggests": "good", "contradicted": "bad", "suggests the opposite": "bad"}
_STATE_COLOURS = {"done": "good", "failed": "bad", "interrupted": "bad"}
USUAL_FIGURES = FigureStyle()
_NAMES = {"md": "Markdown", "tex": "LaTeX"}


@dataclass
class Shown:
    """One figure on the page: its path relative to the page without suffix, and its caption."""

    stem: str
    title: str
    caption: str
    width_inches: float

    @property
    def narrow(self) -> bool:
        return self.width_inches <= style.ONE_COLUMN * 1.3

    @property
    def width_pixels(self) -> int:
        """The width at which all figures have letters of one size."""
        return round(self.width_inches * 150)


@dataclass
class Section:
    """A study on the page.

    Attributes:
        data_note: what a reader must know of the data behind all figures.
        num_earlier: runs that the study no longer asks for.
        folder: that the page lies in.
        curves: what the script draws in the place of a figure, by the figure's name.
        left_out: what could not be read or drawn, with the reason, by run_key or by the figure's title.
    """

    name: str
    runs: list[RunRecord]
    presentation: Presentation = field(default_factory=Presentation)
    figures: list[Shown] = field(default_factory=list)
    data_note: str = ""
    num_earlier: int = 0
    folder: Path = Path()
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    results: pd.DataFrame | None = None
    contrasts: list[Contrast] = field(default_factory=list)
    differences: Differences = field(default_factory=Differences)
    mixture: pd.DataFrame | None = None
    noise: pd.DataFrame | None = None
    published: pd.DataFrame | None = None
    claims: list[JudgedClaim] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass
class Card:
    """The papers' claims on the page, over all studies: their table and their figure."""

    rows: list[Row]
    figure: Shown


def render(
    sections: Sequence[Section],
    schedules: Sequence[Shown],
    card: Card | None = None,
    *,
    pictures_from: Path | None = None,
) -> str:
    """Return the page as HTML.

    Args:
        pictures_from: the page's folder, if its pictures are to be inside it, as in a page to send on its own: then it
            has no links to files.
    """
    palettes = [_palette(USUAL_FIGURES), *(_palette(section.presentation.figures) for section in sections)]
    css = html.render("report.css", palettes=dict(enumerate(palettes, start=-1)))
    script = html.render("report.js")
    policy = Markup(
        f"default-src 'none'; img-src 'self' file: data:; style-src 'sha256-{_sha256(css)}'; "
        f"script-src 'sha256-{_sha256(script)}'; base-uri 'none'"
    )
    return html.render(
        "report.html",
        css=css,
        script=script,
        policy=policy,
        summary=_summary(sections),
        sections=[_section(section, alone=pictures_from is not None) for section in sections],
        schedules=[_figure(shown, {}) for shown in schedules],
        card=None if card is None else _card(card),
        picture=lambda path: _picture(path, pictures_from),
        alone=pictures_from is not None,
        names=_NAMES,
        state_colours=_STATE_COLOURS,
        verdict_colours=_VERDICT_COLOURS,
        version=__version__,
    )


def _palette(figures: FigureStyle) -> list[str]:
    """Return the colours of a study's arms in their order; what is black is ink, so that it is seen on a dark page."""
    with style.chosen(figures):
        colours = [style.arm_style(index)["color"] for index in range(NUM_COLOURS)]
    return ["currentColor" if colour == "#000000" else colour for colour in colours]


NUM_COLOURS = len(style.COLOURS) * 4


def _card(card: Card) -> dict[str, Any]:
    lead = f"{claims_card.counts(card.rows)}, over all studies on this page."
    table = claims_card.as_html(card.rows)
    return {"title": claims_card.TITLE, "lead": lead, "table": table, "figure": _figure(card.figure, {})}


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _picture(path: str, folder: Path | None) -> str:
    """Return the address of a picture: the path that is given, or the picture itself."""
    if folder is None:
        return path
    return f"data:image/png;base64,{base64.b64encode((folder / unquote(path)).read_bytes()).decode()}"


def as_json(values: Any) -> Markup:
    """Return values as JSON that ends no script element and begins no comment."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False, default=str)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _section(section: Section, *, alone: bool) -> dict[str, Any]:
    mixture, compare = section.mixture, section.presentation.compare
    arms, earlier = by_arm(section.runs), section.num_earlier
    without = f" Without {earlier} earlier run{'s' if earlier != 1 else ''}, no longer asked for." if earlier else ""
    decided_by = deciding(section.contrasts, compare)
    compared = section.differences
    looks = _looks(list(arms), section.presentation.figures)
    return {
        "name": section.name,
        "lead": f"{len(arms)} arm{'s' if len(arms) != 1 else ''}, {count_states(section.runs)}.{without}",
        "results": None if section.results is None else _results(section.results, compared, section.data_note),
        "question": section.presentation.question,
        "answers": tab_contrasts.answers(decided_by),
        "undecided": undecided(decided_by),
        "missing": page_runs.missing(section.runs, section.name),
        "arms": list(arms),
        "settings": page_runs.what_every_arm_is(section.runs, compared.baseline),
        "baseline": compared.baseline,
        "baselines": list(compared.others),
        "data": as_json({"arms": looks, "against": compared.for_the_script, "colours": _DIFFERENCES}),
        "contrasts": None
        if not section.contrasts
        else {"tables": tab_contrasts.as_html(section.contrasts), "title": tab_contrasts.TITLE}
        | {"caption": tab_contrasts.caption(section.contrasts)},
        "mixture": None
        if mixture is None
        else {"tables": tab_mixture.as_html(mixture), "title": tab_mixture.TITLE}
        | {"caption": tab_mixture.caption(mixture)},
        "noise": None if section.noise is None else _noise(section.noise),
        "published": None
        if section.published is None
        else {"tables": tab_published.as_html(section.published), "title": tab_published.TITLE}
        | {"caption": tab_published.caption(section.published)},
        "claims": section.claims,
        "rule": " ".join(filter(None, [RULE, section.data_note])),
        "figures": [_figure(shown, section.curves, section.presentation.figures) for shown in section.figures],
        "has_curves": any(section.curves.values()),
        "samples": page_runs.samples(section.runs, section.folder),
        "left_out": section.left_out,
        "runs": [_run(run, section.folder, alone=alone) for run in section.runs],
    }


_DIFFERENCES = tab_contrasts.COLOURS


def _looks(arms: Sequence[str], figures: FigureStyle) -> list[dict[str, Any]]:
    """Return the arms' names and colours for the script."""
    colours = itertools.cycle(_palette(figures))
    return [{"name": printable(arm), "colour": colour} for arm, colour in zip(arms, colours, strict=False)]


def _figure(
    shown: Shown, curves: dict[str, list[dict[str, Any]]], figures: FigureStyle = USUAL_FIGURES
) -> dict[str, Any]:
    panels = curves.get(shown.stem.rpartition("/")[2])
    of_seeds = any("seed" in curve for panel in panels or () for curve in panel["curves"])
    return {"shown": shown, "panels": as_json(panels) if panels else None, "of_seeds": of_seeds} | {
        "kinds": ["png", *(name for name in ("pdf", "svg") if name in figures.formats), "csv"]
    }


def _results(frame: pd.DataFrame, compared: Differences, data_note: str) -> dict[str, Any]:
    caption = " ".join(filter(None, [tab_results.caption(frame), data_note]))
    return {"table": tab_results.as_html(frame, compared.cell), "caption": caption}


def _noise(frame: pd.DataFrame) -> dict[str, Any]:
    return {"table": tab_noise.as_html(frame), "title": tab_noise.TITLE, "caption": tab_noise.caption(frame)}


def _summary(sections: Sequence[Section]) -> str:
    runs = [run for section in sections for run in section.runs]
    if not runs:
        return "No runs yet. Submit a study, then draw again."
    studies = f"{len(sections)} stud{'ies' if len(sections) != 1 else 'y'}"
    return f"{studies}, {count_states(runs)}."


def _run(run: RunRecord, folder: Path, *, alone: bool) -> dict[str, Any]:
    return {
        "run_key": run.run_key,
        "arm": run.arm,
        "replicate": run.replicate,
        "seed": run.spec["seed"],
        "state": run.state,
        "steps": f"{run.status.step:,} of {run.spec['train']['steps']:,}",
        "code_version": run.code_version,
        "notes": "; ".join(filter(None, [run.status.reason, *run.collapses, *run.problems])),
        "links": [] if alone else page_runs.links(run, folder),
    }
