"""Compare the papers' claims with our own records: reproduced, contradicted or inconclusive, with the numbers.

The claims are data (papers_claims.py). A contrast compares two arms in one metric, all else equal. Arms are told apart
by all their resolved values, never by a name alone: two offsets of the cosine schedule are two arms, and each is
compared on its own. Replicates that share a seed share data order, timesteps and noise, so they are compared in pairs.
The rule:

- from `MIN_PAIRS` pairs on: reproduced or contradicted where the paired difference has a verdict (comparison.py) after
  Holm's correction over all contrasts of the study's claims, else `inconclusive`;
- two or three: `suggests` when the two ranges do not overlap and the difference is beyond the noise of the samples,
  where that is known, else `inconclusive`;
- one: `inconclusive`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from harness import text
from harness.analysis.claims.claim import Between, Claim, Metric, Side, Values
from harness.analysis.claims.papers_claims import CLAIMS
from harness.analysis.mixture import CHAIN, distance_scale
from harness.analysis.runs import Measurement, RunRecord
from harness.analysis.settings import Labels, flatten, measured_weights, settings_of
from harness.analysis.statistics.comparison import MIN_PAIRS, Comparison, compare, correct
from harness.analysis.statistics.noise import sampling_error
from harness.spec.base import canonical_json, digest
from harness.spec.metrics import metric_kind, modes_name

if TYPE_CHECKING:
    import pandas as pd

NLL, FID, FRECHET, NOISE = (metric_kind(kind).label for kind in ("nll_bpd", "fid", "frechet", "gradient_noise_scale"))

RULE = (
    f"Replicates that share a seed are compared in pairs. {MIN_PAIRS} pairs or more: reproduced or contradicted where "
    "the paired difference is on one side, at 95 % after Holm's correction over all contrasts of these claims, and "
    "beyond the noise of the samples where that was recorded. Two or three: suggests, where the ranges do not overlap "
    "either. Else inconclusive. Where several arms fit one side of a claim, each is compared on its own, and the "
    "context says how many there are. Small data and short trainings may differ from the papers' for good reasons: a "
    "verdict is about these runs."
)


@dataclass(frozen=True)
class Contrast:
    """One comparison for a claim, which says that `ours` is lower than `other` in a metric, or higher.

    Attributes:
        context: what both sides have in common; and how many arms fit a side, if it is not one.
        pairs: (ours, other), one per replicate.
        sampling_error: standard error of the mean difference over draws of the samples; 0 where it is not known.
        p_holm: corrected over the contrasts of all claims; None: of this one alone.
        higher: whether the claim says higher.
        margin: the part of the other's value by which `ours` may be worse.
        key: of all settings of both sides; the same contrast in two studies has one.
    """

    context: str
    ours: str
    other: str
    metric: str
    pairs: tuple[tuple[float, float], ...]
    sampling_error: float = 0.0
    p_holm: float | None = None
    higher: bool = False
    margin: float = 0.0
    key: str = ""

    @cached_property
    def comparison(self) -> Comparison:
        """The paired comparison that is judged: of `ours` with the other's value, and the margin on it."""
        ours, limits = self._judged
        compared = compare(ours, limits, floor=self.sampling_error, higher_is_better=self.higher)
        return compared if self.p_holm is None else replace(compared, p_holm=self.p_holm)

    @property
    def _judged(self) -> tuple[np.ndarray, np.ndarray]:
        ours, other = np.array(self.pairs).T
        return ours, other * (1 - self.margin if self.higher else 1 + self.margin)

    @property
    def verdict(self) -> str:
        """reproduced, contradicted, suggests, suggests the opposite, or inconclusive."""
        if len(self.pairs) >= MIN_PAIRS:
            return {"better": "reproduced", "worse": "contradicted"}.get(self.comparison.verdict, "inconclusive")
        if len(self.pairs) < 2 or self.comparison.within_floor:
            return "inconclusive"
        ours, limits = (-values if self.higher else values for values in self._judged)
        if ours.max() < limits.min():
            return "suggests"
        return "suggests the opposite" if ours.min() > limits.max() else "inconclusive"

    def numbers(self) -> str:
        """Return both sides and their difference, with an interval where there is one."""
        compared = compare(*np.array(self.pairs).T)
        interval = f" [{compared.t_low:+.3g}, {compared.t_high:+.3g}]" if compared.n >= 3 else ""
        means = f"{self.ours} {compared.ours:.4g}, {self.other} {compared.other:.4g}"
        return f"{means}; difference {compared.difference:+.3g}{interval}, {text.count(compared.n, 'pair')}"


