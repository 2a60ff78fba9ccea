"""The contrasts of a study as a table: for a terminal, Markdown and LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from harness.analysis.comparison import MIN_PAIRS
from harness.analysis.contrasts import Contrast, Quantity
from harness.analysis.tab_results import DIGITS, kind_of
from harness.text import count
from harness.text import markdown as markdown_text

HEADERS = (
    "arm",
    "mean",
    "against",
    "its mean",
    "seeds",
    "difference",
    "95 % interval",
    "p (Holm)",
    "effect",
    "verdict",
)

RULE = (
    "Runs are paired by seed: difference of means over the pairs, with its 95 % t-interval; p of the paired t-test, "
    "corrected by Holm over the contrasts of the metric; effect: Hedges' g of the differences. Better or worse: p "
    f"below 0.05 from {MIN_PAIRS} pairs on, and a difference beyond the noise of the evaluation."
)


def by_quantity(contrasts: Sequence[Contrast]) -> dict[Quantity, list[Contrast]]:
    """Group contrasts by what is compared; keep the order."""
    groups: dict[Quantity, list[Contrast]] = {}
    for contrast in contrasts:
        groups.setdefault(contrast.quantity, []).append(contrast)
    return groups


def heading(quantity: Quantity) -> str:
    """Return the title of a table of one quantity: the metric, its direction, the evaluation and the protocol."""
    return f"{quantity.label} {kind_of(quantity.metric).arrow} · {quantity.evaluation}: {quantity.protocol}"


def cells(contrast: Contrast) -> tuple[str, ...]:
    """Return a row of the table under `HEADERS`; what is not known is a dash."""
    comparison, digits = contrast.comparison, DIGITS.get(contrast.quantity.metric, 3)
    return (
        contrast.ours,
        f"{comparison.ours:.{digits}f}",
        contrast.other,
        f"{comparison.other:.{digits}f}",
        str(comparison.n),
        f"{comparison.difference:+.{digits}f}",
        _interval(comparison.t_low, comparison.t_high, digits),
        _number(comparison.p_holm, 2),
        _number(comparison.effect_size, 2, signed=True),
        contrast.verdict,
    )


def notes(contrasts: Sequence[Contrast]) -> list[str]:
    """Say what the table leaves out, and what its tests cannot show."""
    lines = [
        f"{contrast.ours} against {contrast.other}, {contrast.quantity.label}: left out "
        f"{count(len(contrast.left_out), 'seed')} without a finite value on both sides "
        f"({', '.join(map(str, contrast.left_out))})"
        for contrast in contrasts
        if contrast.left_out
    ]
    fewest = min((contrast.comparison.n for contrast in contrasts), default=MIN_PAIRS)
    if fewest < MIN_PAIRS:
        lines.append(f"below {MIN_PAIRS} seeds nothing is called better or worse")
    return lines


def markdown(contrasts: Sequence[Contrast]) -> str:
    """Return the tables as Markdown, one for each quantity."""
    lines = []
    for quantity, group in by_quantity(contrasts).items():
        lines += [f"**{markdown_text(heading(quantity))}**", "", f"| {' | '.join(HEADERS)} |"]
        lines.append("|---|---:|---|" + "---:|" * (len(HEADERS) - 4) + "---|")
        lines += [f"| {' | '.join(map(markdown_text, cells(contrast)))} |" for contrast in group]
        lines.append("")
    return "\n".join([*lines, *(f"{note}." for note in notes(contrasts)), RULE, ""])


def latex(contrasts: Sequence[Contrast], comment: str = "") -> str:
    """Return the tables for a paper, in the commands of booktabs.

    Args:
        comment: what made them, for the first line.
    """
    lines = [f"% {line}" for line in comment.splitlines()]
    for quantity, group in by_quantity(contrasts).items():
        lines += [r"\begin{table}", r"\centering", r"\begin{tabular}{lrlrrrlrrl}", r"\toprule"]
        lines += [" & ".join(map(escape, HEADERS)) + r" \\", r"\midrule"]
        lines += [" & ".join(map(escape, cells(contrast))) + r" \\" for contrast in group]
        caption = escape(" ".join([f"{heading(quantity)}.", *(f"{note}." for note in notes(group)), RULE]))
        lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", r"\end{table}", ""]
    return "\n".join(lines)


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "–": "--",
    "·": r"$\cdot$",
    "²": r"$^2$",
    "∞": r"$\infty$",
    "β̃": r"$\tilde\beta$",
    "β": r"$\beta$",
    "σ": r"$\sigma$",
    "<": "$<$",
    ">": "$>$",
    "|": r"$\vert$",
}
_SPECIAL = re.compile("|".join(map(re.escape, sorted(_LATEX, key=len, reverse=True))))
_MATHS = re.compile(r"(\$[^$]*\$)")


def escape(text: str) -> str:
    """Escape text for LaTeX; what stands between dollars, as in metrics' labels, is mathematics and stays."""
    return "".join(
        part if index % 2 else _SPECIAL.sub(lambda match: _LATEX[match.group()], part)
        for index, part in enumerate(_MATHS.split(text))
    )


def _interval(low: float, high: float, digits: int) -> str:
    return "–" if math.isnan(low) else f"[{low:+.{digits}f}, {high:+.{digits}f}]"


def _number(value: float, digits: int, *, signed: bool = False) -> str:
    if math.isnan(value):
        return "–"
    smallest = 10**-digits
    if not signed and 0 <= value < smallest:
        return f"<{smallest:.{digits}f}"
    return f"{value:{'+' if signed else ''}.{digits}f}"


def rows(contrasts: Sequence[Contrast]) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Iterate over the tables: a heading and rows under `HEADERS`."""
    for quantity, group in by_quantity(contrasts).items():
        yield heading(quantity), [cells(contrast) for contrast in group]
