"""Evaluation: the protocol of measurements on a run's weights. Adding one to a study trains nothing."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from harness.data.facts import ExtractorName, classifier_name, usual_extractor
from harness.diffusion.respacing import space_timesteps
from harness.spec.averages import ChosenEma, choose_average
from harness.spec.base import SCHEMA_VERSION, YOUNGER, SpecModel, digest
from harness.spec.fidelity_metrics import FIDELITY_METRICS, WITH_LOGITS, FidelityMetricName
from harness.spec.measured import Checkpoint, Ensemble, check_checkpoint, resolved_ensemble
from harness.spec.methods import WHY_NOT
from harness.spec.networks import UNet
from harness.spec.parts import Choice, NamedModel, plugins_of
from harness.spec.reference_files import SUFFIX, examine
from harness.spec.run import RunSpec


class Ancestral(NamedModel):
    name: Literal["ancestral"] = "ancestral"
    spacing: Literal["even", "ddim", "quad"] = "even"


class Ddim(NamedModel):
    name: Literal["ddim"] = "ddim"
    eta: float = Field(0.0, ge=0, le=1)
    spacing: Literal["even", "ddim", "quad"] = "ddim"  # IDDPM: constant stride, since rounded even strides hurt DDIM


class DpmSolverPP(NamedModel):
    name: Literal["dpmpp_2m"] = "dpmpp_2m"
    spacing: Literal["even", "ddim", "quad"] = "even"
    lower_order_final: bool = False  # steadier with few steps, at the cost of the second order at the end


class SamplerModel(NamedModel):
    """Base of sampler parameters; a plugin's class adds its own."""

    spacing: Literal["even", "ddim", "quad"] = "even"


AnySampler = Ancestral | Ddim | DpmSolverPP | SamplerModel
Sampler = Annotated[
    AnySampler, Choice("sampler", SamplerModel, {"ancestral": Ancestral, "ddim": Ddim, "dpmpp_2m": DpmSolverPP})
]


def section_counts(sampler: AnySampler, num_steps: int) -> str:
    """Format a number of sampling steps for `space_timesteps`: "50", "ddim50" or "quad50"."""
    return {"even": "", "ddim": "ddim", "quad": "quad"}[sampler.spacing] + str(num_steps)


class Nll(SpecModel):
    """NLL in bits/dim: the full sum over T, or an unbiased estimate of it with a standard error."""

    estimator: Literal["full", "stratified"] = "stratified"
    num_images: int | None = Field(None, ge=2)  # None: the whole split
    evaluations_per_image: int = Field(40, ge=4)  # stratified only
    clip: bool = True
    decoder: Literal["tanh", "exact"] = "tanh"