@dataclass(frozen=True)
class JudgedClaim:
    """A claim, and its contrasts in the records of one study."""

    claim: Claim
    contrasts: tuple[Contrast, ...]

    @property
    def statement(self) -> str:
        return self.claim.statement

    @property
    def source(self) -> str:
        return self.claim.source.text


def judge(runs: Sequence[RunRecord], claims: Sequence[Claim] = CLAIMS) -> list[JudgedClaim]:
    """Return the claims for which a study's records have a contrast, with p-values corrected over all of them."""
    measured: dict[tuple[Metric, Between], list[_Observation]] = {}
    judged = []
    for claim in claims:
        key = claim.metric, claim.num_steps
        if key not in measured:
            measured[key] = [observation for run in runs for observation in _observations(run, *key)]
        if contrasts := tuple(_contrasts(claim, measured[key])):
            judged.append(JudgedClaim(claim, contrasts))
    family = iter(correct([contrast.comparison for one in judged for contrast in one.contrasts]))
    return [
        replace(one, contrasts=tuple(replace(contrast, p_holm=next(family).p_holm) for contrast in one.contrasts))
        for one in judged
    ]


def table(judged: Sequence[JudgedClaim]) -> pd.DataFrame:
    """Return one row per contrast, with the values of every pair."""
    import pandas as pd

    return pd.DataFrame(
        {
            "claim": one.statement,
            "source": one.source,
            "context": contrast.context,
            "metric": contrast.metric,
            "ours": contrast.ours,
            "other": contrast.other,
            "pairs": " ".join(f"{a:.10g}/{b:.10g}" for a, b in contrast.pairs),
            "verdict": contrast.verdict,
        }
        for one in judged
        for contrast in one.contrasts
    )


# ----------------------------------------------------------------------------------------------------------- contrasts


@dataclass
class _Arm:
    """One side of a contrast: runs that are equal in all that the claim varies.

    Attributes:
        name: of the side; of the first, if it is on several.
        settings: the resolved values that the claim varies, by dotted path.
        sides: of the claim.
        values: the metric by seed.
        errors: standard errors over draws of the samples by seed; NaN where they are not known.
    """

    name: str
    settings: dict[str, Any]
    sides: list[Side]
    values: dict[int, float] = field(default_factory=dict)
    errors: dict[int, float] = field(default_factory=dict)


@dataclass
class _Context:
    """Arms that differ only in what a claim varies, measured in the same way.

    Attributes:
        settings: the resolved values and the protocol that all have in common, by dotted path.
        steps: the numbers of sampling steps whose mean is compared, if it is one.
    """

    name: str
    metric: str
    settings: dict[str, Any]
    steps: str
    arms: dict[str, _Arm] = field(default_factory=dict)

    def arms_of(self, side: Side) -> list[tuple[str, _Arm]]:
        """Return the arms on a side, labelled by what tells them apart."""
        return _labelled([replace(arm, name=side.name) for arm in self.arms.values() if side in arm.sides])

    def has(self, sides: Sequence[Side]) -> bool:
        return any(side in arm.sides for arm in self.arms.values() for side in sides)


_Named = TypeVar("_Named", _Arm, _Context)


