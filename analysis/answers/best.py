"""Which of several sides is the best in a metric, and which cannot be told from it: what tables print in bold.

The side with the best mean is compared in pairs with each of the others, and the p-values are corrected together, as
for all contrasts. Bold is what is not worse by that. Where there are too few seeds for the comparison, only the best
mean is bold, and everything else is marked as undecided.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Literal, TypeVar

import numpy as np

from harness.analysis.statistics.comparison import MIN_PAIRS, compare, correct

Side = TypeVar("Side", bound=Hashable)
AgainstBest = Literal["best", "equivalent", "inconclusive", "untested", "worse", ""]
BOLD: tuple[AgainstBest, ...] = ("best", "equivalent", "inconclusive")
UNDECIDED: tuple[AgainstBest, ...] = ("inconclusive", "untested")

LEGEND = (
    f"Bold: the best mean, and from {MIN_PAIRS} seeds on each that is not worse than it by the paired comparison "
    "(t-test of the differences within seeds, Holm's correction over the column, p below 0.05). A dagger (†): neither "
    "shown to be worse than the best nor to be equivalent."
)
DAGGER = "†"


def against_best(
    sides: Mapping[Side, Mapping[int, tuple[float, float]]], *, higher_is_better: bool
) -> dict[Side, AgainstBest]:
    """Compare each side with the one of the best mean.

    Args:
        sides: value and standard error of the evaluation by seed; values may be NaN.

    Returns:
        `untested` below `MIN_PAIRS` common seeds; empty for a side without a finite value, and where there is only one
        side.
    """
    finite = {
        side: {seed: pair for seed, pair in values.items() if math.isfinite(pair[0])} for side, values in sides.items()
    }
    means = {side: float(np.mean([value for value, _ in values.values()])) for side, values in finite.items() if values}
    result: dict[Side, AgainstBest] = dict.fromkeys(sides, "")
    if len(means) < 2:
        return result
    best = (max if higher_is_better else min)(means, key=lambda side: means[side])
    result |= dict.fromkeys(means, "untested")
    pairs = {side: [seed for seed in finite[side] if seed in finite[best]] for side in means if side != best}
    compared = []
    for side, seeds in pairs.items():
        if seeds:
            both = np.array([[finite[side][seed], finite[best][seed]] for seed in seeds])  # [n, 2, value and error]
            floor = math.sqrt(2 * float(np.mean(both[:, :, 1] ** 2)))
            ours, other = both[:, 0, 0], both[:, 1, 0]
            compared.append((side, compare(ours, other, floor=floor, higher_is_better=higher_is_better)))
    corrected = correct([comparison for _, comparison in compared])
    for (side, _), comparison in zip(compared, corrected, strict=True):
        # Where pairs leave seeds out, they may favour the other side: then its mean is no better for sure.
        verdict: AgainstBest = "inconclusive" if comparison.verdict == "better" else comparison.verdict
        result[side] = verdict if comparison.n >= MIN_PAIRS else "untested"
    result[best] = "best"
    return result
