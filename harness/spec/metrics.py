"""Names of metrics in the records, and their meaning: the only place that builds them.

The evaluator writes under these names, a search offers them, figures read and label them. A metric's name is
`<prefix>/<kind>` or `<prefix>/<kind>_<how it was measured>`; the prefix is the evaluation's name, or `train`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness.data.facts import classifier_name
from harness.spec.evaluation import (
    Evaluation,
    Fidelity,
    Interpolation,
    MetricModel,
    Modes,
    Nll,
    NoiseScale,
    Progressive,
    RateDistortion,
    Reconstruction,
    Skip,
    Sweep,
    Trajectories,
    extractor_name,
)
from harness.spec.fidelity_metrics import FIDELITY_METRICS
from harness.spec.run import RunSpec

Direction = Literal["minimize", "maximize"]


# -- meaning


@dataclass(frozen=True)
class MetricKind:
    """A kind of metric, independent of the evaluation that it comes from.

    Attributes:
        label: for an axis or a column.
        unit: empty for a plain number.
        direction: whether lower or higher is better; None if neither.
        per_timestep: a mean over t of terms that are summed over t: multiplied by the chain's length it is the sum.
    """

    label: str
    unit: str = ""
    direction: Direction | None = None
    per_timestep: bool = False

    @property
    def axis(self) -> str:
        """The label with its unit: `NLL (bits/dim)`."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def arrow(self) -> str:
        """The direction of better values: ↓, ↑ or nothing."""
        return {"minimize": "↓", "maximize": "↑", None: ""}[self.direction]


METRIC_KINDS: dict[str, MetricKind] = {
    "nll_bpd": MetricKind("NLL", "bits/dim", "minimize"),
    "nll_standard_error_bpd": MetricKind("standard error of the NLL", "bits/dim"),
    "nll_images_standard_error_bpd": MetricKind("standard error of the NLL over images", "bits/dim"),
    "L_0_bpd": MetricKind("$L_0$", "bits/dim", "minimize"),
    "L_T_bpd": MetricKind("$L_T$", "bits/dim"),
    "L_t_bpd": MetricKind("$L_t$", "bits/dim", "minimize"),
    "gaussian_baseline_bpd": MetricKind("NLL of a Gaussian per pixel", "bits/dim"),
    "fid": MetricKind("FID", direction="minimize"),
    "fid_standard_error": MetricKind("standard error of FID over samples"),
    "fid_infinity": MetricKind("FID of infinitely many samples", direction="minimize"),
    "fid_infinity_low": MetricKind("lower end of the 95 % interval of FID∞"),
    "fid_infinity_high": MetricKind("upper end of the 95 % interval of FID∞"),
    "class_fid": MetricKind("FID within classes", direction="minimize"),
    "kid": MetricKind("KID", direction="minimize"),
    "kid_standard_error": MetricKind("standard error of KID over samples"),
    "mind": MetricKind("MIND", direction="minimize"),
    "inception_score": MetricKind("Inception Score", direction="maximize"),
    "inception_score_std": MetricKind("standard deviation of the Inception Score over splits"),
    "precision": MetricKind("precision", direction="maximize"),
    "recall": MetricKind("recall", direction="maximize"),
    "f_score": MetricKind("F-score of precision and recall", direction="maximize"),
    "density": MetricKind("density", direction="maximize"),
    "coverage": MetricKind("coverage", direction="maximize"),
    "memorisation_auc": MetricKind("AUC of memorisation", "0.5: none", "minimize"),
    "memorisation_auc_low": MetricKind("lower end of the 95 % interval of the AUC of memorisation"),
    "memorisation_auc_high": MetricKind("upper end of the 95 % interval of the AUC of memorisation"),
    "memorised_share": MetricKind("samples nearer to training images than 99 % of test images", "share", "minimize"),
    "modes_covered": MetricKind("modes covered", direction="maximize"),
    "high_quality": MetricKind("high-quality samples", "share", "maximize"),
    "frechet": MetricKind("Fréchet distance", direction="minimize"),
    "mmd2": MetricKind("MMD²", direction="minimize"),
    "log_density_nats": MetricKind("log-density of the samples under the mixture", "nats"),
    "data_log_density_nats": MetricKind("log-density of the data under the mixture", "nats"),
    "rate_bpd": MetricKind("rate", "bits/dim", "minimize"),
    "distortion_rmse": MetricKind("distortion", "RMSE on [0, 255]", "minimize"),
    "reconstruction_mse": MetricKind("reconstruction error", "mean squared error on [0, 1]", "minimize"),
    "gradient_noise_scale": MetricKind("gradient noise scale", "examples"),
    "loss": MetricKind("Training loss", direction="minimize"),
    "mse": MetricKind("Prediction error", "mean squared error", "minimize"),
    "vb": MetricKind("Bound on training batches", "bits/dim", "minimize", per_timestep=True),
    "train_multiply_adds": MetricKind("training compute", "multiply-adds"),
    "accuracy_real": MetricKind("discriminator's accuracy on real examples", "share"),
    "accuracy_fake": MetricKind("discriminator's accuracy on generated examples", "share"),
    "discriminator_loss_real": MetricKind("discriminator's loss on real examples", "nats"),
    "discriminator_loss_fake": MetricKind("discriminator's loss on generated examples", "nats"),
    "generator_loss": MetricKind("generator's adversarial loss", "nats"),
    "r1_penalty": MetricKind("R1 penalty"),
    "grad_norm_generator": MetricKind("generator's gradient norm"),
    "grad_norm_discriminator": MetricKind("discriminator's gradient norm"),
    "afd": MetricKind("auxiliary forward diffusion term"),
    "regression_loss": MetricKind("error of the regression head", "mean squared error", "minimize"),
    "denoising_loss": MetricKind("error of the denoising head", "mean squared error", "minimize"),
}