def _labelled(items: Sequence[_Named]) -> list[tuple[str, _Named]]:
    """Label each item by its name, with the values that tell it from others of the same name."""
    labels = Labels()
    keys = [labels.add(item.name, item.settings) for item in items]
    texts = labels.texts()
    return [(texts[key], item) for key, item in zip(keys, items, strict=True)]


def _contexts(claim: Claim, observations: Sequence[_Observation]) -> list[_Context]:
    """Collect what was measured on either side of a claim, by all settings that the claim does not vary."""
    contexts: dict[str, _Context] = {}
    for observation in observations:
        settings = observation.settings
        sides = [side for side in (*claim.ours, *claim.others) if matches(settings, side.values)]
        if not sides or not matches(settings, claim.where):
            continue
        varied = {path: value for path, value in settings.items() if is_below(path, claim.varies)}
        shared = {path: value for path, value in settings.items() if path not in varied}
        name = observation.arm if claim.named_by == "arm" else str(settings.get(claim.named_by, ""))
        name = f"T = {name}" if claim.named_by == CHAIN else name
        key = canonical_json([observation.metric, shared, observation.steps])
        context = contexts.setdefault(key, _Context(name, observation.metric, shared, observation.steps))
        arm = context.arms.setdefault(canonical_json(varied), _Arm(sides[0].name, varied, sides))
        arm.values.setdefault(observation.seed, observation.value)
        arm.errors.setdefault(observation.seed, observation.error)
    return list(contexts.values())


def _contrasts(claim: Claim, observations: Sequence[_Observation]) -> Iterator[Contrast]:
    contexts = _contexts(claim, observations)
    fitting = [context for context in contexts if context.has(claim.ours) and context.has(claim.others)]
    for label, context in _labelled(fitting):
        for other, ours in itertools.product(claim.others, claim.ours):
            our_arms, other_arms = context.arms_of(ours), context.arms_of(other)
            sides = ((ours, our_arms), (other, other_arms))
            several = [f"{len(arms)} arms are {side.name}" for side, arms in sides if len(arms) > 1]
            name = "; ".join([f"{label} at {context.steps} steps" if context.steps else label, *several])
            for (our_label, our_arm), (other_label, other_arm) in itertools.product(our_arms, other_arms):
                pairs, error = _pairs(our_arm, other_arm)
                if pairs and our_arm.settings != other_arm.settings:
                    yield Contrast(
                        name,
                        our_label,
                        other_label,
                        context.metric,
                        pairs,
                        error,
                        higher=claim.direction == "higher",
                        margin=claim.margin,
                        key=digest([claim.id, context.settings, our_arm.settings, other_arm.settings, context.steps]),
                    )


def _pairs(ours: _Arm, other: _Arm) -> tuple[tuple[tuple[float, float], ...], float]:
    """Return the values of two arms by seed, and the standard error of their mean difference; 0 if it is not known."""
    seeds = sorted(ours.values.keys() & other.values.keys())
    seeds = [seed for seed in seeds if np.isfinite([ours.values[seed], other.values[seed]]).all()]
    errors = [arm.errors[seed] for arm in (ours, other) for seed in seeds]
    error = float(np.linalg.norm(errors)) / max(1, len(seeds))
    return tuple((ours.values[seed], other.values[seed]) for seed in seeds), 0.0 if np.isnan(error) else error


@cache
def is_below(path: str, parts: tuple[str, ...]) -> bool:
    """Return whether a dotted path is one of several parts of a spec, or within one."""
    return any(path == part or path.startswith(f"{part}.") for part in parts)


def matches(settings: Mapping[str, Any], values: Values) -> bool:
    """Return whether settings have all of these values."""
    return all(path in settings and fits(settings[path], value) for path, value in values.items())


def fits(actual: Any, value: Any) -> bool:
    """Return whether a resolved value is the one of a side: equal, any of several, or in the range."""
    if isinstance(value, tuple):
        return any(fits(actual, choice) for choice in value)
    if isinstance(value, Between):
        return isinstance(actual, int | float) and value.low <= actual < value.high
    return bool(actual == value)


