"""Tables for papers: text that LaTeX reads as text, and tables in the commands of booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

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
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\le$",
    "β̃": r"$\tilde\beta$",
    "β": r"$\beta$",
    "σ": r"$\sigma$",
    "<": "$<$",
    ">": "$>$",
    "|": r"$\vert$",
}
_MINUS = r"(?<!\w)-(?=\d)"
_SPECIAL = re.compile("|".join([*map(re.escape, sorted(_LATEX, key=len, reverse=True)), _MINUS]))
_MATHS = re.compile(r"(\$[^$]*\$)")


def escape(text: str) -> str:
    """Escape text for LaTeX; what stands between dollars, as in metrics' labels, is mathematics and stays."""
    return "".join(
        part if index % 2 else _SPECIAL.sub(lambda match: _LATEX.get(match.group(), "$-$"), part)
        for index, part in enumerate(_MATHS.split(text))
    )


def table(columns: str, headers: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Return a floating table.

    Args:
        columns: their alignment, such as `lrr`.
        headers, rows: LaTeX already.
        caption: text.
    """
    lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [" & ".join(headers) + r" \\", r"\midrule", *(" & ".join(row) + r" \\" for row in rows)]
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{escape(caption)}}}", r"\end{table}", ""]
    return "\n".join(lines)


def comments(text: str) -> str:
    """Return lines as comments, each with a line break."""
    return "".join(f"% {line}\n" for line in text.splitlines())
