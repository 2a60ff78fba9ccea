"""Compare the papers' claims with our own records: reproduced, contradicted or inconclusive, with the numbers.

A contrast compares two arms in one metric, all else equal. Arms are told apart by all their resolved values, never by a
name alone: two offsets of the cosine schedule are two arms, and each is compared on its own. Replicates that share a
seed share data order, timesteps and noise, so they are compared in pairs. The rule:

- from `MIN_PAIRS` pairs on: reproduced or contradicted where the paired difference has a verdict (comparison.py) after
  Holm's correction over all contrasts of the study's claims, else `inconclusive`;
- two or three: `suggests` when the two ranges do not overlap and the difference is beyond the noise of the samples,
  where that is known, else `inconclusive`;
- one: `inconclusive`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from harness import text
from harness.analysis.comparison import MIN_PAIRS, Comparison, compare, correct
from harness.analysis.mixture import CHAIN, distance_scale
from harness.analysis.noise import sampling_error
from harness.analysis.runs import RunRecord
from harness.analysis.settings import Labels, measured_weights, sampling_protocol, settings_of
from harness.spec.base import canonical_json
from harness.spec.metrics import metric_kind, modes_name

if TYPE_CHECKING:
    import pandas as pd

NLL, FID, FRECHET = (metric_kind(kind).label for kind in ("nll_bpd", "fid", "frechet"))

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
    """One comparison for a claim, which says that `ours` is lower than `other` in a metric.

    Attributes:
        context: what both sides have in common; and how many arms fit a side, if it is not one.
        pairs: (ours, other), one per replicate.
        sampling_error: standard error of the mean difference over draws of the samples; 0 where it is not known.
        p_holm: corrected over the contrasts of all claims; None: of this one alone.
    """

    context: str
    ours: str
    other: str
    metric: str
    pairs: tuple[tuple[float, float], ...]
    sampling_error: float = 0.0
    p_holm: float | None = None

    @cached_property
    def comparison(self) -> Comparison:
        """The paired comparison."""
        ours, other = np.array(self.pairs).T
        compared = compare(ours, other, floor=self.sampling_error)
        return compared if self.p_holm is None else replace(compared, p_holm=self.p_holm)

    @property
    def verdict(self) -> str:
        """reproduced, contradicted, suggests, suggests the opposite, or inconclusive."""
        ours, other = np.array(self.pairs).T
        if len(self.pairs) >= MIN_PAIRS:
            return {"better": "reproduced", "worse": "contradicted"}.get(self.comparison.verdict, "inconclusive")
        if len(self.pairs) < 2 or self.comparison.within_floor:
            return "inconclusive"
        if ours.max() < other.min():
            return "suggests"
        return "suggests the opposite" if ours.min() > other.max() else "inconclusive"

    def numbers(self) -> str:
        """Return both sides and their difference, with an interval where there is one."""
        compared = self.comparison
        interval = f" [{compared.t_low:+.3g}, {compared.t_high:+.3g}]" if compared.n >= 3 else ""
        means = f"{self.ours} {compared.ours:.4g}, {self.other} {compared.other:.4g}"
        return f"{means}; difference {compared.difference:+.3g}{interval}, {text.count(compared.n, 'pair')}"


@dataclass(frozen=True)
class Claim:
    """A paper's statement, its source, and the contrasts in our records."""

    statement: str
    source: str
    contrasts: tuple[Contrast, ...]


def cosine_beats_linear(runs: Sequence[RunRecord]) -> Claim:
    """Compare schedules under the same objective, in NLL."""
    contexts = _contexts(runs, "nll", _schedule, vary=("diffusion.schedule",))
    return Claim(
        "The cosine schedule reaches a better NLL than the linear one",
        "IDDPM, table 2: CIFAR-10, L_hybrid, 3.17 against 3.26 (paper; dropout differs too)",
        tuple(_contrasts(contexts, "cosine", ["linear"])),
    )


def hybrid_beats_simple(runs: Sequence[RunRecord]) -> Claim:
    """Compare objectives under the same schedule, in NLL."""
    contexts = _contexts(runs, "nll", _objective, vary=_OBJECTIVE)
    return Claim(
        "L_hybrid reaches a better NLL than L_simple",
        "IDDPM, table 2: CIFAR-10, cosine, 3.17 against 3.26 (paper)",
        tuple(_contrasts(contexts, "hybrid", ["simple"])),
    )


def vlb_has_the_best_nll(runs: Sequence[RunRecord]) -> Claim:
    """Compare L_vlb with the other objectives, in NLL."""
    contexts = _contexts(runs, "nll", _objective, vary=_OBJECTIVE)
    return Claim(
        "L_vlb reaches the best NLL",
        "IDDPM, table 2: CIFAR-10, cosine, 2.94 against 3.17 and 3.26 (paper; with importance-sampled t)",
        tuple(_contrasts(contexts, "vlb", ["hybrid", "simple"])),
    )