class Fidelity(SpecModel):
    """FID, precision, recall and others.

    `auto`: Inception if its weights are given, else the data set's own classifier, or random features without labels.
    """

    num_samples: int = Field(10_000, ge=16)
    sampler: Sampler = Ancestral()
    num_steps: int | None = Field(250, ge=1)  # None: the whole chain
    extractor: ExtractorName = "auto"
    reference: str = Field("train", description="train, test, or an npz of `harness reference`, of ADM or pytorch-fid.")
    reference_sha256: Annotated[str | None, YOUNGER] = None  # of the file; filled in automatically
    k: int = Field(3, ge=1)  # neighbours of precision and recall; IDDPM's table 4 has 5, the ADM line 3
    prc_reference: int = Field(10_000, ge=16)  # reference images for them: 10,000 in the ADM line; FID takes all
    metrics: Annotated[tuple[FidelityMetricName, ...], Field(min_length=1), YOUNGER] = ("fid", "precision", "recall")
    seeds: Annotated[int, Field(ge=1), YOUNGER] = 1  # draws of num_samples, each with noise of its own; means count

    @field_validator("metrics")
    @classmethod
    def _in_one_order(cls, metrics: tuple[FidelityMetricName, ...]) -> tuple[str, ...]:
        """The same metrics are the same protocol, in whatever order they are written."""
        if twice := next((name for name in metrics if metrics.count(name) > 1), None):
            raise ValueError(f"{twice} is there twice")
        return tuple(name for name in FIDELITY_METRICS if name in metrics)

    def check_metrics(self, spec: RunSpec) -> None:
        """Require of a resolved part that the run has what each metric needs.

        Raises:
            ValueError: it has not; the message says what to change and which metrics need nothing.
        """
        others = ", ".join(name for name, metric in FIDELITY_METRICS.items() if not metric.needs)
        needs = {FIDELITY_METRICS[name].needs: name for name in self.metrics}
        if (name := needs.get("logits")) and self.extractor not in WITH_LOGITS:
            raise ValueError(
                f"fidelity.metrics: {name} needs logits, and extractor {self.extractor} has none: use extractor: "
                f"{' or '.join(WITH_LOGITS)}, or other metrics: {others}"
            )
        if name := needs.get("classes"):
            num_classes = spec.data.facts.num_classes or 0
            if self.has_reference_file:
                raise ValueError(
                    f"fidelity.metrics: {name} compares images of one class, and a file of statistics has no classes: "
                    f"use reference: train or test, or other metrics: {others}"
                )
            if not spec.model.class_cond:
                raise ValueError(
                    f"fidelity.metrics: {name} needs samples of known classes: train with model.class_cond: true, or "
                    f"use other metrics: {others}"
                )
            if self.num_samples < 2 * num_classes:
                raise ValueError(
                    f"fidelity.metrics: {name} needs 2 samples of each of {num_classes} classes: num_samples "
                    f"{self.num_samples} must be {2 * num_classes} or more"
                )

    @field_validator("reference")
    @classmethod
    def _is_a_split_or_a_file(cls, reference: str) -> str:
        if reference not in ("train", "test") and not (reference.endswith(SUFFIX) and reference.isprintable()):
            raise ValueError(f"{reference!r}: choices: train, test, the path of a {SUFFIX} file")
        return reference

    @property
    def has_reference_file(self) -> bool:
        return self.reference not in ("train", "test")

    def resolved_reference(self) -> dict[str, str]:
        """Return the fields of the reference, of a file with its absolute path and its sha256.

        Raises:
            ValueError: the file cannot be read, is another one than was resolved, or lacks what a metric needs.
        """
        if not self.has_reference_file:
            return {}
        path = Path(self.reference).expanduser().absolute()
        digest, has_features = examine(path)
        if self.reference_sha256 not in (None, digest):
            raise ValueError(f"{path}: its sha256 is {digest[:12]}, not {str(self.reference_sha256)[:12]}")
        if needing := [name for name in self.metrics if FIDELITY_METRICS[name].reference == "features"]:
            others = [name for name, metric in FIDELITY_METRICS.items() if metric.reference == "moments"]
            if not has_features:
                raise ValueError(
                    f"{path}: has mu and sigma alone, and {', '.join(needing)} need the features themselves: write the "
                    f"file with `harness reference`, which keeps them, or use fidelity.metrics: [{', '.join(others)}]"
                )
        return {"reference": str(path), "reference_sha256": digest}


SweepMetric = Literal["fid", "precision", "recall"]


class Sweep(SpecModel):
    """FID, or other metrics of samples, against the number of sampling steps (IDDPM, figure 8)."""

    num_samples: int = Field(10_000, ge=16)
    samplers: tuple[Sampler, ...] = Field((Ancestral(), Ddim()), min_length=1)
    num_steps: tuple[Annotated[int, Field(ge=1)], ...] = Field((25, 50, 100, 200), min_length=1)
    extractor: ExtractorName = "auto"
    reference: Literal["train", "test"] = "train"
    metrics: Annotated[tuple[SweepMetric, ...], Field(min_length=1), YOUNGER] = ("fid",)
    k: Annotated[int, Field(ge=1), YOUNGER] = 3  # as in Fidelity
    prc_reference: Annotated[int, Field(ge=16), YOUNGER] = 10_000


class Skip(SpecModel):
    """FID when the first fraction of the reverse chain is skipped (IDDPM, figure 4)."""

    num_samples: int = Field(10_000, ge=16)
    sampler: Sampler = Ancestral()
    num_steps: int | None = Field(None, ge=1)  # of the chain before anything is skipped; None: the whole
    fractions: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field((0.0, 0.05, 0.1, 0.15, 0.2), min_length=1)
    extractor: ExtractorName = "auto"
    reference: Literal["train", "test"] = "train"


class Modes(SpecModel):
    """Modes covered, quality and moments of samples of a mixture, against the number of sampling steps."""

    num_samples: int = Field(10_000, ge=16)
    sampler: Sampler = Ancestral()
    num_steps: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(None, min_length=1)  # None: the whole chain


class Trajectories(SpecModel):
    """Reverse trajectories of a few samples: x_t and the predicted x_0, from noise to data."""

    num_samples: int = Field(8, ge=1, le=64)
    sampler: Sampler = Ancestral()
    num_steps: int | None = Field(None, ge=1)  # None: the whole chain
    num_frames: int = Field(10, ge=2, le=100)  # kept of each trajectory, evenly spread; all of a shorter one


