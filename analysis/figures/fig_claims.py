"""The card of the papers' claims: one row each, its contrasts in units of their own spread, coloured by verdict."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.claims.claims_card import Row
from harness.analysis.claims.verdicts import Contrast
from harness.analysis.figures import style
from harness.analysis.statistics.comparison import MIN_PAIRS
from harness.text import count

TITLE = "The papers' claims, and what these runs say"
NEEDS = "runs on both sides of a claim"

GREEN, RED, GREY, PALE = style.COLOURS[2], style.COLOURS[1], "#777777", "#aaaaaa"
LOOKS: dict[str, dict[str, Any]] = {
    "reproduced": {"color": GREEN, "marker": "o"},
    "contradicted": {"color": RED, "marker": "s"},
    "mixed": {"color": style.COLOURS[3], "marker": "o"},
    "suggests": {"color": GREEN, "marker": "o", "markerfacecolor": "white"},
    "suggests the opposite": {"color": RED, "marker": "s", "markerfacecolor": "white"},
    "inconclusive": {"color": GREY, "marker": "D", "markerfacecolor": "white", "markersize": 3},
    "not run": {"color": PALE, "marker": ""},
}
LARGEST = 100.0
"""Largest effect with a place of its own; larger ones lie at the edge."""
_LINE_INCHES = 0.125
_TEXT, _PLOT = 0.55, 0.245
"""The shares of the width for the statements and for the marks; the verdicts have the rest."""


def data(rows: Sequence[Row]) -> pd.DataFrame:
    """Return a row for each contrast, and one for each claim that was not run.

    `effect` is the mean paired difference over the standard deviation of the differences, with its 95 % interval;
    positive is as claimed. It is NaN below two pairs and where replicates do not differ at all.
    """
    return pd.DataFrame([values for row in rows for values in _rows(row)])


def _rows(row: Row) -> Iterator[dict[str, Any]]:
    shared = {"claim": row.claim.id, "statement": row.claim.statement, "source": row.claim.source.text}
    shared |= {"verdict_of_claim": row.verdict, "tested_by": f"experiments/{row.claim.study}"}
    for study, contrast in row.contrasts:
        low, effect, high = effects(contrast)
        yield shared | {
            **{"study": study, "context": contrast.context, "metric": contrast.metric},
            **{"ours": contrast.ours, "other": contrast.other, "pairs": len(contrast.pairs)},
            **{"ours_mean": contrast.comparison.ours, "other_mean": float(np.mean(contrast.pairs, 0)[1])},
            **{"effect": effect, "low": low, "high": high},
            **{"p_holm": contrast.comparison.p_holm, "verdict": contrast.verdict},
        }
    if not row.contrasts:
        names = dict.fromkeys(("study", "context", "metric", "ours", "other"), "")
        numbers = dict.fromkeys(("ours_mean", "other_mean", "effect", "low", "high", "p_holm"), math.nan)
        yield shared | names | {"pairs": 0} | numbers | {"verdict": row.verdict}


def effects(contrast: Contrast) -> tuple[float, float, float]:
    """Return the lower end, the middle and the upper end of the standardised difference; positive is as claimed."""
    comparison = contrast.comparison
    spread = float(np.std(comparison.differences, ddof=1)) if comparison.n > 1 else 0.0
    if not spread:
        return math.nan, math.nan, math.nan
    sign = 1 if contrast.higher else -1
    low, high = sorted(sign * end / spread for end in (comparison.t_low, comparison.t_high))
    return low, sign * comparison.difference / spread, high


@style.in_style
def draw(df: pd.DataFrame) -> style.Figure:
    """Draw one row a claim: its statement and source, its contrasts, its verdict."""
    claims = [contrasts for _, contrasts in df.groupby("claim", sort=False)]
    width = style.full_width()
    texts = [_wrapped(contrasts.iloc[0], width * _TEXT) for contrasts in claims]
    num_lines = max(len(lines) + 1 for lines, _ in texts)
    height = 0.75 + (num_lines * _LINE_INCHES + 0.04) * len(claims)
    figure = style.Figure(figsize=(width, height), dpi=style.DPI)
    figure.subplots_adjust(left=_TEXT, right=_TEXT + _PLOT, bottom=0.55 / height, top=1 - 0.2 / height)
    axes = figure.subplots()
    for place, (contrasts, (lines, source)) in enumerate(zip(claims, texts, strict=True)):
        _write_claim(axes, place, contrasts, [*lines, source])
        _draw_contrasts(axes, place, contrasts)
    _draw_axes(axes, len(claims))
    return figure


def _wrapped(row: pd.Series, inches: float) -> tuple[list[str], str]:
    """Return the lines of a claim's statement, and its source in one line."""
    return textwrap.wrap(row["statement"], int(inches * 19.5)), textwrap.shorten(
        row["source"], int(inches * 22.5), placeholder=" …"
    )


