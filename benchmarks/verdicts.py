"""Error rates of the verdicts on planted effects: `python -m benchmarks.verdicts`, about a minute.

Simulates studies of two arms whose replicates share most of their variance, as runs of one seed do, and prints the
tables of docs/statistics.md.
"""

from __future__ import annotations

import numpy as np

from harness.analysis.statistics.comparison import Comparison, compare, correct

STUDIES = 1000
SHARED, OWN = 3.0, 1.0  # standard deviations: between seeds, and of the differences within them


def study(draw: np.random.Generator, num_seeds: int, effect: float) -> Comparison:
    """Compare two arms whose true difference is `effect`, in standard deviations of the differences."""
    seeds = SHARED * draw.standard_normal(num_seeds)
    arms = seeds + OWN / np.sqrt(2) * draw.standard_normal((2, num_seeds))
    return compare(arms[0] + effect * OWN, arms[1])


def errors_and_coverage() -> None:
    print("| seeds | verdicts without effect | t-interval covers | BCa covers | effect 1 seen | effect 1.5 seen |")
    print("|---|---|---|---|---|---|")
    for num_seeds in (3, 4, 5, 8):
        draw = np.random.default_rng(num_seeds)
        null = [study(draw, num_seeds, 0.0) for _ in range(STUDIES)]
        wrong = np.mean([comparison.verdict in ("better", "worse") for comparison in null])
        t = np.mean([comparison.t_low <= 0 <= comparison.t_high for comparison in null])
        bca = np.mean([low <= 0 <= high for low, high in (comparison.bca for comparison in null)])
        seen = [
            np.mean([study(draw, num_seeds, effect).verdict == "worse" for _ in range(STUDIES)])
            for effect in (1.0, 1.5)
        ]
        bca_text = f"{bca:.1%}" if num_seeds > 3 else "–"
        print(f"| {num_seeds} | {wrong:.1%} | {t:.1%} | {bca_text} | {seen[0]:.1%} | {seen[1]:.1%} |")


def families() -> None:
    draw = np.random.default_rng(0)
    wrong = 0
    for _ in range(STUDIES):
        family = correct([study(draw, 5, 0.0) for _ in range(10)])
        wrong += any(comparison.verdict != "inconclusive" for comparison in family)
    print(f"\nany of ten contrasts without an effect is called one in {wrong / STUDIES:.1%} of studies of five seeds")


def forecasts() -> None:
    print("\n| effect | seeds so far | undecided | forecast, median | needed, median | forecast / needed, quartiles |")
    print("|---|---|---|---|---|---|")
    for effect in (0.5, 0.7, 1.0):
        for num_seeds in (4, 8):
            draw = np.random.default_rng(num_seeds)
            forecast, needed = [], []
            for _ in range(STUDIES // 2):
                differences = effect + draw.standard_normal(150)
                so_far = compare(differences[:num_seeds], np.zeros(num_seeds))
                if so_far.verdict != "inconclusive":
                    continue
                n = num_seeds + 1
                while n < 150 and compare(differences[:n], np.zeros(n)).verdict == "inconclusive":
                    n += 1
                forecast.append(so_far.pairs_to_decide or 1000)
                needed.append(n)
            ratios = np.quantile(np.array(forecast) / needed, (0.25, 0.5, 0.75))
            print(
                f"| {effect} | {num_seeds} | {len(needed)} of {STUDIES // 2} | {np.median(forecast):.0f} | "
                f"{np.median(needed):.0f} | {' / '.join(f'{ratio:.2f}' for ratio in ratios)} |"
            )


if __name__ == "__main__":
    errors_and_coverage()
    families()
    forecasts()
