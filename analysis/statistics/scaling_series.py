"""The scaling series of a study: arms that differ in nothing but size and length of training, and what they are worth.

The compute multiplier of a series over another is the factor in compute at which it reaches the same value: at factor
1.7 it needs 1 / 1.7 of the compute. Both are fitted together with one exponent (and one asymptote), so that the factor
is the same at every value. Where the data contradict one exponent (F-test), each has its own, and the factor is that at
the other's value at its largest compute.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from harness.analysis.runs import RunRecord
from harness.analysis.settings import Labels, flatten, measured_weights, sampling_protocol
from harness.analysis.statistics.log_sums import LogSum, Terms, cells_of, f_test, fit, interval
from harness.analysis.statistics.scaling import (
    ASYMPTOTE,
    MIN_SIZES_FOR_ASYMPTOTE,
    POWER,
    RULED_OUT_P,
    Form,
    Interval,
    Scaling,
    fit_scaling,
    starts_of_asymptotes,
)
from harness.spec.base import canonical_json
from harness.spec.metrics import TRAIN_COMPUTE, metric_kind

KINDS = {"nll": metric_kind("nll_bpd"), "fid": metric_kind("fid")}
PARAMETERS = "compute/parameters"
LEAST_RATIO = 1.5  # of compute within a series; less is another number of output channels, not scale
SAME_COMPUTE = 1.1  # ratio of neighbouring amounts of compute that count as one
_MAX_RISING_DRAWS = 0.01


@dataclass(frozen=True)
class Size:
    """One arm of a series.

    Attributes:
        compute: of the training, in multiply-adds.
        parameters: of all networks that are trained; NaN in records of early versions.
        examples: that the training sees.
        values: by seed.
    """

    arm: str
    compute: float
    parameters: float
    examples: float
    model: str
    learning_rates: str
    values: dict[int, float]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(list(self.values.values())))


@dataclass(frozen=True)
class Series:
    """Arms that differ in size and length of training alone, in one metric under one protocol.

    Attributes:
        metric: nll or fid.
        sizes: by compute, ascending.
    """

    name: str
    metric: str
    protocol: str
    sizes: tuple[Size, ...]

    @cached_property
    def fitted(self) -> tuple[Size, ...]:
        """The sizes that the law in compute is fitted to.

        All of them, or, where size and length of training both vary, the best of each amount of compute, as far as no
        cheaper one is better: the others are not what their compute can give.
        """
        if len({size.model for size in self.sizes}) < 2 or len({size.examples for size in self.sizes}) < 2:
            return self.sizes
        best_of = [min(budget, key=lambda size: size.mean) for budget in by_compute(self.sizes)]
        least = np.minimum.accumulate([size.mean for size in best_of])
        return tuple(size for size, lowest in zip(best_of, least, strict=True) if size.mean <= lowest)

    @cached_property
    def scaling(self) -> Scaling | None:
        """The law in compute; None where it has too few sizes, or the values do not fall."""
        if any(value <= 0 for size in self.sizes for value in size.values.values()):
            return None
        return fit_scaling([size.compute for size in self.fitted], [size.values for size in self.fitted])

    @property
    def warnings(self) -> list[str]:
        """What speaks against trusting the fit."""
        notes = []
        rates = {size.learning_rates for size in self.sizes}
        models = {size.model for size in self.sizes}
        if len(models) > 1 and len(rates) == 1 and all(rates):
            notes.append(
                f"{next(iter(rates))} for all {len(models)} sizes of the model: the learning rate was not retuned by "
                "size, so the law may be that of a learning rate that suits one of them"
            )
        if self.scaling and self.scaling.chosen.law.lacks_fit:
            notes.append(
                "the sizes are further from the law than their seeds explain, so the interval rests on how far they are"
            )
        if self.scaling and len(self.scaling.fits) == 1:
            notes.append(
                f"{len(self.scaling.compute)} amounts of compute cannot show an asymptote: from "
                f"{MIN_SIZES_FOR_ASYMPTOTE} on the interval allows for one"
            )
        return notes


def series_of(runs: Sequence[RunRecord]) -> list[Series]:
    """Return the series of a study, in the order of its arms; of at least two sizes."""
    groups: dict[tuple, dict[str, list[tuple[RunRecord, float]]]] = {}
    names, protocols = Labels(), Labels()
    for run in runs:
        compute = run.final(TRAIN_COMPUTE)
        parts = " ".join(filter(None, [run.named("diffusion.schedule"), run.named("objective")]))
        name = names.add(parts, _shared_settings(run))
        for metric, label, protocol, value in _measured(run):
            if not np.isnan(compute + value):
                key = (name, metric, protocols.add(label, protocol))
                groups.setdefault(key, {}).setdefault(run.arm, []).append((run, value))
    name_texts, protocol_texts = names.texts(), protocols.texts()
    result = []
    for (name, metric, protocol), arms in groups.items():
        sizes = sorted((_size(arm, members) for arm, members in arms.items()), key=lambda size: size.compute)
        if len(sizes) > 1 and sizes[-1].compute >= LEAST_RATIO * sizes[0].compute:
            result.append(Series(name_texts[name], metric, protocol_texts[protocol], tuple(sizes)))
    return result


def by_compute(sizes: Sequence[Size]) -> list[list[Size]]:
    """Return the sizes in groups of the same amount of compute, ascending."""
    budgets: list[list[Size]] = []
    for size in sorted(sizes, key=lambda size: size.compute):
        if budgets and size.compute <= SAME_COMPUTE * budgets[-1][-1].compute:
            budgets[-1].append(size)
        else:
            budgets.append([size])
    return budgets


def _size(arm: str, members: list[tuple[RunRecord, float]]) -> Size:
    spec = members[0][0].spec
    rates = {path: value for path, value in flatten(spec["optim"]).items() if path.split(".")[-1].endswith("lr")}
    return Size(
        arm,
        float(np.mean([run.final(TRAIN_COMPUTE) for run, _ in members])),
        float(np.mean([run.final(PARAMETERS) for run, _ in members])),
        float(spec["train"]["steps"] * spec["train"]["batch_size"]),
        canonical_json(spec["model"]),
        ", ".join(f"optim.{path} = {value:g}" for path, value in rates.items() if isinstance(value, int | float)),
        {run.spec["seed"]: value for run, value in members},
    )


def _measured(run: RunRecord) -> Iterator[tuple[str, str, dict[str, Any], float]]:
    """Return the run's first NLL and first FID: metric, how it was measured in short and in full, value."""
    for measurement in islice(run.measured("nll"), 1):
        protocol = {name: measurement.evaluation[name] for name in ("nll", "split")}
        protocol |= measured_weights(measurement.evaluation)
        yield "nll", KINDS["nll"].unit, protocol, run.nll(measurement)
    for measurement in islice(run.measured("fidelity"), 1):
        part, protocol = measurement.evaluation["fidelity"], sampling_protocol(measurement, "fidelity")
        yield "fid", f"{run.extractor(part)}, {part['num_samples']} samples", protocol, run.fidelity(measurement)


