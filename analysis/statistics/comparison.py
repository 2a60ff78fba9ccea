"""Compare two arms in pairs: difference, intervals, tests, effect size, and a verdict in words.

Replicates of one seed share the order of the data, the timesteps and the noise, so that their difference varies less
than each of them. What is said of an arm is said of these differences.

- The verdict rests on Student's t of the differences, with Holm's correction over the contrasts of a study. The
  sign-flip test assumes nothing but symmetry, but cannot reach 5 % below six pairs; it stands beside it.
- Below `MIN_PAIRS` pairs no difference is called better or worse.
- A difference that is smaller than the noise of the evaluation (the floor) is not called one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from harness.analysis.statistics.intervals import t_interval

MIN_PAIRS = 4
"""Fewest pairs with a verdict: with three, a t-interval is 2.5 times as wide as the differences' own spread."""
LEVEL = 0.95
MAX_FORECAST = 1000

Verdict = Literal["better", "worse", "equivalent", "inconclusive"]


@dataclass(frozen=True)
class Comparison:
    """Two arms in one metric, by pairs of replicates; differences are ours - other, and lower is better.

    Attributes:
        ours, other: means of the two arms.
        differences: of the pairs.
        t_low, t_high: 95 % t-interval of the mean difference; NaN below two pairs.
        p: of the paired t-test, two-sided; NaN below two pairs.
        p_holm: p after Holm's correction over the family of contrasts; p itself alone.
        effect_size: mean difference over its standard deviation, with Hedges' correction for few pairs.
        correlation: of the two arms over the pairs; pairing divides the variance of the difference by 1 - correlation.
        floor: standard error of the difference that comes from the evaluation alone; 0 if it is not known.
        higher_is_better: of the metric; turns the verdict round.
    """

    ours: float
    other: float
    differences: tuple[float, ...]
    t_low: float
    t_high: float
    p: float
    p_holm: float
    effect_size: float
    correlation: float
    floor: float = 0.0
    higher_is_better: bool = False

    @property
    def n(self) -> int:
        """The number of pairs."""
        return len(self.differences)

    @property
    def difference(self) -> float:
        """The mean difference."""
        return float(np.mean(self.differences))

    @cached_property
    def bca(self) -> tuple[float, float]:
        """The 95 % BCa bootstrap interval; NaN below `MIN_PAIRS`, where it has too few values to draw from."""
        return _bca(np.array(self.differences))

    @cached_property
    def p_flip(self) -> float:
        """The p of the sign-flip test."""
        return sign_flip_test(self.differences)

    @property
    def within_floor(self) -> bool:
        """Whether the noise of the evaluation alone may give this difference."""
        return abs(self.difference) <= _margin(self.floor)

    @property
    def verdict(self) -> Verdict:
        """better or worse, equivalent within the floor, or inconclusive."""
        margin = _margin(self.floor)
        if self.n >= MIN_PAIRS:
            if self.p_holm < 1 - LEVEL and not self.within_floor:
                return "better" if (self.difference > 0) == self.higher_is_better else "worse"
            if margin and -margin < self.t_low and self.t_high < margin:
                return "equivalent"
        return "inconclusive"

    @cached_property
    def pairs_to_decide(self) -> int | None:
        """Forecast how many pairs a verdict takes: the median over simulated continuations of these pairs.

        Each draws the true mean and spread of the differences from what the pairs leave open (a flat prior on the mean
        and the logarithm of the spread), then pair after pair until there is a verdict. None where there is no spread
        to go by, or more than `MAX_FORECAST` pairs would be needed.
        """
        if self.n < 2 or self.verdict != "inconclusive":
            return None
        correction = 1.0 if not self.p else self.p_holm / self.p
        return _pairs_to_decide(np.array(self.differences), _margin(self.floor), (1 - LEVEL) / correction)


def compare(ours: ArrayLike, other: ArrayLike, *, floor: float = 0.0, higher_is_better: bool = False) -> Comparison:
    """Compare paired replicates.

    Args:
        ours, other: [n], finite, in the same order of seeds.
        floor: standard error of the difference that comes from the evaluation alone.

    Raises:
        ValueError: no pairs, different lengths, or a value that is not finite.
    """
    a, b = np.asarray(ours, float), np.asarray(other, float)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"pairs are needed: {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a value is not finite: leave its pair out, and say so")
    differences = a - b
    n, spread = len(a), differences.std(ddof=1) if len(a) > 1 else math.nan
    t_low, t_high = t_interval(differences) if n > 1 else (math.nan, math.nan)
    p = _t_test(differences)
    return Comparison(
        ours=float(a.mean()),
        other=float(b.mean()),
        differences=tuple(differences.tolist()),
        t_low=t_low,
        t_high=t_high,
        p=p,
        p_holm=p,
        effect_size=float(differences.mean() / spread * _hedges(n)) if n > 1 and spread > 0 else math.nan,
        correlation=float(np.corrcoef(a, b)[0, 1]) if n > 2 and a.std() > 0 and b.std() > 0 else math.nan,
        floor=floor,
        higher_is_better=higher_is_better,
    )


