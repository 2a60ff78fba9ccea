"""RunSpec and its parts: what a run is, and what may be named in it.

Frozen pydantic models that refuse unknown keys; every default is written out in the resolved spec that is stored with
the run. This file imports no torch: `plan` and `status` answer at once on a login node. The names here and the
registries' are held equal by tests/contracts/test_registries.py.

Two identities follow from it:

- `run_key(spec)`: all that the trained weights depend on, and only that. Resources, names and tags are outside.
- `evaluation_key(evaluation)`: the protocol of a measurement on those weights. Adding one trains nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_serializer, model_validator

from harness.data.facts import DATASET_FACTS, DatasetFacts
from harness.diffusion.respacing import space_timesteps

SCHEMA_VERSION = 1
"""Part of every run_key. Raise it when a field keeps its name but changes its meaning."""


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _named(value: Any) -> Any:
    """Let `schedule: cosine` stand for `schedule: {name: cosine}`."""
    return {"name": value} if isinstance(value, str) else value


def choices(union: Any) -> dict[str, type[Part]]:
    """Map each name of a discriminated union below to its parameter class."""
    variants = get_args(get_args(union)[0]) or (get_args(union)[0],)
    return {get_args(variant.model_fields["name"].annotation)[0]: variant for variant in variants}


# ---------------------------------------------------------------------------------------------------------------- data


class _Data(Part):
    horizontal_flip: bool = False  # DDPM flips at random in training; IDDPM's code does not

    @property
    def facts(self) -> DatasetFacts:
        return DATASET_FACTS[self.name]  # type: ignore[attr-defined]

    @property
    def pixels(self) -> int:
        """Return the height and width of an image, padding included."""
        size = self.facts.image_size
        assert size is not None, "only image_folder leaves it open, and its spec says it"
        return size


class Digits(_Data):
    name: Literal["digits"] = "digits"


class Mnist(_Data):
    name: Literal["mnist"] = "mnist"


class FashionMnist(_Data):
    name: Literal["fashion_mnist"] = "fashion_mnist"


class Cifar10(_Data):
    name: Literal["cifar10"] = "cifar10"
    batches: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field((1, 2, 3, 4, 5), min_length=1)

    @field_validator("batches")
    @classmethod
    def _each_batch_once_and_in_order(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        if list(batches) != sorted(set(batches)):
            raise ValueError(f"name each batch once and in order: {sorted(set(batches))}")
        return batches


class ImageNet64(_Data):
    name: Literal["imagenet64"] = "imagenet64"


class ImageFolder(_Data):
    name: Literal["image_folder"] = "image_folder"
    path: str = Field(min_length=1, max_length=200)  # below data_root
    image_size: int = Field(ge=4, le=1024)
    test_fraction: float = Field(0.1, gt=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**31)  # of the split
    num_classes: int | None = Field(None, ge=1)  # None: the names carry no labels, or they do not matter

    @field_validator("path")
    @classmethod
    def _stays_below_data_root(cls, path: str) -> str:
        if path.startswith(("/", "~")) or ".." in path.split("/") or not path.isprintable():
            raise ValueError(f"{path!r} leaves data_root: give a plain path below it")
        return path

    @property
    def facts(self) -> DatasetFacts:
        return replace(DATASET_FACTS[self.name], image_size=self.image_size, num_classes=self.num_classes)


class Mog(_Data):
    name: Literal["mog"] = "mog"


Data = Annotated[
    Digits | Mnist | FashionMnist | Cifar10 | ImageNet64 | ImageFolder | Mog,
    Field(discriminator="name"),
    BeforeValidator(_named),
]


# ----------------------------------------------------------------------------------------------------------- diffusion


class Linear(Part):
    name: Literal["linear"] = "linear"


class Cosine(Part):
    name: Literal["cosine"] = "cosine"
    s: float = Field(0.008, ge=0, lt=1)


Schedule = Annotated[Linear | Cosine, Field(discriminator="name"), BeforeValidator(_named)]

LEARNED = ("learned", "learned_range")


class Diffusion(Part):
    """The process. `var_type: fixed` leaves the choice between beta and beta-tilde to the evaluation."""

    num_timesteps: int = Field(1000, ge=1, le=1_000_000)
    schedule: Schedule = Linear()
    mean_type: Literal["epsilon", "x_0", "previous_x", "v"] = "epsilon"
    var_type: Literal["fixed", "fixed_small", "fixed_large", "learned", "learned_range"] = "fixed"

    @model_validator(mode="after")
    def _betas_stay_below_one(self) -> Diffusion:
        if self.schedule.name == "linear" and self.num_timesteps < 21:
            raise ValueError(
                f"a linear schedule with num_timesteps = {self.num_timesteps} has beta_T = 20 / T >= 1; "
                "take num_timesteps of 21 or more, or the cosine schedule"
            )
        return self


# ----------------------------------------------------------------------------------------------------------- objective


class Simple(Part):
    """L_simple (DDPM, eq. 14): the mean squared error of the network's prediction."""

    name: Literal["simple"] = "simple"