def _shared_settings(run: RunRecord) -> dict[str, Any]:
    spec = {key: value for key, value in run.spec.items() if key not in ("seed", "model", "optim", "train")}
    return spec | {"batch_size": run.spec["train"]["batch_size"]}


# -- compute multipliers


@dataclass(frozen=True)
class Multiplier:
    """What a series is worth in compute of another.

    Attributes:
        factor: above 1 ours reaches the same value with less compute.
        shared_p: of the F-test of one exponent for both.
        shared: whether both have one exponent, so that the factor is the same at every value.
        at_value, at_compute: where the factor holds if they do not: the other's law at its largest compute.
    """

    ours: str
    other: str
    metric: str
    protocol: str
    factor: Interval
    shared_p: float
    shared: bool
    at_value: float
    at_compute: float

    @property
    def sentence(self) -> str:
        """The multiplier in words."""
        factor, where = self.factor, "" if self.shared else f", at {KINDS[self.metric].label} {self.at_value:.4g}"
        span = (
            "no interval: too few runs, or too flat"
            if math.isnan(factor.low)
            else f"{factor.low:.2g} to {factor.high:.2g}"
        )
        quantity = f"{KINDS[self.metric].label}{where}"
        return f"{self.ours} is worth {factor.value:.2g}x the compute of {self.other}, {span} ({quantity})"


