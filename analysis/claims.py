"""Compare the papers' claims with our own records: supported, contradicted or inconclusive, with the numbers.

A contrast compares two settings in one metric, all else equal. Replicates that share a seed share data order, timesteps
and noise, so they are compared in pairs. The rule:

- three pairs or more: the 95 % t-interval of the difference excludes 0, or the verdict is `inconclusive`;
- two: `suggests` when the two ranges do not overlap, else `inconclusive`;
- one: `inconclusive`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from harness.analysis.intervals import t_interval
from harness.analysis.runs import RunRecord
from harness.spec.base import canonical_json
from harness.spec.metrics import metric_kind

if TYPE_CHECKING:
    import pandas as pd

NLL, FID = metric_kind("nll_bpd").label, metric_kind("fid").label

RULE = (
    "Replicates that share a seed are compared in pairs. Three pairs or more: supported or contradicted where the 95 % "
    "t-interval of the difference excludes 0. Two: suggests, where the ranges do not overlap. Else inconclusive. "
    "No correction for the number of comparisons. Small data and short trainings may differ from the papers' for good "
    "reasons: a verdict is about these runs."
)


@dataclass(frozen=True)
class Contrast:
    """One comparison for a claim, which says that `ours` is lower than `other` in a metric.

    Attributes:
        context: what both sides have in common.
        pairs: (ours, other), one per replicate.
    """

    context: str
    ours: str
    other: str
    metric: str
    pairs: tuple[tuple[float, float], ...]

    @property
    def verdict(self) -> str:
        """supported, contradicted, suggests, suggests the opposite, or inconclusive."""
        ours, other = np.array(self.pairs).T
        if len(self.pairs) >= 3:
            low, high = t_interval(ours - other)
            return "supported" if high < 0 else "contradicted" if low > 0 else "inconclusive"
        if len(self.pairs) == 2 and ours.max() < other.min():
            return "suggests"
        if len(self.pairs) == 2 and ours.min() > other.max():
            return "suggests the opposite"
        return "inconclusive"

    def numbers(self) -> str:
        """Return both sides and their difference, with an interval where there is one."""
        ours, other = np.array(self.pairs).T
        difference = f"difference {(ours - other).mean():+.3g}"
        if len(self.pairs) >= 3:
            low, high = t_interval(ours - other)
            difference += f" [{low:+.3g}, {high:+.3g}]"
        count = f"{len(self.pairs)} pair{'s' if len(self.pairs) > 1 else ''}"
        return f"{self.ours} {ours.mean():.4g}, {self.other} {other.mean():.4g}; {difference}, {count}"


@dataclass(frozen=True)
class Claim:
    """A paper's statement, its source, and the contrasts in our records."""

    statement: str
    source: str
    contrasts: tuple[Contrast, ...]


def cosine_beats_linear(runs: Sequence[RunRecord]) -> Claim:
    """Compare schedules under the same objective, in NLL."""
    contexts = _settings(runs, "nll", _schedule, vary=("diffusion.schedule",))
    return Claim(
        "The cosine schedule reaches a better NLL than the linear one",
        "IDDPM, table 2: CIFAR-10, L_hybrid, 3.17 against 3.26 (paper; dropout differs too)",
        tuple(_contrasts(contexts, "cosine", ["linear"])),
    )


def hybrid_beats_simple(runs: Sequence[RunRecord]) -> Claim:
    """Compare objectives under the same schedule, in NLL."""
    contexts = _settings(runs, "nll", _objective, vary=_OBJECTIVE)
    return Claim(
        "L_hybrid reaches a better NLL than L_simple",
        "IDDPM, table 2: CIFAR-10, cosine, 3.17 against 3.26 (paper)",
        tuple(_contrasts(contexts, "hybrid", ["simple"])),
    )


def vlb_has_the_best_nll(runs: Sequence[RunRecord]) -> Claim:
    """Compare L_vlb with the other objectives, in NLL."""
    contexts = _settings(runs, "nll", _objective, vary=_OBJECTIVE)
    return Claim(
        "L_vlb reaches the best NLL",
        "IDDPM, table 2: CIFAR-10, cosine, 2.94 against 3.17 and 3.26 (paper; with importance-sampled t)",
        tuple(_contrasts(contexts, "vlb", ["hybrid", "simple"])),
    )


