r"""A study's numbers as macros of TeX, so that a sentence of a paper has the numbers of its tables.

    \newcommand{\IddpmDigitsCosineHybridNllMean}{\num{2.072}} % cosine-hybrid, nll (bits/dim), eval: mean of 2 seeds

A name is the study, the arm, the evaluation if it is not `eval`, the metric and what it is of it, in letters alone:
digits are written out. Where two names would be the same, the later one in the study's order ends in Two, Three, ...;
so an arm that is added at the end of a study changes no macro.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from harness.analysis.answers.contrasts import Contrast
from harness.analysis.answers.results import DIGITS, TRAINED, kind_of
from harness.analysis.tables.latex import comments
from harness.text import printable

_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
_SIGNS = {"β": "Beta", "λ": "Lambda", "=": "Is", "+": "Plus", "−": "Minus", "@": "At"}
_POINT, _MINUS = re.compile(r"(?<=\d)\.(?=\d)"), re.compile(r"(?:(?<=\de)|(?<![A-Za-z0-9]))-(?=\d)")  # of numbers
SMALLEST_P = 0.001


class Macro(NamedTuple):
    """One macro: the words of its name, its value in TeX, and what it is."""

    words: tuple[str, ...]
    value: str
    meaning: str


def macros(study: str, frame: pd.DataFrame, contrasts: Sequence[Contrast], comment: str = "") -> str:
    """Return the file of macros.

    Args:
        frame: of `results.data`.
        comment: what made it, for the first lines.
    """
    taken: set[str] = set()
    lines = []
    for macro in [*_of_results(frame), *_of_contrasts(contrasts)]:
        name = _free("".join(map(letters, (study, *macro.words))), taken)
        taken.add(name)
        lines.append(rf"\newcommand{{\{name}}}{{{macro.value}}} % {printable(macro.meaning)}")
    return comments(f"needs \\usepackage{{siunitx}}\n{comment}") + "\n".join([*lines, ""])


def letters(text: str) -> str:
    """Return a text as a part of a macro's name: words begin with a capital, digits are written out."""
    text = _MINUS.sub(" Minus ", _POINT.sub(" Point ", text))
    signs = _SIGNS | {str(digit): word for digit, word in enumerate(_DIGITS)}
    spelt = "".join(f" {signs[c]} " if c in signs else c for c in text)
    return "".join(word[0].upper() + word[1:] for word in re.findall("[A-Za-z]+", spelt))


def _free(name: str, taken: set[str]) -> str:
    number = 1
    candidate = name
    while candidate in taken:
        number += 1
        candidate = name + letters(str(number))
    return candidate


def _of_results(frame: pd.DataFrame) -> Iterator[Macro]:
    """Iterate over the macros of each trained arm's metrics."""
    trained = frame[frame["model"] == TRAINED]
    for _, cell in trained.iterrows():
        metric, digits = str(cell["metric"]), DIGITS.get(cell["metric"], 3)
        whose = f"{cell['arm']}, {_measured(metric, cell['extractor'], cell['evaluation'])}"
        words = (cell["arm"], *_evaluation(cell["evaluation"]), metric)
        seeds = f"{cell['n']} seed{'s' if cell['n'] != 1 else ''}"
        yield Macro((*words, "n"), str(cell["n"]), f"{whose}: number of seeds")
        if not cell["n"]:
            continue
        yield Macro((*words, "mean"), _number(cell["mean"], digits), f"{whose}: mean of {seeds}")
        if cell["kind"] == "interval":
            half = cell["high"] - cell["mean"]
            yield Macro((*words, "half"), _number(half, digits), f"{whose}: half of the 95 % interval, {seeds}")
            for end in ("low", "high"):
                yield Macro((*words, end), _number(cell[end], digits), f"{whose}: {end} end of the 95 % interval")


def _of_contrasts(contrasts: Sequence[Contrast]) -> Iterator[Macro]:
    """Iterate over the macros of each difference between two sides."""
    for contrast in contrasts:
        quantity, comparison = contrast.quantity, contrast.comparison
        digits = DIGITS.get(quantity.metric, 3)
        words = (contrast.ours, "vs", contrast.other, *_evaluation(quantity.evaluation), quantity.metric)
        whose = f"{contrast.ours} - {contrast.other}, {quantity.label}, {quantity.evaluation}"
        yield Macro((*words, "difference"), _number(comparison.difference, digits), f"{whose}: mean paired difference")
        yield Macro((*words, "pairs"), str(comparison.n), f"{whose}: number of pairs")
        if not math.isnan(comparison.t_low):
            for end, value in (("low", comparison.t_low), ("high", comparison.t_high)):
                yield Macro((*words, end), _number(value, digits), f"{whose}: {end} end of the 95 % t-interval")
        if not math.isnan(comparison.p_holm):
            meaning = f"{whose}: p of the paired t-test after Holm's correction, with its sign of relation"
            yield Macro((*words, "p"), _relation(comparison.p_holm), meaning)
        if math.isfinite(comparison.effect_size):
            yield Macro(
                (*words, "effect"), _number(comparison.effect_size, 2), f"{whose}: Hedges' g of the differences"
            )
        yield Macro((*words, "verdict"), comparison.verdict, f"{whose}: verdict")


def _evaluation(name: str) -> tuple[str, ...]:
    return () if name == "eval" else (name,)


def _measured(metric: str, extractor: str, evaluation: str) -> str:
    kind = kind_of(metric)
    return f"{kind.axis}{f' ({extractor})' if extractor else ''}, {evaluation}"


def _number(value: float, digits: int) -> str:
    return rf"\num{{{value:.{digits}f}}}" if math.isfinite(value) else str(value)


def _relation(p: float) -> str:
    return rf"\ensuremath{{<\num{{{SMALLEST_P}}}}}" if p < SMALLEST_P else rf"\ensuremath{{=\num{{{p:.3f}}}}}"
