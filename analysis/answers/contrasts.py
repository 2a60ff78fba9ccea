"""The contrasts of a study: every arm against a baseline, chosen or all pairs of arms, main effects and interactions.

Runs are paired by seed. The main effect of a value averages, within each seed, over all settings that differ in that
value alone, as in a factorial design; so each seed gives one difference, and the seeds stay the replicates. The
interaction of two values is the difference between the effects of the one at two values of the other.

The contrasts of one metric are one family: their p-values are corrected together (Holm).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from harness.analysis.answers import results
from harness.analysis.runs import RunRecord
from harness.analysis.settings import Labels, brief, settings_of
from harness.analysis.statistics.comparison import MAX_FORECAST, Comparison, compare, correct
from harness.errors import RecordError
from harness.spec.base import canonical_json
from harness.spec.presentation import Compare
from harness.text import count, device_time, did_you_mean


@dataclass(frozen=True)
class Quantity:
    """What is compared: a metric of one evaluation under one protocol.

    Attributes:
        metric: as in the results table: nll, fid, ..., or a plugin's.
        label: for people, with the feature extractor.
    """

    metric: str
    label: str
    evaluation: str
    protocol: str
    protocol_id: str

    @property
    def higher_is_better(self) -> bool:
        return results.kind_of(self.metric).direction == "maximize"

    def is_called(self, name: str) -> bool:
        """Return whether `fid` or `eval/fid` is this one."""
        return name in (self.metric, f"{self.evaluation}/{self.metric}")


@dataclass(frozen=True)
class Contrast:
    """Two sides of a study in one quantity.

    Attributes:
        factors: the parts of the spec whose values the sides are; two for an interaction, none for arms.
        seeds: of the pairs, in order.
        left_out: seeds that one of the sides has no finite value of.
        seconds_per_pair: what one more pair would take on one device; None if it is not known.
    """

    quantity: Quantity
    ours: str
    other: str
    comparison: Comparison
    seeds: tuple[int, ...]
    factors: tuple[str, ...] = ()
    left_out: tuple[int, ...] = ()
    seconds_per_pair: float | None = None

    @property
    def verdict(self) -> str:
        """The verdict in words, with what is missing where there is none."""
        verdict = self.comparison.verdict
        if verdict == "equivalent":
            return "equivalent within the noise of the evaluation"
        return verdict if verdict != "inconclusive" else f"inconclusive: {self.missing}"

    @property
    def missing(self) -> str:
        """What an undecided contrast lacks for a verdict."""
        pairs, hours, n = self.comparison.pairs_to_decide, self.hours_to_decide, self.comparison.n
        if pairs is None:
            return f"{MAX_FORECAST} seeds would not decide" if n > 1 else "one seed"
        cost = f", about {device_time(hours)}" if hours else ""
        return f"{count(pairs - n, 'more seed')} would decide{cost}"

    @property
    def hours_to_decide(self) -> float | None:
        """Forecast the device hours of the pairs that a verdict still takes."""
        pairs = self.comparison.pairs_to_decide
        if pairs is None or self.seconds_per_pair is None:
            return None
        return (pairs - self.comparison.n) * self.seconds_per_pair / 3600


def contrasts(
    runs: Sequence[RunRecord],
    *,
    baseline: str | None = None,
    metric: str | None = None,
    pairs: Literal["all"] | Sequence[tuple[str, str]] = (),
    by: Sequence[str] = (),
) -> list[Contrast]:
    """Compare the sides of a study in pairs, in each metric that has a better direction.

    Args:
        runs: of one study.
        baseline: the arm, or the value of `by`, that the others are compared with; the first by default.
        metric: only this one, such as fid, or eval/fid of one evaluation.
        pairs: `all`, or those arms that are compared, (ours, other); instead of a baseline.
        by: values or parts of the spec by dotted path, such as `diffusion.schedule`, instead of arms: the main effect
            of each, and the interactions of any two.

    Raises:
        RecordError: no such side, metric or path; the message lists the choices.
    """
    for path in by:
        _require_path(runs, path)
    result: list[Contrast] = []
    families: dict[Quantity, list[Contrast]] = {}
    factors: list[tuple[str, ...]] = [(path,) for path in by] or [()]
    sides_of = {factor: _sides(runs, factor) for factor in factors}
    names = {factor: [name for side in sides.values() for (name,) in side] for factor, sides in sides_of.items()}
    for name in filter(None, [baseline, *itertools.chain(*(pairs if pairs != "all" else ()))]):
        _choose(name, list(dict.fromkeys(itertools.chain(*names.values()))), "value" if by else "arm")
    for factor, sides in sides_of.items():
        for quantity in _chosen(sides, metric):
            measured = {name: side for (name,), side in sides[quantity].items()}
            for ours, other in _pairs_of_sides(list(measured), baseline if baseline in names[factor] else None, pairs):
                if contrast := _contrast(quantity, (ours, other), [measured[ours]], [measured[other]]):
                    families.setdefault(quantity, []).append(replace(contrast, factors=factor))
    for two in itertools.combinations(by, 2):
        sides = _sides(runs, two)
        for quantity in _chosen(sides, metric):
            interactions = [replace(contrast, factors=two) for contrast in _interactions(quantity, sides[quantity])]
            families.setdefault(quantity, []).extend(interactions)
    for family in families.values():
        corrected = correct([contrast.comparison for contrast in family])
        result += [
            replace(contrast, comparison=comparison) for contrast, comparison in zip(family, corrected, strict=True)
        ]
    return result


def contrasts_of(runs: Sequence[RunRecord], compare: Compare, *, metric: str | None = None) -> list[Contrast]:
    """Compare what a study's `compare` names: its arms, then main effects and interactions.

    Args:
        metric: as in `contrasts`; all by default.
    """
    of_arms = contrasts(runs, baseline=compare.baseline, pairs=compare.pairs, metric=metric)
    return of_arms + (contrasts(runs, by=compare.by, metric=metric) if compare.by else [])


def deciding(compared: Iterable[Contrast], compare: Compare) -> list[Contrast]:
    """Return the contrasts in the metric that decides a study's question: all, if it names none."""
    return [contrast for contrast in compared if compare.metric is None or contrast.quantity.is_called(compare.metric)]


