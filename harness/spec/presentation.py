"""How a study is compared and drawn: no part of its runs' identity, and free to change at any time."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from harness.spec.base import SpecModel

PAPERS = {"icml": 3.25, "neurips": 5.5}
"""Widths of a column of text, in inches, by the conference's name."""

_LENGTH = re.compile(r"(\d+(?:\.\d+)?) ?(in|cm|mm|pt)")
_INCHES = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27}  # a point of TeX


def width_in_inches(text: str) -> float:
    """Return a width such as `3.25in`, `8.5cm` or the name of a conference in inches.

    Raises:
        ValueError: it is no width, or not from 2 to 20 inches.
    """
    if text in PAPERS:
        return PAPERS[text]
    parts = _LENGTH.fullmatch(text)
    if parts is None:
        raise ValueError(f"a width such as 3.25in, 8.5cm or 234pt, or one of {', '.join(PAPERS)}, not {text!r}")
    inches = float(parts[1]) * _INCHES[parts[2]]
    if not 2 <= inches <= 20:
        raise ValueError(f"a width from 2 to 20 inches, not {text}")
    return inches


def _width(text: str) -> str:
    width_in_inches(text)
    return text


class Compare(SpecModel):
    """What a study's question is decided by.

    Attributes:
        baseline: the arm that the others are compared with; the first by default.
        metric: `nll`, `fid`, ..., or of one evaluation, such as `eval/fid`; all metrics by default.
        pairs: `all`, or the pairs of arms that are compared; instead of a baseline.
        by: parts of the spec whose main effects, and whose interactions in twos, are compared too.
    """

    baseline: str | None = None
    metric: str | None = None
    pairs: Literal["all"] | tuple[tuple[str, str], ...] = ()
    by: tuple[str, ...] = ()


class FigureStyle(SpecModel):
    """How a study's figures look.

    Attributes:
        width: of a figure: a length, or the conference whose column it fills; by default as wide as it needs to be.
        palette: colours of the arms in their order, as #rrggbb.
        labels: the names of arms for figures and tables, which may hold formulas: `{hybrid: "$L_\\mathrm{hybrid}$"}`.
        arms: those that are shown, in this order; all by default.
        formats: of the files.
    """

    width: Annotated[str, AfterValidator(_width)] | None = None
    palette: tuple[Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")], ...] | None = Field(None, min_length=1)
    labels: dict[str, str] = Field(default_factory=dict)
    arms: tuple[str, ...] = ()
    formats: tuple[Literal["png", "pdf", "svg"], ...] = Field(("png", "pdf"), min_length=1)


class Presentation(SpecModel):
    """A study's question, what decides it, and how its figures look."""

    question: str = ""
    compare: Compare = Field(default_factory=Compare)
    figures: FigureStyle = Field(default_factory=FigureStyle)