OF_THE_GAME = (
    "accuracy_real",
    "accuracy_fake",
    "discriminator_loss_real",
    "discriminator_loss_fake",
    "generator_loss",
    "r1_penalty",
    "grad_norm_generator",
    "grad_norm_discriminator",
    "afd",
    "regression_loss",
    "denoising_loss",
)
"""What methods with a discriminator record of both players, as `train/<name>`; a figure of its own shows them."""


def metric_kind(name: str) -> MetricKind:
    """Return the kind of a recorded metric by its name; an unknown one is labelled by its own name."""
    return METRIC_KINDS.get(kind_name(name)) or MetricKind(name)


def kind_name(name: str) -> str:
    """Return the name of a recorded metric's kind in `METRIC_KINDS`; that of an unknown one is its own."""
    stem = name.rpartition("/")[2]
    matches = (kind for kind in METRIC_KINDS if stem == kind or stem.startswith(f"{kind}_"))
    return max(matches, key=len, default=name)


CLASSIFIER_SKILL = 0.5


def classifier_is_poor(accuracy: float, majority_share: float) -> bool:
    """Return whether a data set's own classifier is too poor for its features to be trusted.

    Its skill is where its accuracy lies between always naming the most frequent class (0) and never erring (1); below
    CLASSIFIER_SKILL it confuses more than it tells apart. The line is a convention (docs/extractors.md).

    Args:
        accuracy: share of the test images that it labels correctly.
        majority_share: share of the test images in their most frequent class.
    """
    return accuracy - majority_share < CLASSIFIER_SKILL * (1 - majority_share)


# -- outputs of an evaluation


@dataclass(frozen=True)
class Outputs:
    """The names of a measurement's outputs.

    Attributes:
        metrics: one number each, at the training step.
        curves: metrics over something else: t, a number of sampling steps, a percentage.
        arrays: files in `arrays/`.
        pictures: files in `samples/`.
        during_training: those of `metrics` that an evaluation with `every` measures during training too.
    """

    metrics: tuple[str, ...] = ()
    curves: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    during_training: tuple[str, ...] = ()


def fidelity_name(kind: str, extractor: str, num_samples: int, sampler: str, num_steps: int) -> str:
    """Name a metric of samples, without its prefix: `fid_digitsnet_10000_ddim50`."""
    return f"{kind}_{extractor}_{num_samples}_{sampler}{num_steps}"


def by_seed_kind(kind: str) -> str:
    """Return the kind of the curve of a metric's values over the sampling seeds: `fid_by_seed`."""
    return f"{kind}_by_seed"


def sweep_name(kind: str, extractor: str, num_samples: int, sampler: str) -> str:
    """Name a metric of samples against the number of steps, without its prefix: `fid_digitsnet_10000_ddim`."""
    return f"{kind}_{extractor}_{num_samples}_{sampler}"


def skip_name(extractor: str, num_samples: int, sampler: str, num_steps: int) -> str:
    """Name FID against the share of the chain that is skipped, without its prefix."""
    return f"{fidelity_name('fid', extractor, num_samples, sampler, num_steps)}_by_skipped_percent"