def _chosen(quantities: Iterable[Quantity], metric: str | None) -> list[Quantity]:
    """Return the quantities of a metric, `fid` or `eval/fid`; without one, those that have a better direction."""
    quantities = list(quantities)
    if metric is None:
        return [quantity for quantity in quantities if results.kind_of(quantity.metric).direction is not None]
    chosen = [quantity for quantity in quantities if quantity.is_called(metric)]
    if quantities and not chosen:
        known = [quantity.metric for quantity in quantities]
        known += [f"{quantity.evaluation}/{quantity.metric}" for quantity in quantities] if "/" in metric else []
        raise RecordError(f"no metric {metric!r} was measured: {did_you_mean(metric, list(dict.fromkeys(known)))}")
    return chosen


# -- what is measured


@dataclass
class _Value:
    value: float
    standard_error: float
    seconds: float


_Side = dict[str, dict[int, _Value]]
"""The values of one side, by context (what else differs within the side) and seed."""


def _sides(runs: Sequence[RunRecord], factors: Sequence[str]) -> dict[Quantity, dict[tuple[str, ...], _Side]]:
    """Return what was measured of each side: an arm, or the runs with one value of each factor."""
    sides: dict[Quantity, dict[tuple[str, ...], _Side]] = {}
    places, data_of = _places(runs, factors), results.data_texts(runs)
    for run in runs:
        if run.run_key not in places:
            continue
        name, context = places[run.run_key]
        for measurement in run.measurements:
            for model, _, metric, protocol, value in results.measured_values(run, measurement, data_of[run.run_key]):
                if model != results.TRAINED:
                    continue
                kind = results.kind_of(metric)
                label = f"{kind.axis} ({protocol.extractor})" if protocol.extractor else kind.axis
                quantity = Quantity(metric, label, measurement.name, protocol.text, protocol.id)
                side = sides.setdefault(quantity, {}).setdefault(name, {})
                error = results.standard_error(run, measurement, metric)
                side.setdefault(context, {})[run.spec["seed"]] = _Value(value, error, _training_seconds(run))
    return sides