class Hybrid(Part):
    """L_hybrid = L_simple + lambda_vlb L_vlb (IDDPM, eq. 16), the mean detached inside L_vlb."""

    name: Literal["hybrid"] = "hybrid"
    lambda_vlb: float = Field(0.001, ge=0)


class Vlb(Part):
    """L_vlb (DDPM, eq. 5), in bits/dim."""

    name: Literal["vlb"] = "vlb"


class MinSnr(Part):
    """L_simple weighted by min(SNR, gamma) in x_0's terms (Hang et al. 2023)."""

    name: Literal["min_snr"] = "min_snr"
    gamma: float = Field(5.0, gt=0)


Objective = Annotated[Simple | Hybrid | Vlb | MinSnr, Field(discriminator="name"), BeforeValidator(_named)]


class Uniform(Part):
    name: Literal["uniform"] = "uniform"


class LossSecondMoment(Part):
    """p_t ~ sqrt(E[L_t^2]) (IDDPM, eq. 18), uniform until every t has its history."""

    name: Literal["loss_second_moment"] = "loss_second_moment"
    history_per_term: int = Field(10, ge=1, le=1000)
    uniform_prob: float = Field(0.001, ge=0, le=1)

    def steps_to_warm(self, num_timesteps: int, batch_size: int) -> int:
        """Return the number of steps after which, in 95 % of all trainings, every t has been drawn often enough.

        Under uniform draws the counts are near Poisson, so P(warm) = P(count >= history_per_term)^T.
        """

        def warm_probability(draws: float) -> float:
            mean = draws / num_timesteps
            too_few = sum(
                math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(self.history_per_term)
            )
            return math.exp(num_timesteps * math.log1p(-min(too_few, 1 - 1e-16)))

        low, high = 0.5, float(num_timesteps * (self.history_per_term + 100) * 10)
        while high - low > 0.5:
            middle = (low + high) / 2
            low, high = (low, middle) if warm_probability(middle) >= 0.95 else (middle, high)
        return math.ceil(high / batch_size)


TimestepSampler = Annotated[Uniform | LossSecondMoment, Field(discriminator="name"), BeforeValidator(_named)]


# --------------------------------------------------------------------------------------------------------------- model