def _write_claim(axes: Any, place: int, contrasts: pd.DataFrame, lines: list[str]) -> None:
    verdict = contrasts["verdict_of_claim"].iloc[0]
    pale = verdict == "not run"
    options: Any = {"transform": axes.get_yaxis_transform(), "clip_on": False, "va": "center"}
    left, top, step = 0.02 - _TEXT / _PLOT, place - 0.45 + 0.45 / len(lines), 0.9 / len(lines)
    for number, line in enumerate(lines):
        is_source = number == len(lines) - 1
        colour = PALE if pale else GREY if is_source else style.INK
        size = 5.6 if is_source else 7
        axes.text(left, top + number * step, style.label(line), fontsize=size, color=colour, **options)
    pairs = "" if pale else count(int(contrasts["pairs"].max()), "pair")
    words = textwrap.wrap(verdict, max(12, int(style.full_width() * (1 - _TEXT - _PLOT) * 18)))
    step = 0.9 / (len(words) + 1)
    for number, word in enumerate([*words, pairs]):
        colour, size = (LOOKS[verdict]["color"], 6.5) if number < len(words) else (GREY, 5.6)
        axes.text(1.04, place - 0.45 + step * (number + 0.5), word, fontsize=size, color=colour, **options)


def _draw_contrasts(axes: Any, place: int, contrasts: pd.DataFrame) -> None:
    shifts = np.linspace(-0.32, 0.32, len(contrasts) + 2)[1:-1]
    for shift, (_, contrast) in zip(shifts, contrasts.iterrows(), strict=True):
        look = {"markersize": 3.5, "linestyle": "none"} | LOOKS[contrast["verdict"]]
        low, effect, high = (float(np.clip(contrast[name], -LARGEST, LARGEST)) for name in ("low", "effect", "high"))
        if contrast["pairs"] >= MIN_PAIRS:  # with fewer an interval would span the figure
            axes.plot([low, high], [place + shift] * 2, color=look["color"], linewidth=0.9)
        axes.plot([effect], [place + shift], clip_on=False, **look)


def _draw_axes(axes: Any, num_claims: int) -> None:
    axes.set_ylim(num_claims - 0.4, -0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=style.INK, linewidth=0.7)
    for place in range(1, num_claims):
        axes.axhline(
            place - 0.5, xmin=-_TEXT / _PLOT, xmax=(1 - _TEXT) / _PLOT, color="#e8e8e8", linewidth=0.4, clip_on=False
        )
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(-LARGEST * 1.3, LARGEST * 1.3)
    ticks = (-100, -1, 0, 1, 100) if style.full_width() < 5 else (-100, -10, -1, 0, 1, 10, 100)
    axes.set_xticks(ticks, [str(tick).replace("-", "−") for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("difference / its standard deviation\n← opposite      as claimed →", fontsize=7)


def caption(df: pd.DataFrame) -> str:
    """Explain the axis and count the verdicts."""
    verdicts = df.groupby("claim", sort=False)["verdict_of_claim"].first()
    counted = ", ".join(f"{(verdicts == name).sum()} {name}" for name in LOOKS if (verdicts == name).any())
    return (
        f"{count(len(verdicts), 'claim')}: {counted}. A mark is a contrast of two arms: the mean of its paired "
        "differences over their standard deviation, as claimed to the right, beyond 100 at the edge; from four pairs "
        "on with its 95 % interval, before Holm's correction. Filled: reproduced (circle) or contradicted (square); "
        "open: suggested, or inconclusive (diamond). Pale: not run."
    )
