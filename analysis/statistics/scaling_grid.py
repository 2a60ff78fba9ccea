"""Model size against length of training: L(N, D) and isoFLOP minima, where a study has the grid.

    L(N, D) = E + A / N^alpha + B / D^beta                                     (Hoffmann et al. 2022, approach 3)
    log L = parabola in log N at equal compute; its minimum is the best size         (Hoffmann et al. 2022, approach 2)

N is the number of parameters and D the number of examples that the training sees. What compute is best spent on follows
from both: N ~ C^(beta / (alpha + beta)) where compute is proportional to N D.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from harness.analysis.statistics.log_sums import LogSum, Terms, cells_of, fit, interval, log_sum
from harness.analysis.statistics.scaling import Interval
from harness.analysis.statistics.scaling_series import Size, by_compute

MIN_VALUES = 3
"""Of N and of D."""
MIN_ARMS = 8
"""Five parameters and some to judge them by."""


@dataclass(frozen=True)
class SizeAndLength:
    """L(N, D), fitted.

    Attributes:
        origin: logs of N and D that the coefficients refer to.
    """

    law: LogSum
    origin: tuple[float, float]

    def __call__(self, parameters: np.ndarray | float, examples: np.ndarray | float) -> np.ndarray:
        logs = np.log(np.broadcast_arrays(np.atleast_1d(parameters), np.atleast_1d(examples))) - np.c_[
            self.origin
        ].reshape(2, 1)
        return np.exp(log_sum(self.law.theta, _terms(*logs)))

    @property
    def asymptote(self) -> Interval:
        """E."""
        return Interval(*map(float, np.exp(self._interval(lambda theta: theta[..., 0]))))

    @property
    def alpha(self) -> Interval:
        """The exponent of N."""
        return self._interval(lambda theta: theta[..., 2])

    @property
    def beta(self) -> Interval:
        """The exponent of D."""
        return self._interval(lambda theta: theta[..., 4])

    @property
    def best_size_exponent(self) -> Interval:
        """The exponent of compute in the best N: beta / (alpha + beta)."""
        return self._interval(lambda theta: theta[..., 4] / (theta[..., 2] + theta[..., 4]))

    def _interval(self, of: Callable[[np.ndarray], np.ndarray]) -> Interval:
        estimate = float(of(self.law.theta))
        if not len(self.law.draws):
            return Interval(estimate, math.nan, math.nan)
        return Interval(estimate, *map(float, interval(of(self.law.draws), estimate)))


def fit_size_and_length(sizes: Sequence[Size]) -> SizeAndLength | None:
    """Fit L(N, D); None where the study has no grid of at least three N and three D."""
    known = [size for size in sizes if size.parameters > 0 and min(size.values.values()) > 0]
    if len(known) < MIN_ARMS or min(_distinct(known, "parameters"), _distinct(known, "examples")) < MIN_VALUES:
        return None
    cells = cells_of([size.values for size in known])
    logs = np.log([[size.parameters, size.examples] for size in known])
    origin = logs.mean(0)
    terms = _terms(*(logs - origin)[cells.cell].T)
    return SizeAndLength(fit(cells, terms, _starts()), (float(origin[0]), float(origin[1])))


def _distinct(sizes: Sequence[Size], name: str) -> int:
    return len({round(math.log(getattr(size, name)), 2) for size in sizes})


def _terms(log_parameters: np.ndarray, log_examples: np.ndarray) -> Terms:
    ones = np.ones((len(log_parameters), 1))
    return ones, np.column_stack([ones, -log_parameters]), np.column_stack([ones, -log_examples])


def _starts() -> np.ndarray:
    shares = [(e, (1 - e) * part, (1 - e) * (1 - part)) for e in (0.01, 0.3, 0.6, 0.9) for part in (0.1, 0.5, 0.9)]
    exponents = (0.05, 0.15, 0.3, 0.5, 0.8, 1.2)
    return np.array([
        [math.log(e), math.log(a), alpha, math.log(b), beta]
        for (e, a, b), alpha, beta in itertools.product(shares, exponents, exponents)
    ])  # fmt: skip


# -- isoFLOP


@dataclass(frozen=True)
class IsoFlop:
    """Sizes of the model at one amount of compute, and the best of them.

    Attributes:
        law: log of the value = theta_0 + theta_1 x + theta_2 x^2 with x = log(N) - origin.
        best_parameters: at the minimum; NaN where the parabola has none.
        at_edge: whether the minimum lies beyond the sizes that were trained.
    """

    compute: float
    sizes: tuple[Size, ...]
    law: LogSum
    origin: float

    def __call__(self, parameters: np.ndarray) -> np.ndarray:
        x = np.log(parameters) - self.origin
        return np.exp(np.polynomial.polynomial.polyval(x, self.law.theta))

    @cached_property
    def best_parameters(self) -> Interval:
        """N at the minimum; NaN where the parabola, or more than 2.5 % of the bootstrap's, has none."""
        theta, draws = self.law.theta, self.law.draws
        if theta[2] <= 0:
            return Interval(math.nan, math.nan, math.nan)
        best = _minimum(theta)
        if not len(draws) or (draws[:, 2] <= 0).mean() > 0.025:
            return Interval(math.exp(best + self.origin), math.nan, math.nan)
        low, high = interval(_minimum(draws[draws[:, 2] > 0]), best)
        return Interval(*(math.exp(min(value + self.origin, 700)) for value in (best, low, high)))

    @property
    def at_edge(self) -> bool:
        """Whether the minimum is not between the sizes that were trained."""
        sizes = [size.parameters for size in self.sizes]
        return not min(sizes) <= self.best_parameters.value <= max(sizes)


def iso_flops(sizes: Sequence[Size]) -> list[IsoFlop]:
    """Return a parabola for each amount of compute with at least three sizes of the model, by ascending compute."""
    known = [size for size in sizes if size.parameters > 0 and min(size.values.values()) > 0]
    usable = [budget for budget in by_compute(known) if _distinct(budget, "parameters") >= MIN_VALUES]
    return [_iso_flop(tuple(budget), seed) for seed, budget in enumerate(usable)]


def best_size_exponent(budgets: Sequence[IsoFlop]) -> Interval | None:
    """Return the exponent of compute in the best N, from minima between trained sizes; None of fewer than two."""
    inner = [budget for budget in budgets if not budget.at_edge]
    if len(inner) < 2:
        return None
    x = np.log([budget.compute for budget in inner])
    x = x - x.mean()
    slope = x / (x @ x)
    estimate = float(slope @ [_minimum(budget.law.theta) + budget.origin for budget in inner])
    if any(math.isnan(budget.best_parameters.low) for budget in inner):
        return Interval(estimate, math.nan, math.nan)
    minima = np.array([_minimum(budget.law.draws) + budget.origin for budget in inner])
    return Interval(estimate, *map(float, interval(slope @ minima, estimate)))


def _minimum(theta: np.ndarray) -> np.ndarray:
    return -theta[..., 1] / (2 * theta[..., 2])


def _iso_flop(sizes: tuple[Size, ...], seed: int) -> IsoFlop:
    cells = cells_of([size.values for size in sizes])
    logs = np.log([size.parameters for size in sizes])
    x = (logs - logs.mean())[cells.cell]
    parabola = np.column_stack([np.ones_like(x), x, x**2])
    law = fit(cells, (parabola,), np.zeros((1, 3)), seed=seed)
    compute = float(np.exp(np.mean(np.log([size.compute for size in sizes]))))
    return IsoFlop(compute, sizes, law, float(logs.mean()))