class Progressive(SpecModel):
    """FID of the x_0 that is predicted along the reverse process (DDPM, figures 6 and 10)."""

    num_samples: int = Field(10_000, ge=16)
    sampler: Sampler = Ancestral()
    num_steps: int | None = Field(None, ge=1)  # None: the whole chain
    num_frames: int = Field(11, ge=2, le=100)  # steps after which it is measured, evenly spread; 0 is the first guess
    extractor: ExtractorName = "auto"
    reference: Literal["train", "test"] = "train"


class Interpolation(SpecModel):
    """Pairs of real images, mixed at noise levels t and denoised (DDPM, figures 8 and 9)."""

    num_pairs: int = Field(4, ge=1, le=64)
    t: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(None, min_length=1)  # None: the middle of the chain
    num_weights: int = Field(9, ge=2, le=33)  # of the second image, evenly spread from 0 to 1


class Reconstruction(SpecModel):
    """Error of real images that DDIM encodes and decodes, against its number of steps (DDIM, table 2)."""

    num_images: int | None = Field(None, ge=1)  # None: the whole split
    num_steps: tuple[Annotated[int, Field(ge=2)], ...] = Field((10, 20, 50, 100), min_length=1)


class RateDistortion(SpecModel):
    """Progressive lossy coding (DDPM, figure 5): rate and distortion against reverse steps."""

    num_images: int | None = Field(None, ge=1)  # None: the whole split
    num_steps: int | None = Field(None, ge=1)  # None: the whole chain
    clip: bool = True


class NoiseScale(SpecModel):
    """The gradient noise scale of the run's objective and timestep sampler (IDDPM, figure 7), at the raw weights."""

    batch_size: int = Field(32, ge=1)
    small_per_big: int = Field(8, ge=2)  # the big batch, in small ones
    num_big: int = Field(16, ge=1)


_OUTPUT = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,79}")


class MetricModel(NamedModel):
    """Base of plugin metrics; `outputs` are the names of its numbers, by default its own name."""

    outputs: ClassVar[tuple[str, ...]] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of its values, without the evaluation's prefix."""
        return self.outputs or (self.name,)

    @classmethod
    def check_declaration(cls) -> None:
        """Require names that are valid in journals and that no built-in metric has."""
        from harness.spec.metrics import METRIC_KINDS, metric_kind

        for name in cls.outputs or (cls.model_fields["name"].default,):
            if not isinstance(name, str) or not _OUTPUT.fullmatch(name):
                raise ValueError(
                    f"outputs: {name!r}: a name has letters, digits and underscores, and starts with a letter"
                )
            if metric_kind(name) in METRIC_KINDS.values():
                raise ValueError(f"outputs: {name!r} would be read as a built-in metric; use another name")


Metric = Annotated[MetricModel, Choice("metric", MetricModel, {})]


PARTS = (
    "nll",
    "fidelity",
    "sweep",
    "skip",
    "modes",
    "rate_distortion",
    "noise_scale",
    "grid",
    "trajectories",
    "progressive",
    "interpolation",
    "reconstruction",
    "metrics",
)
"""The parts of an evaluation, in the order of measurement; each is a field of `Evaluation`."""

WITH_FEATURES = ("fidelity", "sweep", "skip", "progressive")
"""Those that compare features, and so have an extractor."""