def vlb_has_the_worst_fid(runs: Sequence[RunRecord]) -> Claim:
    """Compare the other objectives with L_vlb, in FID."""
    contexts = _contexts(runs, "fid", _objective, vary=_OBJECTIVE)
    contrasts = [contrast for name in ("hybrid", "simple") for contrast in _contrasts(contexts, name, ["vlb"])]
    return Claim(
        "... and the worst FID: the others' is lower",
        "IDDPM, table 2: CIFAR-10, cosine, 3.19 and 3.05 against 11.47 (paper)",
        tuple(contrasts),
    )


def ddim_wins_at_few_steps(runs: Sequence[RunRecord]) -> Claim:
    """Compare the samplers on the same weights, below 50 steps."""
    return Claim(
        "DDIM gives a better FID than ancestral sampling below 50 steps",
        "IDDPM, figure 8: models of 4,000 steps (paper)",
        tuple(_sampler_contrasts(runs, "ddim", "ancestral", lambda steps: steps < 50)),
    )


def ancestral_wins_at_many_steps(runs: Sequence[RunRecord]) -> Claim:
    """Compare the samplers on the same weights, from 50 steps on."""
    return Claim(
        "... and a worse one from 50 steps on",
        "IDDPM, figure 8: models of 4,000 steps (paper)",
        tuple(_sampler_contrasts(runs, "ancestral", "ddim", lambda steps: steps >= 50)),
    )


def ddgan_needs_more_steps(runs: Sequence[RunRecord]) -> Claim:
    """Compare chains of DDGAN with that of two steps, on the mixture."""
    contexts = _contexts([run for run in runs if _method(run) == DDGAN], "modes", _steps, (CHAIN,), _method)
    contrasts = [contrast for steps in ("4", "8", "16") for contrast in _contrasts(contexts, steps, ["2"])]
    return Claim(
        "On the mixture DDGAN needs more than two steps: chains of 4, 8 and 16 are better",
        "SIDDM, table 1: 0.99, 0.49 and 0.53 against 7.27 (second-hand)",
        tuple(contrasts),
    )


def siddm_needs_afd(runs: Sequence[RunRecord]) -> Claim:
    """Compare SIDDM with and without the auxiliary forward diffusion term, on the mixture."""
    return Claim(
        "On the mixture SIDDM is better with the AFD term than without, for every number of steps",
        "SIDDM, table 1: for 2, 4, 8 and 16 steps 0.14, 1.21, 0.30 and 0.23 against 21.19, 53.22, 7.04 and 14.37 "
        "(second-hand)",
        tuple(_method_contrasts(runs, SIDDM, WITHOUT_AFD, (2, 4, 8, 16))),
    )


def siddm_beats_ddgan(runs: Sequence[RunRecord]) -> Claim:
    """Compare SIDDM with DDGAN on the mixture, where the paper has it in front."""
    return Claim(
        "On the mixture SIDDM is better than DDGAN with 2, 8 and 16 steps",
        "SIDDM, table 1: 0.14, 0.30 and 0.23 against 7.27, 0.49 and 0.53 (second-hand)",
        tuple(_method_contrasts(runs, SIDDM, DDGAN, (2, 8, 16))),
    )


def ddgan_beats_siddm_with_four_steps(runs: Sequence[RunRecord]) -> Claim:
    """Compare DDGAN with SIDDM on the mixture, where the paper has DDGAN in front."""
    return Claim(
        "... and worse with 4",
        "SIDDM, table 1: 1.21 against 0.99 (second-hand)",
        tuple(_method_contrasts(runs, DDGAN, SIDDM, (4,))),
    )


def table(claims: Sequence[Claim]) -> pd.DataFrame:
    """Return one row per contrast, with the values of every pair."""
    import pandas as pd

    return pd.DataFrame(
        {
            "claim": claim.statement,
            "source": claim.source,
            "context": contrast.context,
            "metric": contrast.metric,
            "ours": contrast.ours,
            "other": contrast.other,
            "pairs": " ".join(f"{a:.10g}/{b:.10g}" for a, b in contrast.pairs),
            "verdict": contrast.verdict,
        }
        for claim in claims
        for contrast in claim.contrasts
    )


def judge(runs: Sequence[RunRecord]) -> list[Claim]:
    """Return every claim for which the records have a contrast, with p-values corrected over all of them."""
    claims = [claim for claim in (function(runs) for function in CLAIMS) if claim.contrasts]
    family = iter(correct([contrast.comparison for claim in claims for contrast in claim.contrasts]))
    return [
        replace(
            claim,
            contrasts=tuple(replace(contrast, p_holm=next(family).p_holm) for contrast in claim.contrasts),
        )
        for claim in claims
    ]


