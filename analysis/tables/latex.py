"""Tables for papers: text that LaTeX reads as text, and tables in the commands of booktabs and siunitx."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from harness.analysis.statistics.intervals import Cell
from harness.text import printable

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
    "†": r"$^{\dagger}$",
    "−": "$-$",
    "ₜ": "$_t$",
    "×": r"$\times$",
    "≤": r"$\le$",
    "β̃": r"$\tilde\beta$",
    "β": r"$\beta$",
    "σ": r"$\sigma$",
    "<": "$<$",
    ">": "$>$",
    "|": r"$\vert$",
    "[": "{[}",  # at the start of a row it would be an option of the line break before it
}
_MINUS = r"(?<!\w)-(?=\d)"
_SPECIAL = re.compile("|".join([*map(re.escape, sorted(_LATEX, key=len, reverse=True)), _MINUS]))
_FORMULAS = re.compile(r"(\$[^$]*\$)")
_COMMAND = re.compile(r"\\([a-zA-Z]+|.)")
_PLAIN_FORMULA = re.compile(r"\$[\w \\^{}=+*/()\[\],.|<>!:;'-]*\$", re.ASCII)
_LAST_LETTER = "\u017f"  # of what pdfTeX sets without further packages
_HARMLESS = re.compile(
    "alpha|beta|gamma|delta|epsilon|varepsilon|eta|theta|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|phi|chi|psi|omega|"
    "Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega|mathrm|mathbf|mathit|mathcal|mathbb|text|bar|hat|tilde|vec|dot|sqrt|"
    "frac|times|cdot|pm|le|ge|leq|geq|ne|approx|infty|to|in|sim|mid|downarrow|uparrow|rightarrow|ell|log|exp|min|max|"
    "sum|prod|int|left|right|[,;:! ]"
)

NO_LABELS: Mapping[str, str] = MappingProxyType({})
MISSING = "{--}"
DAGGER = r"$^{\dagger}$"
PREAMBLE = r"\usepackage{booktabs, graphicx, siunitx}, siunitx from version 3 on"
_SETUP = (
    r"\sisetup{separate-uncertainty=true, detect-weight=true, retain-explicit-plus=true, table-align-text-after=false}"
)


def escape(text: str, *, trusted: bool = False) -> str:
    """Escape text for LaTeX; a formula between dollars, as in metrics' labels, stays if it only has harmless commands.

    Args:
        trusted: leave all formulas as they are: for what a person wrote into the study's file, not for records.
    """
    return "".join(
        part if index % 2 and (trusted or _is_harmless(part)) else _escaped(part)
        for index, part in enumerate(_FORMULAS.split(text))
    )


def _escaped(text: str) -> str:
    known = _SPECIAL.sub(lambda match: _LATEX.get(match.group(), "$-$"), printable(text))
    return "".join(c if c <= _LAST_LETTER else f"{{[}}U+{ord(c):04X}]" for c in known)


def _is_harmless(formula: str) -> bool:
    depths = list(itertools.accumulate((c == "{") - (c == "}") for c in formula))
    return (
        _PLAIN_FORMULA.fullmatch(formula) is not None
        and "^^" not in formula
        and min(depths) == depths[-1] == 0
        and all(map(_HARMLESS.fullmatch, _COMMAND.findall(formula)))
    )


def arm_text(arm: str, labels: Mapping[str, str]) -> str:
    """Return an arm's label in LaTeX: what the study's file says, where it says something."""
    return escape(labels[arm], trusted=True) if arm in labels else escape(arm)


class Column(NamedTuple):
    """A column of a table: its alignment, such as `l`, and its head in LaTeX."""

    alignment: str
    head: str


def number_column(title: str, cells: Iterable[Cell | None], *, signed: bool = False, mark: str = "") -> Column:
    """Return a column of siunitx that is as wide as its numbers; the head's part in brackets is on a second line.

    Args:
        mark: LaTeX that may stand after a number.
    """
    alone = [cell for cell in cells if cell and _is_one_number(cell)]
    numbers = [(value, half) for cell in alone for value, half in cell.values]
    digits = max((cell.digits for cell in alone), default=0)
    before = max((len(f"{abs(value):.0f}") for value, _ in numbers), default=1)
    sign = "+" if signed else "-" if any(value < 0 for value, _ in numbers) else ""
    halves = [len(f"{half:.{digits}f}".replace(".", "")) for _, half in numbers if half is not None]
    uncertainty = f"({max(halves)})" if halves else ""
    after = f", table-space-text-post={{{mark}}}" if mark else ""
    return Column(f"S[table-format={sign}{before}.{digits}{uncertainty}{after}]", f"{{{_head(title)}}}")


def _head(title: str) -> str:
    name, bracket, rest = title.partition(" (")
    if not bracket:
        return escape(title)
    inside, _, arrow = rest.rpartition(")")
    return rf"\shortstack[r]{{{escape(name + arrow)}\\{escape(f'({inside})')}}}"


def number_cell(cell: Cell | None, *, bold: bool = False, mark: str = "", signed: bool = False) -> str:
    """Return a cell for a column of siunitx; what is no single number goes across the column; a dash for none.

    Args:
        mark: LaTeX, after the number.
    """
    if cell is None or not (cell.values or cell.note):
        return MISSING
    weight = r"\bfseries " if bold else ""
    if _is_one_number(cell):
        [(value, half)] = cell.values
        return f"{weight}{number(value, half, cell.digits, signed=signed)}{f'{{{mark}}}' if mark else ''}"
    text = " / ".join(_printed(value, half, cell.digits, signed) for value, half in cell.values)
    text = ", ".join(filter(None, [text, escape(cell.note)]))
    return f"{{{weight}{text}{f' ({escape(cell.source)})' if cell.source else ''}{mark}}}"


def _printed(value: float, half: float | None, digits: int, signed: bool) -> str:
    """Return a number that is printed outside of a column of numbers."""
    text = number(value, None, digits, signed=signed)
    if not math.isfinite(value):
        return text
    return rf"\num{{{text}}}" + ("" if half is None else rf"\,$\pm$\,\num{{{half:.{digits}f}}}")


def _is_one_number(cell: Cell) -> bool:
    """Return whether a cell is one number that siunitx aligns; it would leave an uncertainty of zero out."""
    if len(cell.values) != 1 or cell.note or cell.source:
        return False
    [(value, half)] = cell.values
    return math.isfinite(value) and (half is None or float(f"{half:.{cell.digits}f}") > 0)


def number(value: float, half: float | None, digits: int, *, signed: bool = False) -> str:
    """Return a number for siunitx, `-3.17` or `3.17 \\pm 0.02`; `nan` and `inf`, which it cannot read, as they are."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:{'+' if signed else ''}.{digits}f}" + ("" if half is None else rf" \pm {half:.{digits}f}")


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], caption: str, name: str) -> str:
    """Return a floating table, made smaller where it is wider than the text.

    Args:
        rows, caption: LaTeX already.
        name: of the label, after `tab:`.
    """
    lines = [r"\begin{table}", r"\centering", _SETUP]
    lines += [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"]
    lines += [rf"\begin{{tabular}}{{{''.join(column.alignment for column in columns)}}}", r"\toprule"]
    lines += [" & ".join(column.head for column in columns) + r" \\", r"\midrule"]
    lines += [" & ".join(row) + r" \\" for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}}", rf"\caption{{{caption}}}", rf"\label{{tab:{name}}}"]
    return "\n".join([*lines, r"\end{table}", ""])


def comments(text: str) -> str:
    """Return lines as comments, each with a line break."""
    return "".join(f"% {line}\n" for line in text.splitlines())