def progressive_name(extractor: str, num_samples: int, sampler: str, num_steps: int) -> str:
    """Name FID of the predicted x_0 against the number of steps that were made, without its prefix."""
    return f"{fidelity_name('fid', extractor, num_samples, sampler, num_steps)}_by_steps_made"


def modes_name(kind: str, num_samples: int, sampler: str, num_steps: int) -> str:
    """Name a metric of a mixture's samples, without its prefix: `modes_covered_10000_ancestral4`."""
    return f"{kind}_{num_samples}_{sampler}{num_steps}"


def recorded_name(name: str, data_name: str, data_digest: str | None) -> str:
    """Return the name under which a run on these data records what is called `name` in a plan."""
    return f"{name}_".replace(
        f"_{classifier_name(data_name)}_", f"_{classifier_name(data_name, data_digest)}_"
    ).removesuffix("_")


def metric_name(prefix: str, name: str) -> str:
    """Return a metric's full name, with an evaluation's prefix or `train`."""
    return f"{prefix}/{name}"


def curve_name(prefix: str, part: str, name: str) -> str:
    """Return a curve's full name; those of a sweep are grouped under `sweep`."""
    if part != "sweep":
        return f"{prefix}/{name}"
    return f"sweep/{name}" if prefix == "eval" else f"sweep_{prefix.removeprefix('eval_')}/{name}"


def array_file(prefix: str, name: str) -> str:
    """Return the name of the file in `arrays/` for a measurement's arrays."""
    return f"{prefix}_{name}.npz"


def picture_file(prefix: str, name: str) -> str:
    """Return the name of the file in `samples/` for a measurement's picture."""
    return f"{prefix}_{name}.png"


def _nll(part: Nll, spec: RunSpec) -> Outputs:
    terms = ("nll_bpd", "nll_standard_error_bpd", "nll_images_standard_error_bpd", "L_0_bpd", "L_T_bpd")
    baseline = () if spec.data.facts.levels is None else ("gaussian_baseline_bpd",)
    return Outputs((*terms, *baseline), curves=("L_t_bpd",), arrays=("likelihood",), during_training=terms)


def _fidelity(part: Fidelity, spec: RunSpec) -> Outputs:
    assert part.num_steps is not None, "resolved"
    extractor = extractor_name(part.extractor, spec.data.name)
    protocol = (extractor, part.num_samples, part.sampler.name, part.num_steps)
    metrics = [FIDELITY_METRICS[name] for name in part.metrics]
    are_images = spec.data.facts.levels is not None
    kinds = [kind for metric in metrics for kind in metric.outputs]
    names = tuple(fidelity_name(kind, *protocol) for kind in kinds)
    by_seed = tuple(fidelity_name(by_seed_kind(kind), *protocol) for kind in kinds if part.seeds > 1)
    return Outputs(
        metrics=names,
        curves=tuple(fidelity_name(kind, *protocol) for metric in metrics for kind in metric.curves) + by_seed,
        pictures=tuple(name for metric in metrics for name in metric.pictures) if are_images else (),
        during_training=names,
    )


def _sweep(part: Sweep, spec: RunSpec) -> Outputs:
    extractor = extractor_name(part.extractor, spec.data.name)
    return Outputs(
        curves=tuple(
            sweep_name(kind, extractor, part.num_samples, sampler.name)
            for sampler in part.samplers
            for kind in part.metrics
        )
    )


def _skip(part: Skip, spec: RunSpec) -> Outputs:
    assert part.num_steps is not None, "resolved"
    extractor = extractor_name(part.extractor, spec.data.name)
    return Outputs(curves=(skip_name(extractor, part.num_samples, part.sampler.name, part.num_steps),))


MODES_KINDS = ("modes_covered", "high_quality", "frechet", "mmd2", "log_density_nats")
"""The kinds that `modes` measures for each number of sampling steps."""


def _modes(part: Modes, spec: RunSpec) -> Outputs:
    assert part.num_steps is not None, "resolved"
    names = (
        modes_name(kind, part.num_samples, part.sampler.name, num_steps)
        for num_steps in part.num_steps
        for kind in MODES_KINDS
    )
    return Outputs(("data_log_density_nats", *names), arrays=("modes",))