class UNet(Part):
    """IDDPM's U-Net; `attention_resolutions` are in pixels (16 = where the feature map is 16x16), as in its flags."""

    name: Literal["unet"] = "unet"
    channels: int = Field(128, ge=1, le=4096)
    channel_mult: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field((1, 2, 2, 2), min_length=1, max_length=10)
    num_res_blocks: int = Field(3, ge=1, le=32)
    attention_resolutions: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (16, 8)
    num_heads: int = Field(4, ge=1, le=128)
    dropout: float = Field(0.0, ge=0, lt=1)
    use_scale_shift_norm: bool = True
    class_cond: bool = False
    label_dropout: float = Field(0.0, ge=0, lt=1)  # share of labels hidden in training, for classifier-free guidance
    rescale_timesteps: bool = True  # the network sees 1000 t / T
    low_res_size: int | None = Field(None, ge=2)  # an upsampler: pixels of the small image that it is given

    def resolutions(self, image_size: int) -> list[int]:
        return [image_size // 2**level for level in range(len(self.channel_mult))]


class MLP(Part):
    """A small fully connected network for points of the plane."""

    name: Literal["mlp"] = "mlp"
    width: int = Field(128, ge=1, le=65536)
    depth: int = Field(3, ge=1, le=100)
    class_cond: bool = False
    label_dropout: float = Field(0.0, ge=0, lt=1)
    rescale_timesteps: bool = True


def _unet_unless_said(value: Any) -> Any:
    return {"name": "unet", **value} if isinstance(value, dict) else _named(value)


Model = Annotated[UNet | MLP, Field(discriminator="name"), BeforeValidator(_unet_unless_said)]


class Optim(Part):
    """AdamW; with weight_decay 0 it is the Adam of the papers."""

    lr: float = Field(1e-4, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    decay: Literal["none", "linear"] = "none"  # linear: to 0 at the last step
    grad_clip: float | None = Field(None, gt=0)  # by the global norm


class Train(Part):
    steps: int = Field(ge=1)
    batch_size: int = Field(128, ge=1)  # global: over all processes and accumulated microbatches
    ema_rate: float = Field(0.9999, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "fp32"


# ----------------------------------------------------------------------------------------------------------------- run


class RunSpec(Part):
    """One training: all that its weights depend on, and only that."""

    seed: int = Field(0, ge=0, lt=2**31)
    imported_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")  # weights from a file: trained elsewhere
    continue_from: str | None = Field(None, pattern="^[0-9a-f]{16}$")  # run_key of a done run that is trained further
    data: Data
    diffusion: Diffusion = Diffusion()
    objective: Objective = Simple()
    timestep_sampler: TimestepSampler = Uniform()
    model: Model = UNet()
    optim: Optim = Optim()
    train: Train

    @model_serializer(mode="wrap")
    def _without_an_absent_parent(self, handler: Any) -> dict[str, Any]:
        # The field is younger than run directories are: a spec that does not use it is spelt, and hashed, as before.
        spelt = handler(self)
        return spelt if self.continue_from else {key: one for key, one in spelt.items() if key != "continue_from"}

    @model_validator(mode="after")
    def _parts_fit_together(self) -> RunSpec:
        var_type, objective, facts = self.diffusion.var_type, self.objective.name, self.data.facts
        if objective == "hybrid" and var_type not in LEARNED:
            raise ValueError(
                f"objective hybrid trains the variance, but diffusion.var_type is {var_type}: "
                "choose learned_range (IDDPM) or learned"
            )
        if objective in ("simple", "min_snr") and var_type != "fixed":
            raise ValueError(
                f"objective {objective} does not train the variance, so diffusion.var_type must be fixed, "
                f"not {var_type}; choose beta or beta-tilde where it matters: evaluate[].fixed_variance: large | small"
            )
        if objective == "vlb" and var_type == "fixed":
            raise ValueError(
                "objective vlb weighs its terms by the variance, so diffusion.var_type cannot stay open: "
                "choose learned_range, learned, fixed_small or fixed_large"
            )
        if (self.model.name == "mlp") != (self.data.name == "mog"):
            raise ValueError(
                f"model {self.model.name} does not fit data {self.data.name}: mlp is for mog, unet for images"
            )
        if self.model.class_cond and not facts.num_classes:
            raise ValueError(f"model.class_cond: data {self.data.name} has no labels")
        if self.model.label_dropout and not self.model.class_cond:
            raise ValueError("model.label_dropout hides labels, but model.class_cond is false: there are none")
        if self.continue_from and self.imported_sha256:
            raise ValueError("continue_from trains a run further, imported_sha256 is not trained at all: drop one")
        if isinstance(self.model, UNet) and self.model.low_res_size and not self.imported_sha256:
            raise ValueError(
                "model.low_res_size: upsamplers are imported and sampled here, not trained; `harness import-checkpoint`"
            )
        if isinstance(self.model, UNet):
            self._unet_fits_images(self.model, self.data.pixels)
        return self

    @staticmethod
    def _unet_fits_images(unet: UNet, image_size: int) -> None:
        resolutions = unet.resolutions(image_size)
        if image_size % 2 ** (len(unet.channel_mult) - 1):
            raise ValueError(
                f"model.channel_mult has {len(unet.channel_mult)} levels, "
                f"but {image_size} pixels cannot be halved {len(unet.channel_mult) - 1} times"
            )
        for resolution in unet.attention_resolutions:
            if resolution not in resolutions:
                raise ValueError(
                    f"model.attention_resolutions: the network never is at {resolution}x{resolution}; "
                    f"choices: {', '.join(map(str, resolutions))}, or [] for none"
                )
        widths = {unet.channels * mult for mult in unet.channel_mult}
        if unet.attention_resolutions and any(width % unet.num_heads for width in widths):
            raise ValueError(f"model.num_heads {unet.num_heads} does not divide the widths {sorted(widths)}")

    @cached_property
    def run_key(self) -> str:
        """Return 16 hex digits of sha256 over the canonical JSON of the whole resolved spec and the schema version."""
        return digest({"schema_version": SCHEMA_VERSION, "spec": self.model_dump(mode="json")})

    def warnings(self) -> list[str]:
        """Say what is legal and probably not meant."""
        found = []
        sampler, steps = self.timestep_sampler, self.train.steps
        if isinstance(sampler, LossSecondMoment):
            needed = sampler.steps_to_warm(self.diffusion.num_timesteps, self.train.batch_size)
            if needed > steps:
                found.append(
                    f"timestep_sampler loss_second_moment may stay uniform to the end: with "
                    f"T = {self.diffusion.num_timesteps} and batches of {self.train.batch_size} it is sure to be warm "
                    f"after {needed} steps, train.steps is {steps}"
                )
        kept = self.train.ema_rate**steps
        if kept > 0.1:
            found.append(
                f"train.ema_rate {self.train.ema_rate} over {steps} steps keeps {kept:.0%} of the initial weights "
                f"in the EMA; {1 - 10 / steps:.3g} would keep none"
            )
        return found

    @property
    def cost_key(self) -> str:
        """Return a digest of all that decides what a training step costs: network, images, batch, precision."""
        return digest(
            {
                "model": self.model.model_dump(mode="json"),
                "data": [self.data.name, self.data.pixels],
                "learned_variance": self.diffusion.var_type in LEARNED,
                "vlb": self.objective.name in ("vlb", "hybrid"),
                "batch_size": self.train.batch_size,
                "precision": self.train.precision,
            }
        )


# ---------------------------------------------------------------------------------------------------------- evaluation


class Ancestral(Part):
    name: Literal["ancestral"] = "ancestral"
    spacing: Literal["even", "ddim", "quad"] = "even"


class Ddim(Part):
    name: Literal["ddim"] = "ddim"
    eta: float = Field(0.0, ge=0, le=1)
    spacing: Literal["even", "ddim", "quad"] = "ddim"  # IDDPM: constant stride, since the rounded even one hurt DDIM


class DpmSolverPP(Part):
    name: Literal["dpmpp_2m"] = "dpmpp_2m"
    spacing: Literal["even", "ddim", "quad"] = "even"
    lower_order_final: bool = False  # steadier with few steps, at the cost of the second order at the end


Sampler = Annotated[Ancestral | Ddim | DpmSolverPP, Field(discriminator="name"), BeforeValidator(_named)]


def section_counts(sampler: Ancestral | Ddim | DpmSolverPP, num_steps: int) -> str:
    """Spell a number of sampling steps as `space_timesteps` reads it: "50", "ddim50" or "quad50"."""
    return {"even": "", "ddim": "ddim", "quad": "quad"}[sampler.spacing] + str(num_steps)


class Nll(Part):
    """Bits/dim of the variational bound: the full sum over T, or an unbiased estimate of it with a standard error."""

    estimator: Literal["full", "stratified"] = "stratified"
    num_images: int | None = Field(None, ge=2)  # None: the whole split
    evaluations_per_image: int = Field(40, ge=4)  # stratified only
    clip: bool = True
    decoder: Literal["tanh", "exact"] = "tanh"


EXTRACTORS = ("auto", "inception", "classifier", "coordinates")


class Fidelity(Part):
    """FID, precision and recall. `auto`: Inception where its weights are given, else the data's own classifier."""

    num_samples: int = Field(10_000, ge=16)
    sampler: Sampler = Ancestral()
    num_steps: int | None = Field(250, ge=1)  # None: the whole chain
    extractor: Literal["auto", "inception", "classifier", "coordinates"] = "auto"
    reference: Literal["train", "test"] = "train"
    k: int = Field(3, ge=1)  # neighbours of precision and recall; IDDPM's table 4 has 5, the ADM line 3
    prc_reference: int = Field(10_000, ge=16)  # reference images for them: 10,000 in the ADM line; FID takes all


class Sweep(Part):
    """FID against the number of sampling steps (IDDPM, figure 8)."""

    num_samples: int = Field(10_000, ge=16)
    samplers: tuple[Sampler, ...] = Field((Ancestral(), Ddim()), min_length=1)
    num_steps: tuple[Annotated[int, Field(ge=1)], ...] = Field((25, 50, 100, 200), min_length=1)
    extractor: Literal["auto", "inception", "classifier", "coordinates"] = "auto"
    reference: Literal["train", "test"] = "train"


class Skip(Part):
    """FID when the first fraction of the reverse chain is skipped (IDDPM, figure 4)."""

    num_samples: int = Field(10_000, ge=16)
    sampler: Sampler = Ancestral()
    num_steps: int | None = Field(None, ge=1)  # of the chain before anything is skipped; None: the whole
    fractions: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field((0.0, 0.05, 0.1, 0.15, 0.2), min_length=1)
    extractor: Literal["auto", "inception", "classifier", "coordinates"] = "auto"
    reference: Literal["train", "test"] = "train"


class RateDistortion(Part):
    """Progressive lossy coding (DDPM, figure 5): rate and distortion against reverse steps."""

    num_images: int | None = Field(None, ge=1)  # None: the whole split
    num_steps: int | None = Field(None, ge=1)  # None: the whole chain
    clip: bool = True


class NoiseScale(Part):
    """The gradient noise scale of the run's objective and timestep sampler (IDDPM, figure 7), at the raw weights."""

    batch_size: int = Field(32, ge=1)
    small_per_big: int = Field(8, ge=2)  # the big batch, in small ones
    num_big: int = Field(16, ge=1)


class Evaluation(Part):
    """A protocol: what is measured on a finished run's weights, and how. `name` is the prefix of its metrics."""

    name: str = Field("eval", pattern=r"^[a-z][a-z0-9_]{0,39}$")
    split: Literal["test", "train"] = "test"  # of the likelihood
    weights: Literal["ema", "raw", "untrained"] = "ema"  # untrained: the initial ones, a baseline
    fixed_variance: Literal["small", "large"] = "large"  # beta-tilde or beta, where var_type is fixed
    seed: int = Field(0, ge=0, lt=2**31)
    batch_size: int = Field(256, ge=1)
    guidance: float = Field(1.0, ge=0)  # of samples, by dropped labels; 1 is the conditional network alone
    nll: Nll | None = None
    fidelity: Fidelity | None = None
    sweep: Sweep | None = None
    skip: Skip | None = None
    rate_distortion: RateDistortion | None = None
    noise_scale: NoiseScale | None = None
    grid: int | None = Field(None, ge=1, le=1024)  # sampled images in the picture
    every: int | None = Field(None, ge=1)  # also every so many steps of training (likelihood alone)

    @field_validator("name")
    @classmethod
    def _prefix_is_free(cls, name: str) -> str:
        if name in ("train", "perf", "system", "sweep"):
            raise ValueError(f"{name!r} is the prefix of other metrics; take eval or eval_something")
        return name

    @property
    def parts(self) -> list[str]:
        """Return what it measures."""
        kinds = ("nll", "fidelity", "sweep", "skip", "rate_distortion", "noise_scale", "grid")
        return [part for part in kinds if getattr(self, part) is not None]

    @property
    def key(self) -> str:
        """Return 16 hex digits over the whole protocol."""
        return digest({"schema_version": SCHEMA_VERSION, "evaluation": self.model_dump(mode="json")})

    def resolve(self, spec: RunSpec, *, inception: bool) -> Evaluation:
        """Return this protocol with nothing left open for `spec`: extractors named, moot choices at their default.

        Args:
            spec: the run to be evaluated.
            inception: whether weights of Inception-V3 are at hand.

        Raises:
            ValueError: it asks for what this run cannot give.
        """
        if self.every is not None and self.nll is None:
            raise ValueError("every: needs an nll to measure during training")
        if self.every is not None and self.weights == "untrained":
            raise ValueError("every: the untrained weights do not change during training")
        if not self.parts:
            raise ValueError(
                f"evaluation {self.name!r} measures nothing; give it one of nll, fidelity, sweep, grid, ..."
            )
        if isinstance(spec.model, UNet) and spec.model.low_res_size:
            raise ValueError("an upsampler needs small images: `harness sample RUN --low-res FILE.npz`")
        if self.guidance != 1 and not spec.model.label_dropout:
            raise ValueError("guidance needs a network that was trained with model.label_dropout, such as 0.1")
        if self.noise_scale and self.weights != "raw":
            raise ValueError("noise_scale is measured where training stands: say weights: raw")
        num_timesteps, change = spec.diffusion.num_timesteps, dict[str, Any]()
        if spec.diffusion.var_type != "fixed":
            change["fixed_variance"] = "large"  # moot: one key for one measurement
        for part in ("fidelity", "sweep", "skip"):
            wanted = getattr(self, part)
            if wanted is None:
                continue
            closed: dict[str, Any] = {"extractor": self._extractor(wanted.extractor, spec, inception)}
            if part != "sweep":
                closed["num_steps"] = wanted.num_steps or num_timesteps
            change[part] = wanted.model_copy(update=closed)
            for sampler in wanted.samplers if part == "sweep" else [wanted.sampler]:
                for count in wanted.num_steps if part == "sweep" else [closed["num_steps"]]:
                    space_timesteps(num_timesteps, section_counts(sampler, count))
        if self.rate_distortion:
            num_steps = self.rate_distortion.num_steps or num_timesteps
            space_timesteps(num_timesteps, str(num_steps))
            change["rate_distortion"] = self.rate_distortion.model_copy(update={"num_steps": num_steps})
        return self.model_copy(update=change)

    @staticmethod
    def _extractor(wanted: str, spec: RunSpec, inception: bool) -> str:
        points = spec.data.name == "mog"
        if (wanted == "coordinates") != points and wanted != "auto":
            raise ValueError(f"extractor {wanted} does not fit data {spec.data.name}: coordinates are for mog, only")
        if wanted == "inception" and not inception:
            raise ValueError(
                "extractor inception: name the file of its weights in HARNESS_INCEPTION_WEIGHTS "
                "(torch-fidelity's weights-inception-2015-12-05-6726825d.pth), or take extractor: classifier"
            )
        if wanted == "classifier" and not spec.data.facts.num_classes:
            raise ValueError(f"extractor classifier: data {spec.data.name} has no labels; take inception")
        if wanted != "auto":
            return wanted
        if points:
            return "coordinates"
        if inception and spec.data.pixels >= 32:
            return "inception"
        if not spec.data.facts.num_classes:
            raise ValueError(
                f"data {spec.data.name} has no labels to train a feature extractor on: "
                "name the file of Inception's weights in HARNESS_INCEPTION_WEIGHTS"
            )
        return "classifier"


def extractor_name(extractor: str, data_name: str) -> str:
    """Return the name under which a resolved extractor stands in a metric: inception, digitsnet, coordinates."""
    return f"{data_name}net" if extractor == "classifier" else extractor


# ------------------------------------------------------------------------------------------------- outside the identity


class Resources(Part):
    """What a run needs and how it is computed. Bits may depend on it, the science does not; it is recorded."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(None, ge=1)  # None: the share of the cores that the job was given at its first start
    microbatch: int | None = Field(None, ge=1)  # gradient accumulation: examples per forward pass
    activation_checkpointing: bool = False
    deterministic: bool = False  # CUDA: bit-exact resume, slower kernels
    nodes: int = Field(1, ge=1)  # of one run: more than one process trains it by torch.distributed
    gpus_per_node: int = Field(0, ge=0)
    processes_per_node: int | None = Field(None, ge=1)  # None: one a GPU, without GPUs one
    cpus: int = Field(1, ge=1)  # of each process
    memory_gib: float = Field(4.0, gt=0)
    time_minutes: int = Field(24 * 60, ge=1)
    pack: int = Field(1, ge=1)  # small runs that share the cores and GPUs of one SLURM job
    canary: bool = False  # SLURM: the array waits until its first run has made 50 steps

    @property
    def num_processes(self) -> int:
        """Return how many processes train one run."""
        return self.nodes * (self.processes_per_node or max(1, self.gpus_per_node))


class Records(Part):
    log_every: int = Field(10, ge=1)  # steps
    checkpoint_every_seconds: float = Field(60.0, ge=0)
    keep_every: int | None = Field(None, ge=1)  # steps; every such checkpoint stays
    best: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]*/\w+$")  # the checkpoint with the least of it stays


def canonical_json(value: Any) -> str:
    """Spell plain values in the one way that is hashed: sorted keys, no spaces, floats by repr."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(value: Any) -> str:
    """Return the 16 hex digits that stand for plain values."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
