"""Power laws of measurements over training compute, with and without an asymptote; what they predict, and how well.

    value = a + (b C)^-c                                                                          (IDDPM, figure 10)

`log_sums.py` fits them and says what the intervals rest on. Of the two forms the one is chosen that, fitted
without the largest size, predicts it better. An interval covers both unless the data rule a = 0 out: what is beyond the
measured range depends more on the form than on the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from harness.analysis.statistics.log_sums import (
    NUM_DRAWS,
    Cells,
    LogSum,
    Terms,
    cells_of,
    f_test,
    fit,
    interval,
    log_sum,
)

Form = Literal["power law", "power law with asymptote"]
POWER: Form = "power law"
ASYMPTOTE: Form = "power law with asymptote"

MIN_SIZES = 3
MIN_SIZES_FOR_ASYMPTOTE = 5
"""One parameter more, and one size more that is held out."""
MAX_EXTRAPOLATION = 10.0
"""Factor beyond the measured compute within which a prediction is given without a warning."""
LEVEL = 0.95
RULED_OUT_P = 0.05


class Interval(NamedTuple):
    """A value with its 95 % interval; NaN where there are no degrees of freedom for one."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PowerLaw:
    """value = a + (b C)^-c, with C in the unit that it was fitted in.

    Attributes:
        a: the limit at infinite compute, in the value's unit.
        b: 1 / compute.
        c: exponent, > 0: more compute, lower value.
    """

    a: float
    b: float
    c: float

    def __call__(self, compute: np.ndarray | float) -> np.ndarray:
        return self.a + (self.b * np.asarray(compute, float)) ** -self.c


@dataclass(frozen=True)
class HeldOut:
    """The largest size, predicted from the others.

    Attributes:
        predicted: the interval is that of the mean of as many new runs as were measured.
        noise: relative standard error of `measured`, by the residuals of the others.
    """

    compute: float
    measured: float
    predicted: Interval
    noise: float

    @property
    def error(self) -> float:
        """Predicted over measured, minus 1."""
        return self.predicted.value / self.measured - 1


@dataclass(frozen=True)
class Fit:
    """One form, fitted.

    Attributes:
        origin: log of the compute that its scale refers to.
        held_out: None where too few sizes are left without the largest.
    """

    form: Form
    origin: float
    law: LogSum
    held_out: HeldOut | None = None

    def log_value(self, compute: np.ndarray | float, theta: np.ndarray | None = None) -> np.ndarray:
        """Return log of the law's values, [..., n] for parameters [..., p]; the fitted ones by default."""
        x = np.atleast_1d(np.log(np.asarray(compute, float))) - self.origin
        return log_sum(self.law.theta if theta is None else theta, _terms(self.form, x))

    @property
    def power_law(self) -> PowerLaw:
        """The law as IDDPM writes it."""
        scale, c = self.law.theta[-2:]
        a = math.exp(self.law.theta[0]) if self.form == ASYMPTOTE else 0.0
        return PowerLaw(a, math.exp(-scale / c - self.origin), float(c))

    def band(self, compute: np.ndarray | float) -> np.ndarray:
        """Return the 95 % interval of the law at amounts of compute: [2, n]."""
        if not len(self.law.draws):
            return np.full((2, np.size(compute)), np.nan)
        return np.exp(interval(self.log_value(compute, self.law.draws), self.log_value(compute)))