class Evaluation(SpecModel):
    """A protocol: what is measured on a run's weights, and how. `name` is the prefix of its metrics."""

    name: str = Field("eval", pattern=r"^[a-z][a-z0-9_]{0,39}$")
    split: Literal["test", "train"] = "test"  # of the likelihood
    weights: Literal["ema", "raw", "untrained"] = "ema"  # untrained: the initial ones, a baseline
    fixed_variance: Literal["small", "large"] = "large"  # beta-tilde or beta, where var_type is fixed
    seed: int = Field(0, ge=0, lt=2**31)
    batch_size: int = Field(256, ge=1)
    guidance: float = Field(1.0, ge=0)  # classifier-free guidance of samples; 1 is the conditional network alone
    nll: Nll | None = None
    fidelity: Fidelity | None = None
    sweep: Sweep | None = None
    skip: Skip | None = None
    rate_distortion: RateDistortion | None = None
    noise_scale: NoiseScale | None = None
    grid: int | None = Field(None, ge=1, le=1024)  # number of images in the grid of samples
    every: int | None = Field(None, ge=1)  # also during training, every so many steps
    during_training: Annotated[tuple[Literal["nll", "fidelity"], ...], Field(min_length=1), YOUNGER] = ("nll",)
    modes: Annotated[Modes | None, YOUNGER] = None
    trajectories: Annotated[Trajectories | None, YOUNGER] = None
    progressive: Annotated[Progressive | None, YOUNGER] = None
    interpolation: Annotated[Interpolation | None, YOUNGER] = None
    reconstruction: Annotated[Reconstruction | None, YOUNGER] = None
    metrics: Annotated[tuple[Metric, ...], YOUNGER] = ()  # of plugins
    ema: Annotated[ChosenEma, YOUNGER] = None  # which of the averages of train.ema; None: the first
    checkpoint: Annotated[Checkpoint, YOUNGER] = "last"  # or the one that records.best keeps
    ensemble: Annotated[Ensemble | None, YOUNGER] = None  # with another run's network in the middle of the chain
    plugins: Annotated[dict[str, str] | None, YOUNGER] = (
        None  # plugins of the parts, with their sha256; filled in automatically
    )

    @model_validator(mode="after")
    def _names_its_plugins(self) -> Evaluation:
        used = plugins_of(self) or None
        if self.plugins not in (None, used):
            raise ValueError(f"plugins: the parts come from {used or 'none'}, not from {self.plugins}")
        object.__setattr__(self, "plugins", used)
        names = [name for metric in self.metrics for name in metric.names]
        if len(set(names)) < len(names):
            raise ValueError(f"metrics: two of them have the name {next(n for n in names if names.count(n) > 1)!r}")
        return self

    @field_validator("name")
    @classmethod
    def _prefix_is_free(cls, name: str) -> str:
        if name in ("train", "perf", "system", "sweep"):
            raise ValueError(f"{name!r} is the prefix of other metrics; use eval or eval_something")
        return name

    @property
    def parts(self) -> list[str]:
        """Return the names of the parts that it measures."""
        return [part for part in PARTS if getattr(self, part) not in (None, ())]

    @cached_property
    def key(self) -> str:
        """Return 16 hex digits over the whole protocol; a file of reference statistics counts by its content."""
        protocol = self.model_dump(mode="json")
        if self.fidelity and self.fidelity.reference_sha256:
            protocol["fidelity"]["reference"] = "file"
        return digest({"schema_version": SCHEMA_VERSION, "evaluation": protocol})

    def resolve(self, spec: RunSpec, *, inception: bool) -> Evaluation:
        """Return this protocol fully specified for `spec`: extractors named, irrelevant choices at their default.

        Args:
            spec: the run to be evaluated.
            inception: whether weights of Inception-V3 are available.

        Raises:
            ValueError: this run does not support a part.
        """
        for part in self.parts:
            if part not in spec.method.measures:
                choices = ", ".join(name for name in PARTS if name in spec.method.measures)
                why = f"; {part} {WHY_NOT[part]}" if part in WHY_NOT else ""
                raise ValueError(f"{part} cannot be measured under method {spec.method.name}; choices: {choices}{why}")
        missing = next((part for part in self.during_training if getattr(self, part) is None), None)
        if self.every is not None and missing:
            hint = ", or during_training: [fidelity]" if missing == "nll" else ""
            raise ValueError(f"every: requires {_NEEDED[missing]} to measure during training{hint}")
        if self.every is None and self.during_training != ("nll",):
            raise ValueError("during_training: needs every: STEPS, how often")
        if self.every is not None and self.weights == "untrained":
            raise ValueError("every: the untrained weights do not change during training")
        if not self.parts:
            raise ValueError(f"evaluation {self.name!r} measures nothing; add nll, fidelity, sweep, grid, ...")
        if isinstance(spec.model, UNet) and spec.model.low_res_size:
            raise ValueError("an upsampler needs small images: `harness sample RUN --low-res FILE.npz`")
        if self.guidance != 1 and not spec.model.label_dropout:
            raise ValueError("guidance requires a network that was trained with model.label_dropout, such as 0.1")
        if self.noise_scale and self.weights != "raw":
            raise ValueError("noise_scale is measured at the raw weights: set weights: raw")
        for metric in self.metrics:
            metric.check(spec)
        names = [sampler.name for sampler in self.sweep.samplers] if self.sweep else []
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(
                f"sweep: two samplers are called {twice}, and their curves would have one name: give the second an "
                "evaluation of its own"
            )
        check_checkpoint(self)
        num_timesteps, change = spec.diffusion.num_timesteps, dict[str, Any](resolved_ensemble(self, spec))
        if self.ema is not None:
            if self.weights != "ema":
                raise ValueError(f"ema chooses among averages of the weights, but weights: {self.weights} are measured")
            change["ema"] = choose_average(self.ema, spec.train, during_training=self.every is not None)
        if spec.diffusion.var_type != "fixed" or "diffusion.var_type" not in spec.method.owns:
            change["fixed_variance"] = "large"  # irrelevant: one key for one measurement
        for part in WITH_FEATURES:
            settings = getattr(self, part)
            if settings is None:
                continue
            resolved: dict[str, Any] = {"extractor": self._extractor(settings.extractor, spec, inception)}
            if part != "sweep":
                resolved["num_steps"] = settings.num_steps or num_timesteps
            if part == "fidelity":
                try:
                    resolved |= settings.resolved_reference()
                except (ValueError, RuntimeError) as error:  # RuntimeError: no such user's home
                    raise ValueError(f"fidelity.reference: {error}") from None
            change[part] = settings.model_copy(update=resolved)
            if part == "fidelity":
                change[part].check_metrics(spec)
            for sampler in settings.samplers if part == "sweep" else [settings.sampler]:
                sampler.check(spec)
                for count in settings.num_steps if part == "sweep" else [resolved["num_steps"]]:
                    space_timesteps(num_timesteps, section_counts(sampler, count))
        if self.modes:
            if spec.data.mixture is None:
                raise ValueError(
                    f"modes: data {spec.data.name} are not a mixture whose modes are known, as mog is: use fidelity"
                )
            self.modes.sampler.check(spec)
            counts = tuple(sorted(set(self.modes.num_steps or (num_timesteps,))))
            for count in counts:
                space_timesteps(num_timesteps, section_counts(self.modes.sampler, count))
            change["modes"] = self.modes.model_copy(update={"num_steps": counts})
        if self.trajectories:
            self.trajectories.sampler.check(spec)
            num_steps = self.trajectories.num_steps or num_timesteps
            space_timesteps(num_timesteps, section_counts(self.trajectories.sampler, num_steps))
            change["trajectories"] = self.trajectories.model_copy(update={"num_steps": num_steps})
        if self.interpolation:
            if spec.model.class_cond:
                raise ValueError("interpolation: a pair has two classes, and this network draws images of one")
            levels = tuple(sorted(set(self.interpolation.t or (num_timesteps // 2,))))
            if levels[-1] >= num_timesteps:
                raise ValueError(f"interpolation: t: {levels[-1]}: the chain's last t is {num_timesteps - 1}")
            change["interpolation"] = self.interpolation.model_copy(update={"t": levels})
        if self.reconstruction:
            counts = tuple(sorted(set(self.reconstruction.num_steps)))
            for count in counts:
                space_timesteps(num_timesteps, section_counts(Ddim(), count))
            change["reconstruction"] = self.reconstruction.model_copy(update={"num_steps": counts})
        if self.rate_distortion:
            num_steps = self.rate_distortion.num_steps or num_timesteps
            space_timesteps(num_timesteps, str(num_steps))
            change["rate_distortion"] = self.rate_distortion.model_copy(update={"num_steps": num_steps})
        return self.model_copy(update=change)

    @staticmethod
    def _extractor(name: str, spec: RunSpec, inception: bool) -> str:
        continuous = spec.data.facts.levels is None
        if (name == "coordinates") != continuous and name != "auto":
            raise ValueError(
                f"extractor {name} does not fit data {spec.data.name}: coordinates are for continuous data such as "
                "mog, the others for images with levels"
            )
        if name == "inception" and not inception:
            raise ValueError(
                "extractor inception: set HARNESS_INCEPTION_WEIGHTS to the file of its weights "
                "(torch-fidelity's weights-inception-2015-12-05-6726825d.pth), or use extractor: classifier"
            )
        if name == "classifier" and not spec.data.facts.num_classes:
            raise ValueError(
                f"extractor classifier: data {spec.data.name} has no labels; use inception or random_features"
            )
        if name != "auto":
            return name
        labelled = bool(spec.data.facts.num_classes)
        return usual_extractor(continuous=continuous, pixels=spec.data.pixels, labelled=labelled, inception=inception)


_NEEDED = {"nll": "an nll", "fidelity": "a fidelity"}


def extractor_name(extractor: str, data_name: str, data_digest: str | None = None) -> str:
    """Return a resolved extractor's name in metric names: inception, digitsnet, coordinates.

    Args:
        data_digest: of the data that were read; None for the name in a plan, which `recorded_name` completes.
    """
    return classifier_name(data_name, data_digest) if extractor == "classifier" else extractor
