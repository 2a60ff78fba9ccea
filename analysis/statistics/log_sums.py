"""Least squares in log space for sums of powers, and a bootstrap whose intervals are Student's t for a straight line.

    log y = log sum_t exp(Z_t theta_t) + shift of the seed + noise

A power law is one term, with an asymptote two, and L(N, D) = E + A / N^alpha + B / D^beta three (Hoffmann et al. 2022).

- The noise is taken as a factor, the same over all sizes. Seeds are blocks: replicates of one seed share the order of
  the data and the noise, so what they have in common is taken out first, and costs its degrees of freedom. What is
  fitted is thus the mean over the seeds that were run.
- Huber's loss (two robust standard deviations) keeps one run that went wrong from bending the law. It still counts in
  full in the residual variance, so the interval gets wider by it.
- Draws of the bootstrap are fits to the fitted values plus normal noise. Its variance is itself drawn, as sum of
  squares over chi-squared of the degrees of freedom, so that the quantiles for a straight line are exactly those of
  Student's t. Resampling two or three seeds instead gives intervals that are far too narrow (docs/statistics.md).
- Where the sizes are further from the law than their seeds explain, the variance is that of the sizes around the law.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Terms = tuple[np.ndarray, ...]
"""For each term its columns, [n, q]; the parameters of a law are those of its terms, one after the other."""

NUM_DRAWS = 2048
LACK_OF_FIT_P = 0.1
_HUBER_DEVIATIONS = 2.0
_ITERATIONS = 60
_SCALE_ROUNDS = 4


@dataclass(frozen=True)
class Cells:
    """Values of runs: of each its cell (a size, an amount of compute) and its seed.

    Attributes:
        logs: [n], of the values.
        cell: [n], in 0 .. num_cells - 1.
        seeds: [n, num_seeds - 1], columns whose coefficients are what the runs of a seed have in common; they sum to
            zero over the seeds. No columns for one seed, or where seeds cannot be told from cells.
    """

    logs: np.ndarray
    cell: np.ndarray
    seeds: np.ndarray

    @property
    def num_cells(self) -> int:
        """The number of cells."""
        return int(self.cell.max()) + 1

    @property
    def lost_freedom(self) -> int:
        """The degrees of freedom that the shifts of the seeds cost."""
        return self.seeds.shape[1]

    def shifts(self) -> np.ndarray:
        """Return the coefficients of `seeds` by least squares, whatever the law: [num_seeds - 1]."""
        in_cell = (self.cell[:, None] == np.arange(self.num_cells)).astype(float)
        both = np.hstack([in_cell, self.seeds])
        return np.linalg.lstsq(both, self.logs, rcond=None)[0][self.num_cells :]


def cells_of(values: Sequence[dict[int, float]]) -> Cells:
    """Put the values of cells together, by seed.

    Args:
        values: for each cell its values by seed, > 0; at least one each.
    """
    cell = np.array([index for index, of_cell in enumerate(values) for _ in of_cell])
    seeds = np.array([seed for of_cell in values for seed in of_cell])
    logs = np.log([value for of_cell in values for value in of_cell.values()])
    names = np.unique(seeds)
    in_cell = (cell[:, None] == np.arange(len(values))).astype(float)
    in_seed = (seeds[:, None] == names).astype(float)
    shifts = in_seed[:, 1:] - in_seed[:, :1]  # they sum to zero
    both = np.hstack([in_cell, shifts])
    if len(names) < 2 or np.linalg.matrix_rank(both) < both.shape[1]:
        return Cells(logs, cell, np.empty((len(logs), 0)))
    return Cells(logs, cell, shifts)


@dataclass(frozen=True)
class LogSum:
    """A fitted sum of powers.

    Attributes:
        theta: [p].
        draws: [num_draws, p], of the bootstrap; empty without degrees of freedom.
        freedom: degrees of freedom of the variance that `draws` was made with.
        sigmas: [num_draws], the standard deviations of log y that `draws` were made with.
        sum_of_squares: of the residuals of all runs.
        residual_freedom: runs minus parameters and seeds' shifts.
        lack_of_fit_p: of the F-test of the sizes' distances from the law against the seeds' spread; NaN without seeds.
    """

    theta: np.ndarray
    draws: np.ndarray
    freedom: int
    sigmas: np.ndarray
    sum_of_squares: float
    residual_freedom: int
    lack_of_fit_p: float

    @property
    def sigma(self) -> float:
        """Residual standard deviation of log y; 0 without degrees of freedom."""
        return float(np.sqrt(self.sum_of_squares / self.residual_freedom)) if self.residual_freedom > 0 else 0.0

    @property
    def lacks_fit(self) -> bool:
        """Whether the sizes are further from the law than their seeds explain."""
        return self.lack_of_fit_p < LACK_OF_FIT_P


def fit(cells: Cells, terms: Terms, starts: np.ndarray, *, num_draws: int = NUM_DRAWS, seed: int = 0) -> LogSum:
    """Fit a sum of powers, and draw from its bootstrap; deterministic.

    Args:
        terms: a row for each run.
        starts: [s, p]; the best end is taken.
    """
    theta, shifts = _robust(cells, terms, starts)
    fitted = log_sum(theta, terms)
    residuals = cells.logs - fitted - cells.seeds @ shifts
    squares, freedom = float(residuals @ residuals), len(residuals) - len(theta) - cells.lost_freedom
    p, spread, used_freedom = _lack_of_fit(cells, residuals, len(theta)), squares, freedom
    if p < LACK_OF_FIT_P:
        spread, used_freedom = _between(cells, residuals), cells.num_cells - len(theta)
    if used_freedom < 1:
        return LogSum(theta, np.empty((0, len(theta))), 0, np.empty(0), squares, freedom, p)
    squares_drawn, noise = draw_noise(used_freedom, len(fitted), num_draws, seed)
    sigmas = np.sqrt(spread / squares_drawn)
    drawn = fitted + sigmas[:, None] * noise
    draws = refit(drawn, terms, np.vstack([theta, starts]))
    return LogSum(theta, draws, used_freedom, sigmas, squares, freedom, p)


def log_sum(theta: np.ndarray, terms: Terms) -> np.ndarray:
    """Return log sum_t exp(Z_t theta_t): [..., n] for parameters [..., p]."""
    return _with_shares(theta, terms)[0]


def refit(logs: np.ndarray, terms: Terms, starts: np.ndarray) -> np.ndarray:
    """Fit many sets of values at once by Levenberg and Marquardt's method: [draws, n] -> [draws, p].

    scipy's least_squares takes one set at a time, and a thousand of them seconds.
    """
    columns = np.hstack(terms)
    if len(terms) == 1:  # a line
        return np.linalg.lstsq(columns, logs.T, rcond=None)[0].T
    theta = _best_starts(logs, terms, starts)
    damping, active = np.full(len(logs), 1e-3), np.arange(len(logs))
    for _ in range(_ITERATIONS):
        at, values, damped = theta[active], logs[active], damping[active]
        fitted, shares = _with_shares(at, terms)
        jacobian = shares * columns  # [active, n, p]
        normal = jacobian.transpose(0, 2, 1) @ jacobian
        gradient = ((values - fitted)[:, None] @ jacobian)[:, 0]
        diagonal = np.einsum("...pp->...p", normal)
        scale = np.sqrt(diagonal + 1e-12 * diagonal.max(-1, keepdims=True) + 1e-300)
        normal = normal / (scale[:, :, None] * scale[:, None]) + damped[:, None, None] * np.eye(at.shape[1])
        step = np.linalg.solve(normal, (gradient / scale)[..., None])[..., 0] / scale
        trial = at + np.clip(step, -5, 5)
        before = ((values - fitted) ** 2).sum(-1)
        after = ((values - log_sum(trial, terms)) ** 2).sum(-1)
        better = after < before
        theta[active] = np.where(better[:, None], trial, at)
        damping[active] = np.clip(np.where(better, damped / 5, damped * 4), 1e-10, None)
        active = active[np.where(better, before - after > 1e-6 * before, damped < 1e4)]
        if not len(active):
            break
    return theta


def _best_starts(logs: np.ndarray, terms: Terms, starts: np.ndarray) -> np.ndarray:
    """Return for each set of values the best start, after the best factor on all of its terms: [draws, p]."""
    columns = np.hstack(terms)
    is_factor = ((columns == 0) | (columns == 1)).all(0)
    shapes = log_sum(starts, terms)  # [s, n]
    centred = shapes - shapes.mean(1, keepdims=True)
    distances = (centred**2).sum(1) - 2 * (logs - logs.mean(1, keepdims=True)) @ centred.T
    best = distances.argmin(1)
    factors = logs.mean(1) - shapes.mean(1)[best]
    return starts[best] + factors[:, None] * is_factor


def interval(draws: np.ndarray, estimate: np.ndarray | float, level: float = 0.95) -> np.ndarray:
    """Return the bias-corrected percentile interval of draws along the first axis: [2, ...].       (Efron 1981)

    Quantiles Phi(2 z_0 + z), z_0 = Phi^-1(share of the draws below the estimate): fits with an asymptote drift to one
    side, and those to draws drift once more.
    """
    from scipy.stats import norm

    share = ((draws < estimate).mean(0) + (draws <= estimate).mean(0)) / 2
    shift = 2 * norm.ppf(np.clip(share, 0.01, 0.99))
    ranks = norm.cdf(np.stack([shift + norm.ppf((1 - level) / 2), shift + norm.ppf((1 + level) / 2)]))
    ordered = np.sort(draws, axis=0)
    places = np.clip(ranks * len(draws) - 0.5, 0, len(draws) - 1)
    low, part = np.floor(places).astype(int), places - np.floor(places)
    high = np.minimum(low + 1, len(draws) - 1)
    at = [np.take_along_axis(ordered, index.reshape(2, *ordered.shape[1:]), axis=0) for index in (low, high)]
    part = part.reshape(at[0].shape)
    return at[0] * (1 - part) + at[1] * part


def draw_noise(freedom: int, n: int, num_draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw chi-squared numbers, [num_draws], and standard normal ones, [num_draws, n], evenly spread (Sobol).

    The second half has the normal ones of the first with the other sign. Independent draws would leave the quantiles
    several per cent off, in all fits of one design by the same factor.

    Args:
        num_draws: a power of two.
    """
    from scipy.stats import chi2, norm, qmc

    even = qmc.Sobol(n + 1, rng=np.random.default_rng(seed)).random(num_draws // 2)
    even = np.clip(even, 1e-9, 1 - 1e-9)
    squares, normal = chi2.ppf(even[:, 0], freedom), norm.ppf(even[:, 1:])
    if len(normal) > 5 * n:  # no correlation, and variance 1, not only nearly
        normal = normal @ np.linalg.inv(np.linalg.cholesky(normal.T @ normal / len(normal))).T
    return np.tile(squares, 2), np.concatenate([normal, -normal])


def f_test(smaller: LogSum, larger: LogSum) -> float:
    """Return the p of what the larger of two nested laws explains beyond the smaller; NaN if it has no freedom left."""
    from scipy.stats import f

    added = len(larger.theta) - len(smaller.theta)
    if larger.residual_freedom < 1:
        return float("nan")
    gain = max(0.0, smaller.sum_of_squares - larger.sum_of_squares) / added
    rest = larger.sum_of_squares / larger.residual_freedom
    return float(f.sf(gain / rest, added, larger.residual_freedom)) if rest > 0 else float(gain == 0)


def _with_shares(theta: np.ndarray, terms: Terms) -> tuple[np.ndarray, np.ndarray]:
    """Return the log of the sum, [..., n], and the share of each parameter's term in it, [..., n, p]."""
    ends = np.cumsum([term.shape[1] for term in terms])
    parts = [theta[..., end - term.shape[1] : end] @ term.T for end, term in zip(ends, terms, strict=True)]
    total = parts[0] if len(parts) == 1 else np.logaddexp.reduce(np.stack(parts), axis=0)
    shares = [
        np.repeat(np.exp(part - total)[..., None], term.shape[1], -1) for part, term in zip(parts, terms, strict=True)
    ]
    return total, np.concatenate(shares, -1)


def _robust(cells: Cells, terms: Terms, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the parameters and the seeds' shifts, by least squares and from there by Huber's loss."""
    from scipy.optimize import least_squares

    shifts = cells.shifts()
    theta = refit((cells.logs - cells.seeds @ shifts)[None], terms, starts)[0]
    columns, p = np.hstack(terms), len(theta)
    freedom = len(cells.logs) - p - cells.lost_freedom
    both = np.concatenate([theta, shifts])

    def residuals(at: np.ndarray) -> np.ndarray:
        return log_sum(at[:p], terms) + cells.seeds @ at[p:] - cells.logs

    def jacobian(at: np.ndarray) -> np.ndarray:
        return np.hstack([_with_shares(at[:p], terms)[1] * columns, cells.seeds])

    for _ in range(_SCALE_ROUNDS):  # one outlier is in the scale of the first round
        distances = abs(residuals(both))
        scale = 1.4826 * float(np.median(distances)) * math.sqrt(len(distances) / max(freedom, 1))
        if freedom < 4 or scale < 1e-9 or distances.max() < _HUBER_DEVIATIONS * scale:
            break  # too few for a robust scale, exact, or the loss is that of least squares
        cut = _HUBER_DEVIATIONS * scale
        both = least_squares(residuals, both, jac=jacobian, loss="huber", f_scale=cut, x_scale="jac").x
    return both[:p], both[p:]


def _between(cells: Cells, residuals: np.ndarray) -> float:
    """Return the sum of squares of the cells' means around the law, over all runs."""
    counts = np.bincount(cells.cell)
    return float((np.bincount(cells.cell, residuals) ** 2 / counts).sum())


def _lack_of_fit(cells: Cells, residuals: np.ndarray, num_parameters: int) -> float:
    from scipy.stats import f

    between, of_cells = _between(cells, residuals), cells.num_cells - num_parameters
    within, of_seeds = float(residuals @ residuals) - between, len(residuals) - cells.num_cells - cells.lost_freedom
    if of_cells < 1 or of_seeds < 1:
        return float("nan")
    if within <= 1e-12 * max(between, 1e-18):
        return float(between < 1e-18)
    return float(f.sf(between / of_cells / (within / of_seeds), of_cells, of_seeds))