def _rate_distortion(part: RateDistortion, spec: RunSpec) -> Outputs:
    rate = ("rate_bpd",) if "nll" in spec.method.measures else ()  # without a likelihood there is no rate
    return Outputs((*rate, "distortion_rmse"), arrays=("rate_distortion",))


def _noise_scale(part: NoiseScale, spec: RunSpec) -> Outputs:
    return Outputs(("gradient_noise_scale",))


def _grid(part: int, spec: RunSpec) -> Outputs:
    return Outputs(arrays=("samples",), pictures=() if spec.data.facts.levels is None else ("samples",))


def trajectory_frames(num_steps: int, num_frames: int) -> list[int]:
    """Return after how many of the steps a trajectory is kept: evenly spread, from 0 to num_steps."""
    count = min(num_frames, num_steps + 1)
    return [round(frame * num_steps / (count - 1)) for frame in range(count)]


def _trajectories(part: Trajectories, spec: RunSpec) -> Outputs:
    return Outputs(arrays=("trajectories",), pictures=() if spec.data.facts.levels is None else ("trajectories",))


def _progressive(part: Progressive, spec: RunSpec) -> Outputs:
    assert part.num_steps is not None, "resolved"
    extractor = extractor_name(part.extractor, spec.data.name)
    return Outputs(curves=(progressive_name(extractor, part.num_samples, part.sampler.name, part.num_steps),))


def _interpolation(part: Interpolation, spec: RunSpec) -> Outputs:
    pictures = () if spec.data.facts.levels is None else ("interpolation",)
    return Outputs(arrays=("interpolation",), pictures=pictures)


def _reconstruction(part: Reconstruction, spec: RunSpec) -> Outputs:
    return Outputs(curves=("reconstruction_mse_by_steps",), arrays=("reconstruction",))


def _metrics(part: tuple[MetricModel, ...], spec: RunSpec) -> Outputs:
    return Outputs(tuple(name for metric in part for name in metric.names))


PART_OUTPUTS: dict[str, Callable[[Any, RunSpec], Outputs]] = {
    "nll": _nll,
    "fidelity": _fidelity,
    "sweep": _sweep,
    "skip": _skip,
    "modes": _modes,
    "rate_distortion": _rate_distortion,
    "noise_scale": _noise_scale,
    "grid": _grid,
    "trajectories": _trajectories,
    "progressive": _progressive,
    "interpolation": _interpolation,
    "reconstruction": _reconstruction,
    "metrics": _metrics,
}
"""Part of an evaluation -> the names of its outputs for a run, without the evaluation's prefix."""


def part_outputs(evaluation: Evaluation, spec: RunSpec) -> dict[str, Outputs]:
    """Return the outputs of each part of a resolved evaluation for a run, without the prefix."""
    parts = {part: PART_OUTPUTS[part](getattr(evaluation, part), spec) for part in evaluation.parts}
    for name in parts.keys() - {*evaluation.during_training}:
        parts[name] = replace(parts[name], during_training=())
    return parts


def outputs(evaluation: Evaluation, spec: RunSpec, prefix: str | None = None) -> Outputs:
    """Return the full names of all outputs of a resolved evaluation for a run.

    Args:
        prefix: the evaluation's name by default.
    """
    prefix, parts = prefix or evaluation.name, part_outputs(evaluation, spec)
    return Outputs(
        metrics=tuple(metric_name(prefix, name) for part in parts.values() for name in part.metrics),
        curves=tuple(curve_name(prefix, kind, name) for kind, part in parts.items() for name in part.curves),
        arrays=tuple(array_file(prefix, name) for part in parts.values() for name in part.arrays),
        pictures=tuple(picture_file(prefix, name) for part in parts.values() for name in part.pictures),
        during_training=tuple(metric_name(prefix, name) for part in parts.values() for name in part.during_training),
    )


# -- outputs of training


TRAIN_COMPUTE = "compute/train_multiply_adds"
_NOT_A_TERM = re.compile(r"(lr|grad_norm)(_|$)|.*_q\d$")


def training_terms(names: Iterable[str]) -> list[str]:
    """Return which of the recorded names are terms of the training loss; `train/loss` if there are no others.

    Learning rates, gradient norms, the terms by quartile of t, and those of the game between a generator and its
    discriminator are not included.
    """
    terms = [name for name in names if name.startswith("train/") and not _NOT_A_TERM.match(name.removeprefix("train/"))]
    return [name for name in terms if name.removeprefix("train/") not in ("loss", *OF_THE_GAME)] or [
        name for name in terms if name == "train/loss"
    ]
