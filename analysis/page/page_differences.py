"""The paired differences of a study for the page: against the study's own baseline, and against every other arm.

All are computed here, each baseline with its own Holm correction; the page's script only switches between them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from harness.analysis.answers.contrasts import Contrast, Quantity, contrasts
from harness.analysis.answers.results import TRAINED
from harness.analysis.runs import RunRecord
from harness.analysis.tables import tab_contrasts
from harness.spec.presentation import Compare
from harness.text import count

MAX_ROWS = 400
"""Most differences on the page; of a study with many arms only the first baselines can be chosen."""
MAX_NAMED = 3
"""Most undecided differences that are named one by one."""


@dataclass
class Differences:
    """Paired differences in the cells of the results table.

    Attributes:
        baseline: what the page shows before another is chosen; empty where the study names pairs.
        own: the contrasts against it.
        others: against each other arm that can be chosen.
        quantities: what is compared, in order: a cell has the number of its quantity.
        for_the_script: the tables and the cells of these, as plain values: computed at once, in whose process it is.
    """

    baseline: str = ""
    own: list[Contrast] = field(default_factory=list)
    others: dict[str, list[Contrast]] = field(default_factory=dict)
    quantities: list[Quantity] = field(init=False)
    for_the_script: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        every = [*self.own, *(contrast for contrasts in self.others.values() for contrast in contrasts)]
        self.quantities = list(dict.fromkeys(contrast.quantity for contrast in every))
        self._below = [
            {arm: (text, verdict) for arm, text, verdict in _cells(self.own, quantity, self.baseline)}
            for quantity in self.quantities
        ]
        self.for_the_script = [
            {
                "baseline": baseline,
                "tables": [
                    {"heading": tab_contrasts.heading(group), "rows": [_row(contrast) for contrast in group]}
                    for group in tab_contrasts.by_baseline(compared)
                ],
                "cells": [
                    [number, *cell]
                    for number, quantity in enumerate(self.quantities)
                    for cell in _cells(compared, quantity, baseline)
                ],
            }
            for baseline, compared in self.others.items()
        ]

    def cell(self, row: dict[str, Any], metric: str) -> dict[str, Any] | None:
        """Return what stands below a value of the results table; None if nothing is compared with it.

        Args:
            row: of `tab_results.tables`.
        """
        if row["model"] != TRAINED:
            return None
        for number, quantity in enumerate(self.quantities):
            place = (quantity.metric, quantity.evaluation) == (metric, row["evaluation"])
            if place and f"{row['protocols'].get(metric, '')} ".startswith(f"{quantity.protocol_id} "):
                text, verdict = self._below[number].get(row["arm"], ("", ""))
                return {"quantity": number, "text": text, "verdict": verdict}
        return None


def differences(
    runs: Sequence[RunRecord], results: pd.DataFrame, compare: Compare, compared: Sequence[Contrast]
) -> Differences:
    """Compare the measured arms of a study with each other, beside its own baseline.

    Args:
        results: the study's results table, which has the arms that were measured.
        compared: what the study compares.
    """
    arms = list(results.loc[results["model"] == TRAINED, "arm"].unique())
    if len(arms) < 2:
        return Differences()
    first = compare.baseline if compare.baseline in arms else arms[0]
    baseline = "" if compare.pairs or first is None else first
    own = [contrast for contrast in compared if not contrast.factors and contrast.other == baseline]
    rows, others = 0, {}
    for arm in arms:
        if arm == baseline:
            continue
        against = contrasts(runs, baseline=arm)
        rows += len(against)
        if rows > MAX_ROWS:
            break
        others[arm] = against
    return Differences(baseline, own, others)


def undecided(deciding: Sequence[Contrast]) -> list[str]:
    """Say which contrasts have no verdict, and what they lack; where they are many, how many seeds decide how many."""
    left = [contrast for contrast in deciding if contrast.comparison.verdict == "inconclusive"]
    if len(left) <= MAX_NAMED:
        return [
            f"{contrast.ours} against {contrast.other} in {_where(contrast)}: {contrast.missing}" for contrast in left
        ]
    more = Counter(
        contrast.comparison.pairs_to_decide - contrast.comparison.n
        for contrast in left
        if contrast.comparison.pairs_to_decide is not None
    )
    decided = 0
    steps = []
    for seeds in sorted(more):
        decided += more[seeds]
        steps.append(f"{count(seeds, 'more seed')} would decide {'all' if decided == len(left) else decided}")
    ends = steps if len(steps) < 3 else [steps[0], steps[-1]]
    return [f"{len(left)} of {len(deciding)} differences: {'; '.join(ends) or 'no number of seeds is in sight'}"]


def _where(contrast: Contrast) -> str:
    quantity = contrast.quantity
    return quantity.label if quantity.evaluation == "eval" else f"{quantity.label}, {quantity.evaluation}"


def _row(contrast: Contrast) -> dict[str, Any]:
    return {"cells": list(tab_contrasts.cells(contrast)), "verdict": contrast.comparison.verdict}


def _cells(compared: Sequence[Contrast], quantity: Quantity, baseline: str) -> list[tuple[str, str, str]]:
    """Return the arm, the text and the verdict for each cell of a quantity's column."""
    of_quantity = [contrast for contrast in compared if contrast.quantity == quantity]
    if not of_quantity:
        return []
    return [(baseline, "baseline", ""), *((contrast.ours, *_short(contrast)) for contrast in of_quantity)]


def _short(contrast: Contrast) -> tuple[str, str]:
    """Return `−0.389 better` and the verdict."""
    difference, verdict = tab_contrasts.cells(contrast)[3], contrast.comparison.verdict
    return f"{difference} {'undecided' if verdict == 'inconclusive' else verdict}", verdict