def vlb_has_the_worst_fid(runs: Sequence[RunRecord]) -> Claim:
    """Compare the other objectives with L_vlb, in FID."""
    contexts = _settings(runs, "fid", _objective, vary=_OBJECTIVE)
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
    """Return every claim for which the records have a contrast."""
    return [claim for claim in (function(runs) for function in CLAIMS) if claim.contrasts]


# ----------------------------------------------------------------------------------------------------------- contrasts

_OBJECTIVE = ("objective", "diffusion.var_type", "timestep_sampler")  # L_vlb's rows are trained with sampled t


@dataclass
class _Context:
    """Runs that differ in one setting: a metric by setting and seed."""

    name: str
    metric: str
    values: dict[str, dict[int, float]] = field(default_factory=dict)


def _schedule(run: RunRecord) -> str:
    return run.named("diffusion.schedule")


def _objective(run: RunRecord) -> str:
    return run.named("objective")


def _settings(
    runs: Sequence[RunRecord], metric: str, setting: Callable[[RunRecord], str], vary: tuple[str, ...]
) -> list[_Context]:
    """Collect a metric of runs whose specs are equal except for `vary` and the seed, with the same protocol."""
    contexts: dict[str, _Context] = {}
    for run in runs:
        shared = canonical_json(_without(run.spec, ("seed", *vary)))
        name = _objective(run) if setting is _schedule else _schedule(run)
        for label, protocol, value in _values(run, metric):
            context = contexts.setdefault(shared + protocol, _Context(name, label))
            # If a study evaluates the same weights twice (with beta, with beta-tilde), the first counts.
            context.values.setdefault(setting(run), {}).setdefault(run.spec["seed"], value)
    return list(contexts.values())


def _values(run: RunRecord, metric: str) -> Iterator[tuple[str, str, float]]:
    """Return each measured value with the metric's full name and the protocol that both sides must share."""
    if metric == "nll":
        for measurement in run.measured("nll"):
            evaluation = measurement.evaluation
            yield NLL, canonical_json([evaluation["nll"], evaluation["split"]]), run.nll(measurement)
    else:
        for measurement in run.measured("fidelity"):
            part = measurement.evaluation["fidelity"]
            yield f"{FID} ({run.extractor(part)})", canonical_json(part), run.fidelity(measurement)


def _without(spec: dict, paths: tuple[str, ...]) -> dict:
    remaining = {key: dict(value) if isinstance(value, dict) else value for key, value in spec.items()}
    for path in paths:
        head, _, tail = path.partition(".")
        (remaining.get(head, {}) if tail else remaining).pop(tail or head, None)
    return remaining


def _contrasts(contexts: list[_Context], ours: str, others: list[str]) -> Iterator[Contrast]:
    for context in contexts:
        for other in others:
            our_values, other_values = context.values.get(ours, {}), context.values.get(other, {})
            pairs = [(our_values[seed], other_values[seed]) for seed in sorted(our_values.keys() & other_values.keys())]
            pairs = [pair for pair in pairs if not np.isnan(pair).any()]
            if pairs:
                yield Contrast(context.name, ours, other, context.metric, tuple(pairs))


def _sampler_contrasts(
    runs: Sequence[RunRecord], ours: str, other: str, counts: Callable[[int], bool]
) -> Iterator[Contrast]:
    """Compare two samplers on the same weights by the geometric mean of FID over the numbers of steps that count."""
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for run in runs:
        for measurement in run.measured("sweep"):
            curves = {name: dict(zip(*curve, strict=True)) for name, curve in run.sweep(measurement).items()}
            our_curve, other_curve = curves.get(ours, {}), curves.get(other, {})
            steps = [step for step in sorted(our_curve.keys() & other_curve.keys()) if counts(step)]
            if steps:
                context = f"{run.arm} at {', '.join(map(str, steps))} steps"
                middle = [
                    float(np.exp(np.mean(np.log([curve[s] for s in steps])))) for curve in (our_curve, other_curve)
                ]
                key = (context, run.extractor(measurement.evaluation["sweep"]))
                pairs.setdefault(key, []).append((middle[0], middle[1]))
    for (context, extractor), values in pairs.items():
        yield Contrast(context, ours, other, f"{FID} ({extractor})", tuple(values))


CLAIMS: tuple[Callable[[Sequence[RunRecord]], Claim], ...] = (
    cosine_beats_linear,
    hybrid_beats_simple,
    vlb_has_the_best_nll,
    vlb_has_the_worst_fid,
    ddim_wins_at_few_steps,
    ancestral_wins_at_many_steps,
)
