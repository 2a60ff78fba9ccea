"""The page of all figures.

The page runs no script and loads nothing but pictures beside it: a content security policy says so, and allows one
style sheet, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from markupsafe import Markup

from harness import __version__
from harness.analysis import claims, html, style, tab_contrasts, tab_mixture, tab_noise, tab_published, tab_results
from harness.analysis.contrasts import Contrast, deciding
from harness.analysis.runs import RunRecord, by_arm, count_states
from harness.spec.presentation import Presentation

_VERDICT_COLOURS = {"reproduced": "good", "suggests": "good", "contradicted": "bad", "suggests the opposite": "bad"}
_STATE_COLOURS = {"done": "good", "failed": "bad", "interrupted": "bad"}
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
        left_out: what could not be read or drawn, with the reason, by run_key or by the figure's title.
    """

    name: str
    runs: list[RunRecord]
    presentation: Presentation = field(default_factory=Presentation)
    figures: list[Shown] = field(default_factory=list)
    data_note: str = ""
    num_earlier: int = 0
    results: pd.DataFrame | None = None
    contrasts: list[Contrast] = field(default_factory=list)
    mixture: pd.DataFrame | None = None
    noise: pd.DataFrame | None = None
    published: pd.DataFrame | None = None
    claims: list[claims.Claim] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def render(sections: Sequence[Section], schedules: Sequence[Shown]) -> str:
    """Return the page as HTML."""
    shown = [*schedules, *(figure for section in sections for figure in section.figures)]
    colours = [style.arm_style(index)["color"] for index in range(len(style.COLOURS) * 4)]
    widths = sorted({figure.width_pixels for figure in shown})
    css = html.render("report.css", arm_colours=colours, widths=widths)
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = Markup(f"default-src 'none'; img-src 'self' file: data:; style-src 'sha256-{digest}'; base-uri 'none'")
    return html.render(
        "report.html",
        css=css,
        policy=policy,
        summary=_summary(sections),
        sections=[_section(section) for section in sections],
        schedules=schedules,
        names=_NAMES,
        state_colours=_STATE_COLOURS,
        verdict_colours=_VERDICT_COLOURS,
        steps=_steps,
        notes=_notes,
        version=__version__,
    )


def _section(section: Section) -> dict[str, Any]:
    results, mixture = section.results, section.mixture
    arms, earlier = len(by_arm(section.runs)), section.num_earlier
    without = f" Without {earlier} earlier run{'s' if earlier != 1 else ''}, no longer asked for." if earlier else ""
    return {
        "name": section.name,
        "lead": f"{arms} arm{'s' if arms != 1 else ''}, {count_states(section.runs)}.{without}",
        "results": None if results is None else _results(results, section.data_note),
        "question": section.presentation.question,
        "answers": tab_contrasts.answers(deciding(section.contrasts, section.presentation.compare)),
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
        "rule": " ".join(filter(None, [claims.RULE, section.data_note])),
        "figures": section.figures,
        "left_out": section.left_out,
        "runs": section.runs,
    }


def _results(frame: pd.DataFrame, data_note: str) -> dict[str, Any]:
    caption = " ".join(filter(None, [tab_results.caption(frame), data_note]))
    return {"table": tab_results.as_html(frame), "caption": caption}


def _noise(frame: pd.DataFrame) -> dict[str, Any]:
    return {"table": tab_noise.as_html(frame), "title": tab_noise.TITLE, "caption": tab_noise.caption(frame)}


def _summary(sections: Sequence[Section]) -> str:
    runs = [run for section in sections for run in section.runs]
    if not runs:
        return "No runs yet. Submit a study, then draw again."
    studies = f"{len(sections)} stud{'ies' if len(sections) != 1 else 'y'}"
    return f"{studies}, {count_states(runs)}."


def _steps(run: RunRecord) -> str:
    return f"{run.status.step:,} of {run.spec['train']['steps']:,}"


def _notes(run: RunRecord) -> str:
    return "; ".join(filter(None, [run.status.reason, *run.collapses, *run.problems]))