@dataclass(frozen=True)
class Scaling:
    """What is known of a measurement's dependence on compute.

    Attributes:
        fits: the forms that the number of sizes allows, without asymptote first.
        compute: [k], of the sizes, ascending.
        means: [k].
    """

    fits: tuple[Fit, ...]
    compute: np.ndarray
    means: np.ndarray

    @cached_property
    def chosen(self) -> Fit:
        """The form that predicts the largest size better from the others.

        The one without asymptote where its error is larger by no more than the standard error of what was held out.
        """
        errors = [abs(fit.held_out.error) if fit.held_out else math.inf for fit in self.fits]
        if len(errors) == 2 and self.fits[1].held_out and errors[1] + self.fits[1].held_out.noise < errors[0]:
            return self.fits[1]
        return self.fits[0]

    @cached_property
    def asymptote_p(self) -> float:
        """The p of the F-test of a = 0; NaN with too few sizes for an asymptote."""
        return f_test(self.fits[0].law, self.fits[1].law) if len(self.fits) > 1 else math.nan

    @property
    def possible(self) -> tuple[Fit, ...]:
        """The forms that the data do not rule out; intervals cover all of them."""
        return self.fits[1:] if self.asymptote_p < RULED_OUT_P else self.fits

    def predict(self, compute: float) -> Interval:
        """Return the value at an amount of compute: the mean over the seeds that were run."""
        return Interval(*map(float, self.fan([compute])[:, 0]))

    def fan(self, compute: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the chosen law's values, and the interval over all possible forms: [3, n]."""
        bands = np.stack([fit.band(np.asarray(compute)) for fit in self.possible])
        return np.stack([np.exp(self.chosen.log_value(np.asarray(compute))), bands[:, 0].min(0), bands[:, 1].max(0)])

    @property
    def exponent(self) -> Interval:
        """c of the chosen form; its interval is over all possible forms."""
        if not all(len(fit.law.draws) for fit in self.possible):
            return Interval(self.chosen.power_law.c, math.nan, math.nan)
        tails = np.array([interval(fit.law.draws[:, -1], fit.law.theta[-1]) for fit in self.possible])
        return Interval(self.chosen.power_law.c, float(tails[:, 0].min()), float(tails[:, 1].max()))

    def extrapolates(self, compute: float) -> bool:
        """Whether an amount of compute is more than `MAX_EXTRAPOLATION` times outside of the measured range."""
        low, high = self.compute[0] / MAX_EXTRAPOLATION, self.compute[-1] * MAX_EXTRAPOLATION
        return not low <= compute <= high


def fit_scaling(
    compute: Sequence[float], values: Sequence[dict[int, float]], *, num_draws: int = NUM_DRAWS
) -> Scaling | None:
    """Fit the forms that the number of sizes allows; deterministic.

    Args:
        compute: [k], > 0, of the sizes.
        values: for each size its values by seed, > 0.

    Returns:
        None where there are fewer than three distinct amounts of compute, or the values do not fall with it.
    """
    order = np.argsort(compute, kind="stable")
    sizes = np.asarray(compute, float)[order]
    by_size = [values[index] for index in order]
    if len(np.unique(sizes)) < MIN_SIZES:
        return None
    forms = (POWER, ASYMPTOTE) if len(np.unique(sizes)) >= MIN_SIZES_FOR_ASYMPTOTE else (POWER,)
    fits = [_fit(form, sizes, by_size, num_draws) for form in forms]
    if fits[0].law.theta[-1] < 1e-9:  # not more than rounding differences of equal values
        return None
    return Scaling(
        tuple(Fit(each.form, each.origin, each.law, _hold_out(each.form, sizes, by_size, num_draws)) for each in fits),
        sizes,
        np.array([np.mean(list(of_size.values())) for of_size in by_size]),
    )


def starts_of_asymptotes(terms: Terms, logs: np.ndarray) -> np.ndarray:
    """Return where to start a fit of asymptote + power: shares of the asymptote in the last value, and exponents."""
    last = -terms[1][:, 1].min()
    shares, exponents = (1e-9, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99), np.geomspace(0.02, 4, 20)
    return np.array(
        [
            [logs.min() + math.log(share), logs.min() + math.log1p(-share) + c * last, c]
            for share in shares
            for c in exponents
        ]
    )


def _terms(form: Form, x: np.ndarray) -> Terms:
    ones = np.ones((len(x), 1))
    line = np.column_stack([ones, -x])
    return (ones, line) if form == ASYMPTOTE else (line,)


def _fit(form: Form, sizes: np.ndarray, values: Sequence[dict[int, float]], num_draws: int) -> Fit:
    cells = cells_of(values)
    origin = float(np.log(sizes).mean())
    terms = _terms(form, np.log(sizes)[cells.cell] - origin)
    return Fit(form, origin, fit(cells, terms, _starts(form, terms, cells), num_draws=num_draws))


def _starts(form: Form, terms: Terms, cells: Cells) -> np.ndarray:
    if form == ASYMPTOTE:
        return starts_of_asymptotes(terms, cells.logs)
    return np.zeros((1, 2))  # a line needs none


def _hold_out(form: Form, sizes: np.ndarray, values: Sequence[dict[int, float]], num_draws: int) -> HeldOut | None:
    """Predict the mean of the largest size from the others."""
    rest = sizes < sizes[-1]
    if len(np.unique(sizes[rest])) < (2 if form == POWER else 3):
        return None
    kept = _fit(form, sizes[rest], [of for of, keep in zip(values, rest, strict=True) if keep], num_draws)
    largest = [value for of, keep in zip(values, rest, strict=True) if not keep for value in of.values()]
    predicted, low, high = float(np.exp(kept.log_value(sizes[-1])[0])), math.nan, math.nan
    if len(kept.law.draws):
        noise = kept.law.sigmas * np.random.default_rng(1).standard_normal(len(kept.law.sigmas))
        drawn = kept.log_value(sizes[-1], kept.law.draws)[:, 0] + noise / math.sqrt(len(largest))
        low, high = np.exp(interval(drawn, math.log(predicted)))
    measured = float(np.exp(np.mean(np.log(largest))))
    error = kept.law.sigma / math.sqrt(len(largest))
    return HeldOut(float(sizes[-1]), measured, Interval(predicted, float(low), float(high)), error)
