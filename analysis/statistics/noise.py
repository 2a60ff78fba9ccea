"""How far numbers of one arm are spread: by its trainings, and by the noise that its samples are drawn with.

Trainings of an arm (replicates) and sampling seeds are crossed: every training is sampled with the same seeds. So

    value[training, seed] = mean + training + seed + rest,    each a random effect of its own

and the mean squares of the two-way analysis of variance without replication (Searle et al. 1992, ch. 4) give

    training = max(0, (MS_training - MS_rest) / num_seeds),    sampling = the variance over the seeds of one training

Where a seed does to each training something of its own, MS_rest is `sampling`, and this is the one-way analysis. Where
it moves all trainings alike, the one-way analysis would take that part off the spread between the trainings; and an
interval over trainings alone, which all have the same noise, would not cover it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.analysis.runs import Measurement, RunRecord
from harness.spec.metrics import by_seed_kind, fidelity_name, metric_name

FEWEST_SEEDS = 3
"""Sampling seeds from which on their own spread gives an interval; with two it would be thirteen times the spread."""

TRAININGS, SEEDS = "trainings", "sampling seeds"


@dataclass(frozen=True)
class Components:
    """Variances of one number.

    Attributes:
        training: between trainings, without the noise of sampling; NaN with one training an arm.
        sampling: between the sampling seeds of one training; NaN with one seed.
        shared: the part of `sampling` that a seed does to all trainings of an arm alike; NaN without several of both.
        num_trainings: of an arm, the fewest of any arm.
        num_seeds: of each training.
    """

    training: float
    sampling: float
    shared: float
    num_trainings: int
    num_seeds: int

    @property
    def buy_next(self) -> str:
        """What makes an arm's mean more certain: whichever has the larger share of its variance.

            training / R + shared / S + (sampling - shared) / (R S),    with R trainings and S seeds

        More seeds take away none of the first term, more trainings none of the second. Empty where a part is not known.
        """
        if math.isnan(self.training) or math.isnan(self.shared):
            return ""
        own = (self.sampling - self.shared) / (self.num_trainings * self.num_seeds)
        of_seeds = self.shared / self.num_seeds + own
        return TRAININGS if self.training / self.num_trainings >= of_seeds else SEEDS


def components(arms: Iterable[Sequence[Sequence[float]]]) -> Components:
    """Estimate the two variances, pooled over arms by their degrees of freedom.

    Args:
        arms: of each the values by training and seed, [trainings, seeds]; a training with a NaN is not counted.
    """
    tables = [np.array([row for row in arm if not np.isnan(row).any()], float) for arm in arms]
    tables = [table for table in tables if len(table)]
    if not tables:
        return Components(math.nan, math.nan, math.nan, 0, 0)
    num_seeds, trainings = tables[0].shape[1], [len(table) for table in tables]
    within = _pooled([(table - table.mean(1, keepdims=True), len(table) * (num_seeds - 1)) for table in tables])
    between = _pooled([(table.mean(1) - table.mean(), len(table) - 1) for table in tables])
    rest = _pooled([(_interactions(table), (len(table) - 1) * (num_seeds - 1)) for table in tables])
    if math.isnan(rest):  # one seed: what is between trainings contains the noise of one draw
        return Components(between, within, math.nan, min(trainings), num_seeds)
    training = max(0.0, between - rest / num_seeds)
    return Components(training, within, max(0.0, within - rest), min(trainings), num_seeds)


def _interactions(table: np.ndarray) -> np.ndarray:
    return table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()


def _pooled(deviations: Sequence[tuple[np.ndarray, int]]) -> float:
    """Return the sum of squares of all deviations over their degrees of freedom; NaN without any."""
    freedom = sum(count for _, count in deviations)
    return float(sum((part**2).sum() for part, _ in deviations) / freedom) if freedom else math.nan


# ----------------------------------------------------------------------------------------------- of one run's numbers


@dataclass(frozen=True)
class SamplingError:
    """The standard error of one run's number over draws of its samples.

    Attributes:
        freedom: degrees of freedom; inf where the error comes from the features of one draw.
        source: what the error is computed from.
        by_seed: the values that it is the error of the mean of; empty where there was one seed.
    """

    standard_error: float
    freedom: float
    source: Literal["seeds", "features"]
    by_seed: tuple[float, ...] = ()


def values_by_seed(run: RunRecord, measurement: Measurement, kind: str) -> list[float]:
    """Return a metric of features by sampling seed; empty where there was one seed."""
    part = measurement.evaluation["fidelity"]
    protocol = (run.extractor(part), part["num_samples"], part["sampler"]["name"], part["num_steps"])
    seeds, values = run.history(metric_name(measurement.prefix, fidelity_name(by_seed_kind(kind), *protocol)))
    return [float(value) for _, value in sorted(dict(zip(seeds.tolist(), values.tolist(), strict=True)).items())]


def sampling_error(run: RunRecord, measurement: Measurement, kind: str) -> SamplingError | None:
    """Return the error of a metric of features from its spread over three seeds or more, else as the features give it.

    None where neither was recorded.
    """
    values = values_by_seed(run, measurement, kind)
    if len(values) >= FEWEST_SEEDS and not np.isnan(values).any():
        return SamplingError(
            float(np.std(values, ddof=1)) / math.sqrt(len(values)), len(values) - 1, "seeds", tuple(values)
        )
    num_seeds = max(1, len(values))
    match measurement.protocol.get("fidelity"):
        case {"fid_standard_error": float(error) | int(error)} if kind == "fid":
            return of_features(error, num_seeds)
    if kind == "kid":
        return of_features(run.fidelity(measurement, "kid_standard_error"), num_seeds)
    if kind in _WITH_ENDS:
        low, high = (run.fidelity(measurement, f"{kind}_{end}") for end in ("low", "high"))
        return of_features((high - low) / 2 / Z, num_seeds)
    return None


_WITH_ENDS = ("fid_infinity", "memorisation_auc")
Z = 1.959964
"""Half of a 95 % interval in standard errors that are known."""


def of_features(standard_error: float | None, num_seeds: int = 1) -> SamplingError | None:
    """Return the error of a mean over seeds whose features give the error of each; None if that is no such number."""
    if standard_error is None or not (math.isfinite(standard_error) and standard_error >= 0):
        return None
    return SamplingError(standard_error / math.sqrt(num_seeds), math.inf, "features")


def shared_error(table: Sequence[Sequence[float]]) -> float:
    """Return the standard error of an arm's mean that its trainings have in common, as they share sampling seeds.

    Args:
        table: the arm's values, [trainings, seeds].

    Returns:
        NaN below three seeds, or where a value is missing: it is not known.
    """
    num_seeds = {len(row) for row in table}
    if len(num_seeds) != 1 or min(num_seeds) < FEWEST_SEEDS or np.isnan(table).any():
        return math.nan
    return math.sqrt(components([table]).shared / min(num_seeds))
