"""Coverage of the intervals of power laws on planted ones: `python -m benchmarks.scaling_laws`, about ten minutes.

Simulates scaling studies whose values lie on a known law with noise, and prints the tables of docs/statistics.md.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from harness.analysis.statistics.scaling import ASYMPTOTE, POWER, PowerLaw, fit_scaling
from harness.analysis.statistics.scaling_series import Series, Size, multiplier

STUDIES = 200
EXPONENT = 0.25


class Plan(NamedTuple):
    """A planted study over two decades of compute; noises are relative standard deviations."""

    asymptote: float
    num_sizes: int
    num_seeds: int
    of_runs: float
    of_seeds: float = 0.0
    of_sizes: float = 0.0

    @property
    def law(self) -> PowerLaw:
        return PowerLaw(self.asymptote, 1e-12, EXPONENT)

    def compute(self) -> np.ndarray:
        return np.geomspace(1e12, 1e14, self.num_sizes)

    def values(self, draw: np.random.Generator, factor: float = 1.0) -> list[dict[int, float]]:
        logs = np.log(self.law(factor * self.compute()))[:, None]
        logs = logs + self.of_seeds * draw.standard_normal(self.num_seeds)
        logs = logs + self.of_sizes * draw.standard_normal((self.num_sizes, 1))
        logs = logs + self.of_runs * draw.standard_normal((self.num_sizes, self.num_seeds))
        return [dict(enumerate(np.exp(row).tolist())) for row in logs]


PLANS = (
    Plan(0.0, 3, 2, 0.02),
    Plan(0.0, 3, 3, 0.02, of_seeds=0.04),
    Plan(0.0, 4, 1, 0.02),
    Plan(0.0, 4, 3, 0.02),
    Plan(0.0, 5, 2, 0.02),
    Plan(0.0, 8, 3, 0.02),
    Plan(0.5, 5, 2, 0.005),
    Plan(0.5, 6, 3, 0.01),
    Plan(0.5, 8, 1, 0.01),
    Plan(0.5, 8, 3, 0.01, of_seeds=0.02),
    Plan(0.0, 5, 3, 0.01, of_sizes=0.02),
)


def resampled_exponents(compute: np.ndarray, values: list[dict[int, float]], draw: np.random.Generator) -> np.ndarray:
    """Return the exponents of lines through means of seeds that are drawn with replacement."""
    x = np.log(compute) - np.log(compute).mean()
    logs = np.log([list(of_size.values()) for of_size in values])
    drawn = draw.integers(logs.shape[1], size=(400, *logs.shape))
    means = np.take_along_axis(np.broadcast_to(logs, drawn.shape), drawn, axis=2).mean(2)
    return -means @ x / (x @ x)


def coverage() -> None:
    print(
        "| a | sizes | seeds | noise of runs / seeds / sizes | exponent | prediction at 10x | held out | form chosen | "
        "seeds resampled: exponent |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for index, plan in enumerate(PLANS):
        draw, rows = np.random.default_rng(index), []
        for _ in range(STUDIES):
            compute, values = plan.compute(), plan.values(draw)
            scaling = fit_scaling(compute.tolist(), values, num_draws=1024)
            if scaling is None:
                continue
            exponent, far = scaling.exponent, scaling.predict(10 * compute[-1])
            held_out, truth = scaling.chosen.held_out, float(plan.law(10 * compute[-1]))
            low, high = np.quantile(resampled_exponents(compute, values, draw), (0.025, 0.975))
            assert held_out
            known = not math.isnan(held_out.predicted.low)
            rows.append((
                exponent.low <= EXPONENT <= exponent.high,
                far.low <= truth <= far.high,
                held_out.predicted.low <= held_out.measured <= held_out.predicted.high if known else math.nan,
                scaling.chosen.form == (ASYMPTOTE if plan.asymptote else POWER),
                low <= EXPONENT <= high if plan.num_seeds > 1 and not plan.asymptote else math.nan,
            ))  # fmt: skip
        shares = [f"{share:.0%}" if not math.isnan(share) else "–" for share in np.mean(rows, 0)]
        noises = f"{plan.of_runs:.1%} / {plan.of_seeds:.1%} / {plan.of_sizes:.1%}"
        print(
            f"| {plan.asymptote:g} | {plan.num_sizes} | {plan.num_seeds} | {noises} | {' | '.join(shares)} |",
            flush=True,
        )


def multipliers() -> None:
    print("\n| a | sizes | seeds | noise | multiplier of 1.7 covered | median width, high / low | one exponent |")
    print("|---|---|---|---|---|---|---|")
    for index, plan in enumerate((PLANS[0], PLANS[3], PLANS[6], PLANS[7])):
        draw, rows = np.random.default_rng(index), []
        for _ in range(STUDIES // 2):
            worth = multiplier(_series(plan, draw, 1.7), _series(plan, draw, 1.0))
            low, high = worth.factor.low, worth.factor.high
            rows.append((low <= 1.7 <= high, high / low, worth.shared))
        covered, _, shared = np.mean(rows, 0)
        width = np.nanmedian([row[1] for row in rows])
        print(
            f"| {plan.asymptote:g} | {plan.num_sizes} | {plan.num_seeds} | {plan.of_runs:.1%} | {covered:.0%} | "
            f"{width:.2f} | {shared:.0%} |",
            flush=True,
        )


def _series(plan: Plan, draw: np.random.Generator, factor: float) -> Series:
    sizes = [
        Size(f"size {index}", compute, math.nan, 1.0, f"{index}", f"{index}", values)
        for index, (compute, values) in enumerate(zip(plan.compute(), plan.values(draw, factor), strict=True))
    ]
    return Series(f"worth {factor:g}", "nll", "", tuple(sizes))


if __name__ == "__main__":
    coverage()
    multipliers()