def _places(runs: Sequence[RunRecord], factors: Sequence[str]) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return the side and the context of each run, by run_key."""
    if not factors:
        return {run.run_key: ((run.arm,), "") for run in runs}
    along = {path for factor in factors for path in changes_along(runs, factor)}
    keys: dict[str, list[Any]] = {}
    contexts: dict[str, str] = {}
    labels = [Labels() for _ in factors]
    for run in runs:
        settings = settings_of(run)
        parts = [factor.removesuffix(".name") for factor in factors]
        own = [{path: value for path, value in settings.items() if _is_within(path, part)} for part in parts]
        if all(own):
            keys[run.run_key] = [
                label.add(_name(part, values), values) for label, part, values in zip(labels, parts, own, strict=True)
            ]
            rest = {path: value for path, value in settings.items() if path not in along}
            rest = {path: value for path, value in rest.items() if not any(path in values for values in own)}
            contexts[run.run_key] = canonical_json(rest)
    texts = [label.texts() for label in labels]
    return {
        run_key: (tuple(names[key] for names, key in zip(texts, own_keys, strict=True)), contexts[run_key])
        for run_key, own_keys in keys.items()
    }


def _name(part: str, values: dict[str, Any]) -> str:
    return str(values.get(f"{part}.name", "") if f"{part}.name" in values else brief(next(iter(values.values()))))


def changes_along(runs: Sequence[RunRecord], by: str) -> list[str]:
    """Return which other values of the spec change with a value, so that their effects cannot be told apart.

    L_simple's fixed variance is one, by `objective`. Each value of `by` has one value of theirs in all runs.
    """
    part = by.removesuffix(".name")
    seen: dict[str, dict[str, set[str]]] = {}
    all_settings = [settings_of(run) for run in runs]
    paths = dict.fromkeys(path for settings in all_settings for path in settings if not _is_within(path, part))
    for settings in all_settings:
        own = canonical_json({path: value for path, value in settings.items() if _is_within(path, part)})
        for path in paths:
            seen.setdefault(path, {}).setdefault(own, set()).add(canonical_json(settings.get(path)))
    return [
        path
        for path, by_own in seen.items()
        if all(len(values) == 1 for values in by_own.values()) and len(set.union(*by_own.values())) > 1
    ]


def _is_within(path: str, part: str) -> bool:
    return path == part or path.startswith(f"{part}.")


def _training_seconds(run: RunRecord) -> float:
    """Return how long the training took at its usual speed, on each device; NaN if that is not known."""
    _, speeds = run.history("perf/steps_per_second")
    return run.spec["train"]["steps"] / float(np.median(speeds)) if len(speeds) else math.nan


def _pairs_of_sides(
    names: list[str], baseline: str | None, pairs: Literal["all"] | Sequence[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    if pairs == "all":
        yield from ((ours, other) for other, ours in itertools.combinations(names, 2))
    elif pairs:
        yield from (pair for pair in pairs if set(pair) <= set(names))
    elif (other := baseline or names[0]) in names:
        yield from ((ours, other) for ours in names if ours != other)


def _interactions(quantity: Quantity, sides: dict[tuple[str, ...], _Side]) -> Iterator[Contrast]:
    """Compare the effect of a first factor's values between the values of a second, each against the first value."""
    first, second = (list(dict.fromkeys(names)) for names in zip(*sides, strict=True))
    for a, b in itertools.product(first[1:], second[1:]):
        corners = (a, b), (first[0], b), (a, second[0]), (first[0], second[0])
        if all(corner in sides for corner in corners):
            effects = [f"{a} − {first[0]}, {value}" for value in (b, second[0])]
            high, low_high, high_low, low = (sides[corner] for corner in corners)
            if contrast := _contrast(quantity, (effects[0], effects[1]), [high, low_high], [high_low, low]):
                yield contrast