# ----------------------------------------------------------------------------------------------------------- contrasts

_OBJECTIVE = ("objective", "diffusion.var_type", "timestep_sampler")  # L_vlb's rows are trained with sampled t


@dataclass
class _Arm:
    """One side of a contrast: runs that are equal in all that the claim varies.

    Attributes:
        name: of its schedule or objective.
        settings: the resolved values that the claim varies, by dotted path.
        values: the metric by seed.
        errors: standard errors over draws of the samples by seed; NaN where they are not known.
    """

    name: str
    settings: dict[str, Any]
    values: dict[int, float] = field(default_factory=dict)
    errors: dict[int, float] = field(default_factory=dict)


@dataclass
class _Context:
    """Arms that differ only in what a claim varies, measured in the same way.

    Attributes:
        settings: the resolved values and the protocol that all have in common, by dotted path.
    """

    name: str
    metric: str
    settings: dict[str, Any]
    arms: dict[str, _Arm] = field(default_factory=dict)

    def arms_of(self, name: str) -> list[tuple[str, _Arm]]:
        """Return the arms with a schedule or objective of this name, labelled by what tells them apart."""
        return _labelled([arm for arm in self.arms.values() if arm.name == name])


_Named = TypeVar("_Named", _Arm, _Context)


def _labelled(items: Sequence[_Named]) -> list[tuple[str, _Named]]:
    """Label each item by its name, with the values that tell it from others of the same name."""
    labels = Labels()
    keys = [labels.add(item.name, item.settings) for item in items]
    texts = labels.texts()
    return [(texts[key], item) for key, item in zip(keys, items, strict=True)]


def _schedule(run: RunRecord) -> str:
    return run.named("diffusion.schedule")


def _objective(run: RunRecord) -> str:
    return run.named("objective")


DDGAN, SIDDM, WITHOUT_AFD = "DDGAN", "SIDDM", "SIDDM without AFD"


def _method(run: RunRecord) -> str:
    """Return the system of SIDDM's table 1 that a run is of, else the name of its method."""
    method = run.spec.get("method") or {}
    match method.get("name", ""):
        case "ddgan":
            return DDGAN
        case "siddm" if method.get("adversarial", True):
            return SIDDM if method.get("lambda_afd", 1) else WITHOUT_AFD
        case name:
            return str(name)


def _steps(run: RunRecord) -> str:
    return str(run.spec["diffusion"]["num_timesteps"])


def _contexts(
    runs: Sequence[RunRecord],
    metric: str,
    setting: Callable[[RunRecord], str],
    vary: tuple[str, ...],
    named: Callable[[RunRecord], str] | None = None,
) -> list[_Context]:
    """Collect a metric of runs whose specs are equal except for `vary` and the seed, with the same protocol.

    Args:
        named: names a context by one of its runs; by default by the objective or the schedule, whichever is not varied.
    """
    named = named or (_objective if setting is _schedule else _schedule)
    contexts: dict[str, _Context] = {}
    for run in runs:
        spec = settings_of(run)
        varied = {path: value for path, value in spec.items() if _is_below(path, vary)}
        shared = {path: value for path, value in spec.items() if path not in varied}
        name = named(run)
        for label, protocol, variance, value, error in _values(run, metric):
            # The evaluation chooses the variance of the reverse process where the objective leaves it open.
            own, common = ({"σ²": variance}, {}) if "diffusion.var_type" in vary else ({}, {"σ²": variance})
            settings = shared | {"evaluation": protocol} | common
            context = contexts.setdefault(canonical_json(settings), _Context(name, label, settings))
            arm = context.arms.setdefault(canonical_json(varied | own), _Arm(setting(run), varied | own))
            arm.values.setdefault(run.spec["seed"], value)
            arm.errors.setdefault(run.spec["seed"], error)
    return list(contexts.values())


def _is_below(path: str, parts: tuple[str, ...]) -> bool:
    return any(path == part or path.startswith(f"{part}.") for part in parts)


