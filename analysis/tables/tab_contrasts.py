"""The contrasts of a study as a table: for a terminal, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from harness.analysis import html
from harness.analysis.answers.contrasts import Contrast, Quantity, as_values
from harness.analysis.answers.results import DIGITS, kind_of
from harness.analysis.statistics.comparison import MIN_PAIRS
from harness.analysis.statistics.intervals import Cell
from harness.analysis.tables.latex import (
    DAGGER,
    MISSING,
    NO_LABELS,
    PREAMBLE,
    Column,
    arm_text,
    comments,
    escape,
    number,
    number_cell,
    number_column,
    table,
)
from harness.text import count
from harness.text import markdown as markdown_text

if TYPE_CHECKING:
    import pandas as pd

TITLE = "Differences between the arms"
COLOURS = {"better": "good", "worse": "bad"}
SMALLEST_P = 0.001
HEADERS = ("arm", "mean", "seeds", "difference", "95 % interval", "p (Holm)", "effect", "verdict")

RULE = (
    "Runs are paired by seed: difference of means over the pairs, with its 95 % t-interval; p of the paired t-test, "
    "corrected by Holm over the contrasts of the metric; effect: Hedges' g of the differences. Better or worse: p "
    f"below 0.05 from {MIN_PAIRS} pairs on, and a difference beyond the noise of the evaluation."
)


def by_baseline(contrasts: Sequence[Contrast]) -> list[list[Contrast]]:
    """Group contrasts by what is compared and with which side; keep the order."""
    groups: dict[tuple[Quantity, tuple[str, ...], str], list[Contrast]] = {}
    for contrast in contrasts:
        groups.setdefault((contrast.quantity, contrast.factors, contrast.other), []).append(contrast)
    return list(groups.values())


def heading(group: Sequence[Contrast]) -> str:
    """Return the title of a table with one quantity and one baseline: both, with the evaluation and the protocol."""
    return f"{_measured(group)}; against {group[0].other} ({_means_of_other(group)})"


def _measured(group: Sequence[Contrast]) -> str:
    quantity = group[0].quantity
    return f"{quantity.label} {kind_of(quantity.metric).arrow}, {quantity.evaluation}: {quantity.protocol}"


def _means_of_other(group: Sequence[Contrast]) -> str:
    return " or ".join(dict.fromkeys(_mean(contrast, contrast.comparison.other) for contrast in group))


def cells(contrast: Contrast) -> tuple[str, ...]:
    """Return a row of the table under `HEADERS`; what is not known is a dash."""
    comparison, digits = contrast.comparison, DIGITS.get(contrast.quantity.metric, 3)
    return (
        contrast.ours,
        _mean(contrast, comparison.ours),
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
    for group in by_baseline(contrasts):
        lines += [f"**{markdown_text(heading(group))}**", "", f"| {' | '.join(HEADERS)} |"]
        lines.append("|---|" + "---:|" * (len(HEADERS) - 2) + "---|")
        lines += [f"| {' | '.join(map(markdown_text, cells(contrast)))} |" for contrast in group]
        lines.append("")
    return "\n".join([*lines, markdown_text(caption(contrasts)), ""])


def latex(contrasts: Sequence[Contrast], comment: str = "", labels: Mapping[str, str] = NO_LABELS) -> str:
    """Return the tables for a paper, in the commands of booktabs and siunitx.

    Args:
        comment: what made them, for the first lines.
        labels: of arms, LaTeX in dollars.
    """
    tables = [_latex_table(group, place, labels) for place, group in enumerate(by_baseline(contrasts), start=1)]
    return comments(f"needs {PREAMBLE}\n{comment}") + "\n".join(tables)


def _latex_table(group: Sequence[Contrast], place: int, labels: Mapping[str, str]) -> str:
    """Return one table; its first row is the side that the others are compared with, where its mean is one number."""
    digits = DIGITS.get(group[0].quantity.metric, 3)
    cells_of = [_latex_cells(contrast, digits) for contrast in group]
    others = dict.fromkeys(contrast.comparison.other for contrast in group)
    means = [Cell(((mean, None),), digits) for mean in others] if len(others) == 1 else []
    columns = [
        Column("l", "arm"),
        number_column("mean", [*means, *(cells["mean"] for cells in cells_of)]),
        Column("r", "seeds"),
        number_column("difference", [cells["difference"] for cells in cells_of], signed=True),
        Column("r", r"95\,\% interval"),
        Column("r", "$p$ (Holm)"),
        number_column("effect", [cells["effect"] for cells in cells_of], signed=True),
        Column("l", "verdict"),
    ]
    rows = [
        [arm_text(group[0].other, labels), number_cell(mean), "", MISSING, "--", "--", MISSING, ""] for mean in means
    ]
    for contrast, cells in zip(group, cells_of, strict=True):
        comparison, verdict = contrast.comparison, contrast.comparison.verdict
        decided = verdict in ("better", "worse")
        rows.append(
            [
                arm_text(contrast.ours, labels),
                number_cell(cells["mean"]),
                str(comparison.n),
                number_cell(cells["difference"], bold=decided, signed=True),
                _latex_interval(comparison.t_low, comparison.t_high, digits),
                _latex_p(comparison.p_holm),
                number_cell(cells["effect"], signed=True),
                f"{verdict}{DAGGER if verdict == 'inconclusive' else ''}",
            ]
        )
    against = f"{arm_text(group[0].other, labels)} ({_means_of_other(group)})"
    rule = f"{caption(group)} Bold: better or worse."
    text = f"{escape(_measured(group))}; against {against}. {escape(rule)}{_undecided(group, labels)}"
    return table(columns, rows, text, f"contrasts-{place}")


def _latex_cells(contrast: Contrast, digits: int) -> dict[str, Cell | None]:
    comparison = contrast.comparison
    effect = comparison.effect_size
    return {
        "mean": Cell(((comparison.ours, None),), digits),
        "difference": Cell(((comparison.difference, None),), digits),
        "effect": Cell(((effect, None),), 2) if math.isfinite(effect) else None,
    }


def _latex_interval(low: float, high: float, digits: int) -> str:
    ends = [rf"\num{{{number(end, None, digits, signed=True)}}}" for end in (low, high)]
    return "--" if math.isnan(low) else f"[{', '.join(ends)}]"


def _latex_p(p: float) -> str:
    return "--" if math.isnan(p) else rf"$<$\num{{{SMALLEST_P}}}" if p < SMALLEST_P else rf"\num{{{p:.3f}}}"


def _undecided(group: Sequence[Contrast], labels: Mapping[str, str]) -> str:
    """Say what each undecided contrast lacks, in LaTeX; empty where there is none."""
    undecided = [contrast for contrast in group if contrast.comparison.verdict == "inconclusive"]
    lacks = [f"{arm_text(contrast.ours, labels)}, {escape(contrast.missing)}" for contrast in undecided]
    return rf" {DAGGER}: neither shown to differ nor to be equivalent ({'; '.join(lacks)})." if lacks else ""


def _mean(contrast: Contrast, value: float) -> str:
    return f"{value:.{DIGITS.get(contrast.quantity.metric, 3)}f}"


def _interval(low: float, high: float, digits: int) -> str:
    return "–" if math.isnan(low) else f"[{low:+.{digits}f}, {high:+.{digits}f}]"


def _number(value: float, digits: int, *, signed: bool = False) -> str:
    if math.isnan(value):
        return "–"
    smallest = 10**-digits
    if not signed and 0 <= value < smallest:
        return f"<{smallest:.{digits}f}"
    return f"{value:{'+' if signed else ''}.{digits}f}"


class _Answer(NamedTuple):
    """What is said of some contrasts, and the one of them that is undecided, where it is."""

    text: str
    undecided: Contrast | None = None


def answers(contrasts: Sequence[Contrast]) -> list[str]:
    """Answer a study's question in a sentence for each quantity: which arm is better, by how much, or what is missing.

    What parts of the spec do, where the study asks for that, comes before what single arms do. Of several arms that are
    better, the one with the largest difference is named.
    """
    quantities: dict[Quantity, dict[tuple[str, ...], list[Contrast]]] = {}
    for contrast in contrasts:
        quantities.setdefault(contrast.quantity, {}).setdefault(contrast.factors, []).append(contrast)
    sentences = (_sentence(quantity, groups) for quantity, groups in quantities.items())
    return [sentence for sentence in sentences if sentence]


def _sentence(quantity: Quantity, groups: Mapping[tuple[str, ...], Sequence[Contrast]]) -> str:
    in_order = sorted(groups.items(), key=lambda group: not group[0])  # arms have no factors
    given = [_answer(group) if len(factors) < 2 else _interaction(group) for factors, group in in_order]
    answered = [answer for answer in given if answer]
    decided = [answer.text for answer in answered if answer.undecided is None]
    ahead = [answer.text for answer in answered if answer.undecided is not None]
    start = f"{quantity.label}, {quantity.evaluation}" if quantity.evaluation != "eval" else quantity.label
    sentences = [f"{start}: {'; '.join(decided)}."] if decided else []
    if ahead:
        hardest = max((answer.undecided for answer in answered if answer.undecided), key=_pairs_to_decide)
        sentences += [
            f"{'Undecided' if decided else f'{start}, undecided'}: {'; '.join(ahead)}.",
            f"{hardest.missing.capitalize()}.",
        ]
    return " ".join(sentences)


def _pairs_to_decide(contrast: Contrast) -> float:
    pairs = contrast.comparison.pairs_to_decide
    return math.inf if pairs is None else pairs


def _interaction(group: Sequence[Contrast]) -> _Answer | None:
    """Say which effects depend on what else is changed; nothing if that is not known of any."""
    decided = [contrast for contrast in group if contrast.comparison.verdict in ("better", "worse")]
    digits = DIGITS.get(group[0].quantity.metric, 3)
    effects = [
        f"{contrast.ours} ({contrast.comparison.ours:+.{digits}f}), is not {contrast.other} "
        f"({contrast.comparison.other:+.{digits}f})"
        for contrast in decided
    ]
    return _Answer(f"the effects depend on each other: {'; '.join(effects)}") if effects else None


def _answer(group: Sequence[Contrast]) -> _Answer:
    verdicts = [contrast.comparison.verdict for contrast in group]
    better = [contrast for contrast, verdict in zip(group, verdicts, strict=True) if verdict == "better"]
    others = {contrast.other for contrast in group}
    if better:
        best = max(better, key=lambda contrast: abs(contrast.comparison.difference))
        more = f"; {count(len(better) - 1, 'more arm')} better than it" if len(better) > 1 and len(others) == 1 else ""
        return _Answer(f"{_difference(best, 'better')}{more}")
    if verdicts.count("worse") == len(group):
        nearest = min(group, key=lambda contrast: abs(contrast.comparison.difference))
        return _Answer(
            f"{' and '.join(others)} is better than all others; the nearest: {_difference(nearest, 'worse')}"
        )
    undecided = [contrast for contrast, verdict in zip(group, verdicts, strict=True) if verdict == "inconclusive"]
    if not undecided:
        return _Answer(f"no arm is better than {' or '.join(others)}")
    likely = max(undecided, key=_gain)
    return _Answer(_difference(likely, "ahead" if _gain(likely) > 0 else "behind"), likely)


def _gain(contrast: Contrast) -> float:
    """Return by how much the first side is ahead, positive if it is."""
    sign = 1 if contrast.quantity.higher_is_better else -1
    return sign * contrast.comparison.difference


def _difference(contrast: Contrast, word: str) -> str:
    """Return `cosine is better than linear by 0.389 (0.300 to 0.478)`, without an interval where there is none."""
    comparison, digits = contrast.comparison, DIGITS.get(contrast.quantity.metric, 3)
    ends = sorted((abs(comparison.t_low), abs(comparison.t_high)))
    one_sided = comparison.t_low * comparison.t_high > 0
    interval = f" ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})" if one_sided else ""
    word = {"better": "better than", "worse": "worse than", "ahead": "ahead of"}.get(word, word)
    return f"{contrast.ours} is {word} {contrast.other} by {abs(comparison.difference):.{digits}f}{interval}"


def data(contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """Return one row per contrast, with all its numbers."""
    import pandas as pd

    rows = [as_values(contrast) for contrast in contrasts]
    lists = ("factors", "seeds", "seeds_left_out")
    return pd.DataFrame([row | {name: " ".join(map(str, row[name])) for name in lists} for row in rows])


def as_html(contrasts: Sequence[Contrast]) -> Markup:
    """Return the tables as HTML, styled by the page."""
    tables = [
        {"heading": heading(group), "rows": [(cells(contrast), contrast.comparison.verdict) for contrast in group]}
        for group in by_baseline(contrasts)
    ]
    return html.render("contrasts.html", headers=HEADERS, tables=tables, colours=COLOURS)


def caption(contrasts: Sequence[Contrast]) -> str:
    """Return the rule, and what the tables leave out."""
    return " ".join([*(f"{note[0].upper()}{note[1:]}." for note in notes(contrasts)), RULE])


def rows(contrasts: Sequence[Contrast]) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Iterate over the tables: a heading and rows under `HEADERS`."""
    for group in by_baseline(contrasts):
        yield heading(group), [cells(contrast) for contrast in group]
