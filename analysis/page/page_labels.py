"""A study's labels of its arms on the page, which has no formulas: as text, in place of the names in all that it shows.

The files of data keep the names: they are what `figures.arms`, `compare` and commands take.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from html.entities import html5

import pandas as pd

from harness.analysis.answers.contrasts import Contrast
from harness.analysis.page.page import Section
from harness.analysis.runs import by_arm
from harness.spec.presentation import Compare

_COMMANDS = {"infty": "∞", "to": "→", "cdot": "·", "epsilon": "ε", "varepsilon": "ε", "phi": "φ", "varphi": "φ"}
_SPACES = re.compile(r"\\[,;:! ]|~")
_ACCENTS = {"tilde": "\u0303", "hat": "\u0302", "bar": "\u0304", "vec": "\u20d7", "dot": "\u0307"}
_ACCENT = re.compile(rf"\\({'|'.join(_ACCENTS)})\s*(?:\{{(\\?\w+)\}}|(\\[a-zA-Z]+|\w))")
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_ESCAPED = re.compile(r"\\([^a-zA-Z])")


def labelled(section: Section) -> Section:
    """Return a section of the page with the study's labels as the arms' names."""
    names = shown_names(section)
    if not names:
        return section
    compare = _compare(section.presentation.compare, names)
    return replace(
        section,
        runs=[replace(run, arm=names.get(run.arm, run.arm)) for run in section.runs],
        presentation=section.presentation.model_copy(update={"compare": compare}),
        results=None if section.results is None else with_names(section.results, names),
        contrasts=contrasts_with_names(section.contrasts, names),
        mixture=None if section.mixture is None else with_names(section.mixture, names, "row"),
    )


def shown_names(section: Section) -> dict[str, str]:
    """Return what arms with a label are called on the page; two of one name keep their own beside it."""
    arms, labels = list(by_arm(section.runs)), section.presentation.figures.labels
    texts = {arm: as_text(labels[arm]) if arm in labels else arm for arm in arms}
    number = Counter(texts.values())
    return {arm: text if number[text] == 1 else f"{text} ({arm})" for arm, text in texts.items() if arm in labels}


def as_text(label: str) -> str:
    r"""Return a label without the markup of its formulas: `cosine, $L_\mathrm{hybrid}$` as `cosine, L_hybrid`."""
    parts = re.split(r"(?<!\\)\$", label)
    return "".join(
        _formula(part) if place % 2 else part.replace(r"\$", "$") for place, part in enumerate(parts)
    ).strip()


def _formula(text: str) -> str:
    text = _SPACES.sub(" ", text)
    text = _ACCENT.sub(lambda match: _symbol((match[2] or match[3]).lstrip("\\")) + _ACCENTS[match[1]], text)
    text = re.sub(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)
    text = _COMMAND.sub(lambda match: _symbol(match[1]), text)
    return unicodedata.normalize("NFC", _ESCAPED.sub(r"\1", text.replace("{", "").replace("}", "")))


def _symbol(command: str) -> str:
    """Return the character that a command of TeX stands for; nothing for one that says how letters look."""
    if len(command) == 1:
        return command
    return _COMMANDS.get(command) or html5.get(f"{command};", "")


def _compare(compare: Compare, names: Mapping[str, str]) -> Compare:
    changes: dict[str, object] = {}
    if compare.baseline is not None:
        changes["baseline"] = names.get(compare.baseline, compare.baseline)
    if compare.pairs and compare.pairs != "all":
        changes["pairs"] = tuple(tuple(names.get(arm, arm) for arm in pair) for pair in compare.pairs)
    return compare.model_copy(update=changes)


def contrasts_with_names(contrasts: Iterable[Contrast], names: Mapping[str, str]) -> list[Contrast]:
    """Return contrasts between arms under other names; the sides of factors are values of the spec, and stay."""
    return [
        contrast
        if contrast.factors
        else replace(
            contrast,
            ours=names.get(contrast.ours, contrast.ours),
            other=names.get(contrast.other, contrast.other),
        )
        for contrast in contrasts
    ]


def with_names(frame: pd.DataFrame, names: Mapping[str, str], column: str = "arm") -> pd.DataFrame:
    """Return a table's data under other names of arms, also where more follows, as in `cosine, T = 4`."""

    def shown(text: str) -> str:
        arm = text.partition(", T = ")[0]
        return names[arm] + text.removeprefix(arm) if arm in names else text

    return frame.assign(**{column: frame[column].map(shown)})