def _values(run: RunRecord, metric: str) -> Iterator[tuple[str, dict[str, Any], str, float, float]]:
    """Return each measured value: the metric's full name, the protocol, the variance, the value and its error.

    The error is over draws of the samples, NaN where it is not known.
    """
    part = {"nll": "nll", "fid": "fidelity", "modes": "modes"}[metric]
    for measurement in run.measured(part):
        evaluation = measurement.evaluation
        weights = measured_weights(evaluation)
        protocol = {part: evaluation[part]} | weights
        variance = run.variance(measurement)
        if metric == "modes":
            modes, steps = dict(evaluation["modes"]), run.spec["diffusion"]["num_timesteps"]
            if steps in modes.pop("num_steps"):  # the whole chain, as in SIDDM's table
                name = modes_name("frechet", modes["num_samples"], modes["sampler"]["name"], steps)
                value = distance_scale(run) * run.metric(measurement, name)
                own = {"modes": modes, "guidance": evaluation.get("guidance")} | weights
                yield f"{FRECHET} in the paper's coordinates", own, variance, value, np.nan
        elif metric == "nll":
            yield NLL, protocol | {"split": evaluation["split"]}, variance, run.nll(measurement), np.nan
        else:
            extractor = run.extractor(evaluation[part])
            own = protocol | {"guidance": evaluation.get("guidance"), "extractor": extractor}
            error = sampling_error(run, measurement, "fid")
            standard_error = error.standard_error if error else np.nan
            yield f"{FID} ({extractor})", own, variance, run.fidelity(measurement), standard_error


def _contrasts(contexts: Sequence[_Context], ours: str, others: list[str]) -> Iterator[Contrast]:
    named = ({arm.name for arm in context.arms.values()} for context in contexts)
    fitting = [context for context, names in zip(contexts, named, strict=True) if ours in names and {*others} & names]
    for label, context in _labelled(fitting):
        for other in others:
            our_arms, other_arms = context.arms_of(ours), context.arms_of(other)
            sides = ((ours, our_arms), (other, other_arms))
            several = [f"{len(arms)} arms are {name}" for name, arms in sides if len(arms) > 1]
            for (our_label, our_arm), (other_label, other_arm) in itertools.product(our_arms, other_arms):
                seeds = sorted(our_arm.values.keys() & other_arm.values.keys())
                seeds = [seed for seed in seeds if not np.isnan([our_arm.values[seed], other_arm.values[seed]]).any()]
                pairs = [(our_arm.values[seed], other_arm.values[seed]) for seed in seeds]
                errors = [arm.errors[seed] for arm in (our_arm, other_arm) for seed in seeds]
                if pairs:
                    context_text = "; ".join([label, *several])
                    error = float(np.linalg.norm(errors)) / len(pairs)
                    noise = 0.0 if np.isnan(error) else error
                    yield Contrast(context_text, our_label, other_label, context.metric, tuple(pairs), noise)


def _method_contrasts(runs: Sequence[RunRecord], ours: str, other: str, steps: Sequence[int]) -> Iterator[Contrast]:
    """Compare two methods on the mixture for each of the numbers of steps; each has its own optimizer's settings."""
    contexts = _contexts(runs, "modes", _method, ("method", "optim"), lambda run: f"T = {_steps(run)}")
    for count in steps:
        yield from _contrasts([context for context in contexts if context.settings[CHAIN] == count], ours, [other])


def _sampler_contrasts(
    runs: Sequence[RunRecord], ours: str, other: str, counts: Callable[[int], bool]
) -> Iterator[Contrast]:
    """Compare two samplers on the same weights by the geometric mean of FID over the numbers of steps that count."""
    sweeps: dict[str, _Context] = {}
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for run in runs:
        for measurement in run.measured("sweep"):
            curves = {
                sampler: dict(zip(*curve, strict=True))
                for (kind, sampler), curve in run.sweep(measurement).items()
                if kind == "fid"
            }
            our_curve, other_curve = curves.get(ours, {}), curves.get(other, {})
            steps = [step for step in sorted(our_curve.keys() & other_curve.keys()) if counts(step)]
            if not steps:
                continue
            middle = [float(np.exp(np.mean(np.log([curve[s] for s in steps])))) for curve in (our_curve, other_curve)]
            sweep, protocol = measurement.evaluation["sweep"], sampling_protocol(measurement, "sweep")
            metric = f"{FID} ({run.extractor(sweep)})"
            key = canonical_json([run.arm, metric, protocol])
            sweeps.setdefault(key, _Context(run.arm, metric, protocol))
            pairs.setdefault((key, ", ".join(map(str, steps))), []).append((middle[0], middle[1]))
    labels = dict(zip(sweeps, _labelled(list(sweeps.values())), strict=True))
    for (key, steps_text), values in pairs.items():
        label, sweep_context = labels[key]
        yield Contrast(f"{label} at {steps_text} steps", ours, other, sweep_context.metric, tuple(values))


CLAIMS: tuple[Callable[[Sequence[RunRecord]], Claim], ...] = (
    cosine_beats_linear,
    hybrid_beats_simple,
    vlb_has_the_best_nll,
    vlb_has_the_worst_fid,
    ddim_wins_at_few_steps,
    ancestral_wins_at_many_steps,
    ddgan_needs_more_steps,
    siddm_needs_afd,
    siddm_beats_ddgan,
    ddgan_beats_siddm_with_four_steps,
)