def _contrast(quantity: Quantity, names: tuple[str, str], ours: list[_Side], other: list[_Side]) -> Contrast | None:
    """Pair two sides by seed; None if they have no pair.

    Args:
        ours, other: the values of a side; or of two, whose difference is compared.
    """
    sides = [*ours, *other]
    contexts = [context for context in sides[0] if all(context in side for side in sides)]
    seeds = sorted({seed for side in sides for context in contexts for seed in side[context]})
    by_seed: dict[int, list[list[_Value]]] = {}  # all sides, each in every context
    for seed in seeds:
        values = [
            [value for context in contexts if (value := side[context].get(seed)) and math.isfinite(value.value)]
            for side in sides
        ]
        if all(len(side) == len(contexts) for side in values):
            by_seed[seed] = values
    if not by_seed:
        return None
    means = np.array([[np.mean([value.value for value in side]) for side in values] for values in by_seed.values()])
    signs = np.array([1, -1])[: len(ours)]
    all_values = [value for values in by_seed.values() for side in values for value in side]
    seconds = [value.seconds for value in all_values]
    # Replicates are evaluated on the same images and noise, so their errors do not average out.
    floor = math.sqrt(len(sides) * float(np.mean([value.standard_error**2 for value in all_values])))
    return Contrast(
        quantity,
        *names,
        compare(
            means[:, : len(ours)] @ signs,
            means[:, len(ours) :] @ signs,
            floor=floor,
            higher_is_better=quantity.higher_is_better,
        ),
        tuple(by_seed),
        left_out=tuple(seed for seed in seeds if seed not in by_seed),
        seconds_per_pair=None if np.isnan(seconds).any() else float(np.sum(seconds) / len(by_seed)),
    )


# -- choices


def _choose(name: str, choices: Sequence[str], what: str) -> str:
    """Return a name that is one of the choices; else raise a RecordError with them."""
    if name not in choices:
        raise RecordError(f"no {what} {name!r} was measured: {did_you_mean(name, choices)}")
    return name


def _require_path(runs: Iterable[RunRecord], by: str) -> None:
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in settings_of(run).items():
            values.setdefault(key, set()).add(canonical_json(value))
    varied = [key for key, different in values.items() if len(different) > 1]
    if not any(_is_within(path, by.removesuffix(".name")) for path in varied):
        choices = list(dict.fromkeys(path.removesuffix(".name") for path in varied))
        raise RecordError(f"no value {by!r} differs between the arms: {did_you_mean(by, choices)}")


def as_values(contrast: Contrast) -> dict[str, Any]:
    """Return a contrast as plain values, for JSON: numbers that are not known are None."""
    comparison, quantity = contrast.comparison, contrast.quantity
    numbers = {
        name: getattr(comparison, name)
        for name in (
            *("n", "ours", "other", "difference", "t_low", "t_high"),
            *("p", "p_holm", "p_flip", "effect_size", "correlation", "floor"),
        )
    }
    numbers["bca_low"], numbers["bca_high"] = comparison.bca
    known = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in numbers.items()}
    return {
        "metric": quantity.metric,
        "evaluation": quantity.evaluation,
        "protocol": quantity.protocol,
        "protocol_id": quantity.protocol_id,
        "ours_name": contrast.ours,
        "other_name": contrast.other,
        "factors": list(contrast.factors),
        **known,
        "verdict": comparison.verdict,
        "pairs_to_decide": comparison.pairs_to_decide,
        "device_hours_to_decide": contrast.hours_to_decide,
        "seeds": list(contrast.seeds),
        "seeds_left_out": list(contrast.left_out),
    }