def multipliers(series: Sequence[Series], baseline: str | None = None) -> list[Multiplier]:
    """Return what each series is worth in compute of another of its metric and protocol.

    Args:
        baseline: an arm of the series that the others are compared with; by default the first series.
    """
    with_law = [each for each in series if each.scaling]
    others: dict[tuple[str, str], Series] = {}
    for each in sorted(with_law, key=lambda each: all(size.arm != baseline for size in each.sizes)):
        others.setdefault((each.metric, each.protocol), each)
    pairs = ((each, others[each.metric, each.protocol]) for each in with_law)
    return [multiplier(each, other) for each, other in pairs if each is not other]


def multiplier(ours: Series, other: Series) -> Multiplier:
    """Compare two series that both have a law."""
    assert ours.scaling and other.scaling
    joint = _Joint(ours, other)
    enough = min(len(each.fitted) for each in (ours, other)) >= MIN_SIZES_FOR_ASYMPTOTE
    forms: tuple[Form, ...] = (POWER, ASYMPTOTE) if enough else (POWER,)
    chosen: Form = other.scaling.chosen.form if enough else POWER
    one, own = ({form: joint.fit(form, shared) for form in forms} for shared in (True, False))
    shared_p = f_test(one[chosen], own[chosen])
    shared = not shared_p < RULED_OUT_P
    laws = one if shared else own
    possible = (
        [laws[ASYMPTOTE]] if enough and f_test(laws[POWER], laws[ASYMPTOTE]) < RULED_OUT_P else list(laws.values())
    )
    reach = [joint.interval_of_factor(law, shared) for law in possible]
    factor = Interval(
        float(np.exp(joint.log_factor(laws[chosen].theta, shared))),
        float(np.min([low for low, _ in reach])),
        float(np.max([high for _, high in reach])),
    )
    at_compute = other.fitted[-1].compute
    at_value = float(np.exp(other.scaling.chosen.log_value(at_compute))[0])
    return Multiplier(
        ours.name, other.name, other.metric, other.protocol, factor, shared_p, shared, at_value, at_compute
    )


class _Joint:
    """Two series fitted together; x is log compute relative to the other's largest."""

    def __init__(self, ours: Series, other: Series):
        sizes = [*ours.fitted, *other.fitted]
        self.cells = cells_of([size.values for size in sizes])
        x = np.log([size.compute / other.fitted[-1].compute for size in sizes])[self.cells.cell]
        ours_too = (self.cells.cell < len(ours.fitted)).astype(float)
        levels = [ours_too, 1 - ours_too]
        self.ones = np.ones((len(x), 1))
        self.shared = np.column_stack([*levels, -x])
        self.own = np.column_stack([*levels, *(-x * level for level in levels)])

    def fit(self, form: Form, shared: bool) -> LogSum:
        line = self.shared if shared else self.own
        terms: Terms = (self.ones, line) if form == ASYMPTOTE else (line,)
        return fit(self.cells, terms, self._starts(form, shared))

    def _starts(self, form: Form, shared: bool) -> np.ndarray:
        if form == POWER:
            return np.zeros((1, 3 if shared else 4))
        of_one = starts_of_asymptotes((self.ones, self.shared[:, [0, 2]]), self.cells.logs)
        asymptote, level, c = of_one.T
        return np.column_stack([asymptote, level, level, c] if shared else [asymptote, level, level, c, c])

    def log_factor(self, theta: np.ndarray, shared: bool) -> np.ndarray:
        """Return log of the factor at the other's largest compute, where x = 0."""
        ours, other, c_ours = (theta[..., -3:] if shared else theta[..., -4:-1]).T
        return (other - ours) / c_ours

    def interval_of_factor(self, law: LogSum, shared: bool) -> tuple[float, float]:
        """Return the interval; NaN where some of the laws do not fall with compute, so that no compute would do."""
        falling = law.draws[:, -1 if shared else -2] > 0
        if not len(falling) or (~falling).mean() > _MAX_RISING_DRAWS:
            return math.nan, math.nan
        low, high = np.exp(interval(self.log_factor(law.draws[falling], shared), self.log_factor(law.theta, shared)))
        return float(low), float(high)