# ---------------------------------------------------------------------------------------------------- what was measured


@dataclass(frozen=True)
class _Observation:
    """A value of a run, with all that was resolved for it.

    Attributes:
        metric: its full name.
        settings: the spec without its seed, the protocol below `evaluation`, and `σ²`, by dotted path.
        error: the standard error over draws of the samples; NaN where it is not known.
        steps: the numbers of sampling steps that the value is the mean over, if it is one.
    """

    arm: str
    seed: int
    metric: str
    settings: dict[str, Any]
    value: float
    error: float = float("nan")
    steps: str = ""


def _observations(run: RunRecord, metric: Metric, num_steps: Between) -> Iterator[_Observation]:
    """Return each measured value of a metric.

    Args:
        num_steps: the numbers of sampling steps of a sweep that count.
    """
    part = {"nll": "nll", "fid": "fidelity", "sweep": "sweep", "frechet": "modes", "noise_scale": "noise_scale"}[metric]
    spec = settings_of(run)
    for measurement in run.measured(part):
        shared = spec | {"σ²": run.variance(measurement)}

        def observe(
            label: str, protocol: Mapping[str, Any], value: float, error: float = float("nan"), steps: str = ""
        ) -> _Observation:
            settings = shared | flatten({"evaluation": dict(protocol)})  # noqa: B023 (called within the iteration)
            return _Observation(run.arm, run.spec["seed"], label, settings, value, error, steps)

        evaluation = measurement.evaluation
        own = measured_weights(evaluation) | {"seed": evaluation.get("seed")}
        of_samples = own | {"guidance": evaluation.get("guidance")}
        match metric:
            case "nll":
                yield observe(NLL, own | {part: evaluation[part], "split": evaluation["split"]}, run.nll(measurement))
            case "noise_scale":
                value = run.metric(measurement, "gradient_noise_scale")
                yield observe(NOISE, own | {part: evaluation[part]}, value)
            case "fid":
                extractor = run.extractor(evaluation[part])
                error = sampling_error(run, measurement, "fid")
                yield observe(
                    f"{FID} ({extractor})",
                    of_samples | {part: evaluation[part], "extractor": extractor},
                    run.fidelity(measurement),
                    error.standard_error if error else float("nan"),
                )
            case "frechet":
                modes, length = dict(evaluation[part]), run.spec["diffusion"]["num_timesteps"]
                if length in modes.pop("num_steps"):  # the whole chain, as in SIDDM's table
                    name = modes_name("frechet", modes["num_samples"], modes["sampler"]["name"], length)
                    value = distance_scale(run) * run.metric(measurement, name)
                    yield observe(f"{FRECHET} in the paper's coordinates", of_samples | {part: modes}, value)
            case "sweep":
                for protocol, label, steps, value in _curves(run, measurement, num_steps):
                    yield observe(label, of_samples | protocol, value, steps=steps)


def _curves(
    run: RunRecord, measurement: Measurement, num_steps: Between
) -> Iterator[tuple[dict[str, Any], str, str, float]]:
    """Return the geometric mean of FID over the numbers of sampling steps that count, of each sampler of a sweep."""
    sweep = measurement.evaluation["sweep"]
    curves = run.sweep(measurement)
    shared = {name: value for name, value in sweep.items() if name not in ("samplers", "num_steps", "metrics")}
    for sampler in sweep["samplers"]:
        curve = curves.get(("fid", sampler["name"]))
        values = dict(zip(*curve, strict=True)) if curve else {}
        steps = sorted(count for count in values if fits(int(count), num_steps))
        if steps:
            value = float(np.exp(np.mean(np.log([values[count] for count in steps]))))
            label = f"{FID} ({run.extractor(sweep)})"
            yield {"sweep": shared, "sampler": sampler}, label, ", ".join(map(str, steps)), value