def correct(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Apply Holm's correction over a family of contrasts; those without a p are not counted."""
    counted = [index for index, comparison in enumerate(comparisons) if not math.isnan(comparison.p)]
    corrected = dict(zip(counted, holm([comparisons[index].p for index in counted]), strict=True))
    return [
        replace(comparison, p_holm=corrected[index]) if index in corrected else comparison
        for index, comparison in enumerate(comparisons)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the given order (Holm 1979).

    p~_(i) = max_{j <= i} min(1, (m - j + 1) p_(j)), over the m sorted p-values
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.maximum.accumulate(np.minimum(1.0, factors * np.asarray(p_values, float)[order]))
    result = np.empty(len(p_values))
    result[order] = adjusted
    return result.tolist()


def sign_flip_test(differences: ArrayLike) -> float:
    """Return the two-sided p of the mean difference when each pair could as well have been the other way round.

    Exact up to 2^12 ways, drawn at random beyond. Its smallest value is 2^(1 - n): 0.0625 with five pairs.
    """
    from scipy.stats import permutation_test

    values = np.asarray(differences, float)
    if len(values) < 2 or not values.any():
        return 1.0
    result = permutation_test(
        (values,), np.mean, permutation_type="samples", vectorized=True, n_resamples=2**12, random_state=0
    )
    return float(result.pvalue)


def _t_test(differences: np.ndarray) -> float:
    """Return the two-sided p of Student's test: `scipy.stats.ttest_1samp` to the bit, in a twentieth of its time."""
    from scipy.special import stdtr

    n = len(differences)
    if n < 2:
        return math.nan
    if not differences.std():
        return 1.0 if differences[0] == 0 else 0.0
    mean = differences.mean()
    variance = ((differences - mean) ** 2).mean() * (n / (n - 1))
    return float(2 * stdtr(n - 1, -abs(mean / np.sqrt(variance / n))))


def _bca(differences: np.ndarray) -> tuple[float, float]:
    from scipy.stats import bootstrap

    if len(differences) < MIN_PAIRS:
        return math.nan, math.nan
    if not differences.std():
        return float(differences[0]), float(differences[0])
    interval = bootstrap(
        (differences,), np.mean, confidence_level=LEVEL, method="BCa", random_state=0, vectorized=True
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _hedges(n: int) -> float:
    """The correction of an effect size of n pairs for its bias (Hedges 1981): about 1 - 3 / (4 (n - 1) - 1)."""
    return math.exp(math.lgamma((n - 1) / 2) - math.lgamma((n - 2) / 2)) / math.sqrt((n - 1) / 2) if n > 2 else math.nan


def _margin(floor: float) -> float:
    """How large a difference the evaluation's noise alone leaves plausible: 1.96 of its standard errors."""
    return _normal_quantile() * floor


@cache
def _normal_quantile() -> float:
    from scipy.special import ndtri

    return float(ndtri((1 + LEVEL) / 2))


NUM_CONTINUATIONS = 200


@cache
def _continuations() -> tuple[np.ndarray, ...]:
    """Draw what all simulated continuations share: uniform numbers, sums of normal ones and of their squares."""
    draw = np.random.default_rng(0)
    uniform = (draw.permutation(NUM_CONTINUATIONS) + 0.5) / NUM_CONTINUATIONS
    normal = draw.standard_normal((NUM_CONTINUATIONS, MAX_FORECAST))
    return uniform, draw.standard_normal(NUM_CONTINUATIONS), normal.cumsum(axis=1), (normal**2).cumsum(axis=1)


@cache
def _chi_squared(freedom: int) -> np.ndarray:
    """Return the quantiles of chi squared at the uniform numbers of the continuations."""
    from scipy.special import gammaincinv

    return np.asarray(2 * gammaincinv(freedom / 2, _continuations()[0]))


@lru_cache(maxsize=256)
def _quantiles(p: float, n: int, longest: int) -> np.ndarray:
    """Return Student's quantile at p for n + 1 .. longest values."""
    from scipy.special import stdtrit

    return np.asarray(stdtrit(np.arange(n, longest), p))


def _pairs_to_decide(differences: np.ndarray, margin: float, alpha: float) -> int | None:
    """Return the median number of pairs at which simulated continuations have a verdict; see `pairs_to_decide`.

    Args:
        differences: [n] of the pairs so far.
        margin: below which a difference is the evaluation's noise.
        alpha: level of the test, after the correction.
    """
    n = len(differences)
    _, shift, sums, squares = _continuations()
    spread = differences.std(ddof=1) * np.sqrt((n - 1) / _chi_squared(n - 1))[:, None]
    mean = differences.mean() + spread / math.sqrt(n) * shift[:, None]
    for longest in (64, MAX_FORECAST):  # most need few
        if longest <= n:
            continue
        more = np.arange(1, longest + 1 - n)
        first, second = sums[:, : len(more)], squares[:, : len(more)]
        counts = n + more
        means = (differences.sum() + more * mean + spread * first) / counts
        all_squares = (differences**2).sum() + more * mean**2 + 2 * mean * spread * first + spread**2 * second
        variances = np.maximum(all_squares - counts * means**2, 0) / (counts - 1)
        errors, distances = np.sqrt(variances / counts), np.abs(means)
        different = (distances > _quantiles(1 - alpha / 2, n, longest) * errors) & (distances > margin)
        equivalent = distances + _quantiles((1 + LEVEL) / 2, n, longest) * errors < margin
        decided = (different | equivalent) & (counts >= MIN_PAIRS)
        needed = np.where(decided.any(axis=1), counts[decided.argmax(axis=1)], MAX_FORECAST + 1)
        if np.median(needed) <= longest:
            return math.ceil(np.median(needed))
    return None
