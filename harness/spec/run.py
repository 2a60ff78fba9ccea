"""RunSpec and its parts.

Frozen pydantic models that refuse unknown keys; every default is written out in the resolved spec that is stored with
the run. This file imports no torch: `plan` and `status` are fast on a login node.
tests/unit/contracts/test_registries.py checks that the names here and in the registries agree.

Two identities follow from it:

- `run_key(spec)`: everything that the trained weights depend on, and only that. Resources, names and tags are excluded.
- `evaluation_key(evaluation)`: the protocol of a measurement on those weights. Adding one trains nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from harness.spec.averages import Ema, PowerAverages, average_name, require_averages
from harness.spec.base import SCHEMA_VERSION, YOUNGER, SpecModel, canonical_json, digest, digest_of_json
from harness.spec.data import Data
from harness.spec.methods import METHODS, Gaussian, Method
from harness.spec.networks import MLP, Model, UNet
from harness.spec.parts import KINDS, Choice, NamedModel, plugins_of
from harness.spec.schedules import Linear, Schedule

LEARNED = ("learned", "learned_range")


class Diffusion(SpecModel):
    """The process. `var_type: fixed` leaves the choice between beta and beta-tilde to the evaluation."""

    num_timesteps: int = Field(1000, ge=1, le=1_000_000)
    schedule: Schedule = Linear()
    mean_type: Literal["epsilon", "x_0", "previous_x", "v"] = "epsilon"
    var_type: Literal["fixed", "fixed_small", "fixed_large", "learned", "learned_range"] = "fixed"


class ObjectiveModel(NamedModel):
    """What every objective says of itself; a plugin's own class adds its parameters."""

    trains_variance: ClassVar[bool] = False
    terms: ClassVar[tuple[str, ...]] = ("loss", "mse", "vb")
    """Names of what it gives of each example: the loss, which is minimised, and what else is logged."""

    @classmethod
    def check_declaration(cls) -> None:
        """Ask for names that can be logged, the loss among them."""
        if "loss" not in cls.terms or not all(re.fullmatch("[a-z][a-z0-9_]{0,39}", term) for term in cls.terms):
            raise ValueError(
                f"terms: names of lower-case letters, digits and underscores, loss among them: {cls.terms}"
            )


class Simple(ObjectiveModel):
    """L_simple (DDPM, eq. 14): the mean squared error of the network's prediction."""

    name: Literal["simple"] = "simple"


class Hybrid(ObjectiveModel):
    """L_hybrid = L_simple + lambda_vlb L_vlb (IDDPM, eq. 16), the mean detached inside L_vlb."""

    name: Literal["hybrid"] = "hybrid"
    lambda_vlb: float = Field(0.001, ge=0)
    trains_variance: ClassVar[bool] = True


class Vlb(ObjectiveModel):
    """L_vlb (DDPM, eq. 5), in bits/dim."""

    name: Literal["vlb"] = "vlb"
    trains_variance: ClassVar[bool] = True


class MinSnr(ObjectiveModel):
    """L_simple weighted by min(SNR, gamma) in x_0's terms (Hang et al. 2023)."""

    name: Literal["min_snr"] = "min_snr"
    gamma: float = Field(5.0, gt=0)


Objective = Annotated[
    ObjectiveModel,
    Choice("objective", ObjectiveModel, {"simple": Simple, "hybrid": Hybrid, "vlb": Vlb, "min_snr": MinSnr}),
]


class Uniform(NamedModel):
    name: Literal["uniform"] = "uniform"


class LossSecondMoment(NamedModel):
    """p_t ~ sqrt(E[L_t^2]) (IDDPM, eq. 18), uniform until every t has its history."""

    name: Literal["loss_second_moment"] = "loss_second_moment"
    history_per_term: int = Field(10, ge=1, le=1000)
    uniform_prob: float = Field(0.001, ge=0, le=1)

    def steps_to_warm(self, num_timesteps: int, batch_size: int) -> int:
        """Return the number of steps after which, with probability 95 %, every t has a full history.

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


TimestepSampler = Annotated[
    NamedModel, Choice("timestep_sampler", NamedModel, {"uniform": Uniform, "loss_second_moment": LossSecondMoment})
]


class Optim(SpecModel):
    """AdamW; with weight_decay 0 it is the Adam of the papers."""

    lr: float = Field(1e-4, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    decay: Literal["none", "linear", "cosine"] = "none"  # to final_lr at the last step
    final_lr: Annotated[float, YOUNGER] = Field(0.0, ge=0)
    grad_clip: float | None = Field(None, gt=0)  # by the global norm

    @model_validator(mode="after")
    def _decays_to_less(self) -> Optim:
        if self.final_lr and self.decay == "none":
            raise ValueError("final_lr is where a decay ends: choose decay: linear | cosine, or remove it")
        if self.final_lr > self.lr:
            raise ValueError(f"final_lr {self.final_lr} is more than lr {self.lr}")
        return self


class Train(SpecModel):
    steps: int = Field(ge=1)
    batch_size: int = Field(128, ge=1)  # global: over all processes and accumulated microbatches
    ema_rate: float = Field(0.9999, ge=0, lt=1)
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32",
        description="Arithmetic of a GPU: float32; float32 with TF32's 10 bits in products; or bfloat16 by autocast.",
    )
    ema: Annotated[Ema, YOUNGER] = Field(
        None,
        description="Several averages of the weights in place of ema_rate; the first is what `weights: ema` means.",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_kind_of_averages(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("ema") is None or "ema_rate" not in values:
            return values
        if values["ema_rate"] is not None:
            raise ValueError(
                f"ema_rate {values['ema_rate']} and ema are both given: remove one of them, or say ema_rate: null if "
                "it comes from a study that is extended"
            )
        return {name: value for name, value in values.items() if name != "ema_rate"}

    def unwritten_paths(self) -> Iterable[str]:
        """Also return `ema_rate` where `ema` takes its place."""
        return [*super().unwritten_paths(), *([] if self.ema is None else ["ema_rate"])]

    @property
    def ema_rates(self) -> tuple[float, ...]:
        """Return the rates of the exponential averages, none of them if they are power functions."""
        if isinstance(self.ema, PowerAverages):
            return ()
        return self.ema or (self.ema_rate,)

    @property
    def averages(self) -> tuple[str, ...]:
        """Return the names of the averages, the first as "ema": those of rates or of widths."""
        others = self.ema.power if isinstance(self.ema, PowerAverages) else self.ema_rates
        return ("ema", *map(average_name, others[1:]))


def _largest_ema_rate(steps: int) -> str:
    """Return the largest rate, two digits of 1 - rate, with which at most a tenth of the initial weights remains."""
    gap = -math.expm1(math.log(0.1) / steps)  # 1 - 0.1^(1 / steps)
    num_decimals = 1 - math.floor(math.log10(gap))
    return f"{1 - math.ceil(gap * 10**num_decimals) / 10**num_decimals:.{num_decimals}f}"


class RunSpec(SpecModel):
    """One training: everything that its weights depend on, and only that."""

    seed: int = Field(0, ge=0, lt=2**31)
    imported_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")  # weights from a file: trained elsewhere
    continue_from: Annotated[str | None, YOUNGER] = Field(None, pattern="^[0-9a-f]{16}$")  # run_key of a done run
    method: Annotated[Method, YOUNGER] = Gaussian()
    data: Data
    diffusion: Diffusion = Diffusion()
    objective: Objective = Simple()
    timestep_sampler: TimestepSampler = Uniform()
    model: Model = UNet()
    optim: Optim = Optim()
    train: Train
    plugins: Annotated[dict[str, str] | None, YOUNGER] = (
        None  # plugins of the parts, with their sha256; filled in automatically
    )

    @model_validator(mode="after")
    def _names_its_plugins(self) -> RunSpec:
        used = plugins_of(self) or None
        if self.plugins not in (None, used):
            raise ValueError(f"plugins: the parts come from {used or 'none'}, not from {self.plugins}")
        object.__setattr__(self, "plugins", used)
        return self

    def unwritten_paths(self) -> Iterable[str]:
        """Also return the fields that only other methods use."""
        return [*super().unwritten_paths(), *self._foreign_paths()]

    def _foreign_paths(self) -> list[str]:
        """Return the dotted paths that only methods other than this run's use."""
        owned = dict.fromkeys(path for method in METHODS.values() for path in method.owns)
        return [path for path in owned if path not in self.method.owns]

    @model_validator(mode="after")
    def _method_has_defaults(self) -> RunSpec:
        """Give fields that were left open the values that this method is published with, so that they are written."""
        for path, value in self.method.defaults(self).items():
            part, name = path.split(".")
            if name not in getattr(self, part).model_fields_set:
                object.__setattr__(self, part, getattr(self, part).model_copy(update={name: value}))
        return self

    @model_validator(mode="after")
    def _only_this_methods_fields(self) -> RunSpec:
        for path in self._foreign_paths():
            *parents, name = path.split(".")
            part: SpecModel = self
            for parent in parents:
                part = getattr(part, parent)
            if name in part.model_fields_set:
                owners = [method for method, kind in METHODS.items() if path in kind.owns]
                raise ValueError(
                    f"{path} is used by method {' and '.join(owners)}, not by {self.method.name}: "
                    f"remove it, or choose method: {' | '.join(owners)}"
                )
        return self

    @model_validator(mode="after")
    def _trained_variance_is_learned(self) -> RunSpec:
        """Give `diffusion.var_type` the only sensible default beside an objective that trains the variance."""
        owned = "diffusion.var_type" in self.method.owns
        if owned and self.objective.trains_variance and "var_type" not in self.diffusion.model_fields_set:
            learned = self.diffusion.model_copy(update={"var_type": "learned_range"})  # IDDPM, eq. 15
            object.__setattr__(self, "diffusion", learned)
        return self

    @model_validator(mode="after")
    def _parts_fit_together(self) -> RunSpec:
        var_type, objective, facts = self.diffusion.var_type, self.objective.name, self.data.facts
        if self.diffusion.schedule.name == "linear" and (length := self.diffusion.num_timesteps) < 21:
            raise ValueError(
                f"diffusion: a linear schedule with num_timesteps = {length} has beta_T = 20 / T >= 1; "
                "take num_timesteps of 21 or more, or the cosine schedule"
            )
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
                "objective vlb weights its terms by the variance, so diffusion.var_type cannot be fixed: "
                "choose learned_range, learned, fixed_small or fixed_large"
            )
        if objective not in KINDS["objective"].built_in and var_type in LEARNED and not self.objective.trains_variance:
            raise ValueError(f"objective {objective} does not train the variance, but diffusion.var_type is {var_type}")
        require_averages(self)
        if facts.image_size is None:
            raise ValueError(f"data {self.data.name}: its facts leave image_size open")
        for part in (
            self.data,
            self.diffusion.schedule,
            self.objective,
            self.timestep_sampler,
            self.model,
            self.method,
        ):
            part.check(self)
        if isinstance(self.model, UNet | MLP) and isinstance(self.model, MLP) != facts.are_points:
            raise ValueError(
                f"model {self.model.name} does not fit data {self.data.name}: mlp is for points such as mog, "
                "unet for images"
            )
        if self.model.class_cond and not facts.num_classes:
            raise ValueError(f"model.class_cond: data {self.data.name} has no labels")
        if self.model.label_dropout and not self.model.class_cond:
            raise ValueError("model.label_dropout drops labels, but model.class_cond is false")
        if self.continue_from and self.imported_sha256:
            raise ValueError(
                "continue_from trains a run further, but imported_sha256 is not trained: remove one of them"
            )
        if isinstance(self.model, UNet) and self.model.low_res_size and not self.imported_sha256:
            raise ValueError(
                "model.low_res_size: upsamplers cannot be trained, only imported: `harness import-checkpoint`"
            )
        if isinstance(self.model, UNet):
            self.model.require_image_size(self.data.pixels)
        return self

    @cached_property
    def run_key(self) -> str:
        """Return 16 hex digits of sha256 over the canonical JSON of the whole resolved spec and the schema version."""
        parts = ",".join(f'"{name}":{self._json_of(name)}' for name in sorted(self.plain))
        return digest_of_json(f'{{"schema_version":{SCHEMA_VERSION},"spec":{{{parts}}}}}')

    def _json_of(self, name: str) -> str:
        """Return a written field in canonical form, which parts have ready that several runs share."""
        part, written = getattr(self, name), self.plain[name]
        is_whole = isinstance(part, SpecModel) and written is part.as_plain
        return part.as_json if is_whole else canonical_json(written)

    @cached_property
    def plain(self) -> dict[str, Any]:
        """Return the whole resolved spec as plain values, as it is stored and hashed; they are not to be changed.

        Those of its parts are computed once for all the runs of a study that share them.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        written = {name: part.as_plain if isinstance(part, SpecModel) else part for name, part in values.items()}
        for path in self.unwritten_paths():
            part, _, name = path.rpartition(".")
            if not part:
                written.pop(name, None)
            elif part in written:
                written[part] = {key: value for key, value in written[part].items() if key != name}
        return written

    def replicate(self, seed: int) -> RunSpec:
        """Return this spec with another seed, neither validated nor dumped anew: nothing else depends on the seed."""
        twin = self.model_copy(update={"seed": seed})
        twin.__dict__.update(plain=self.plain | {"seed": seed}, cost_key=self.cost_key)
        return twin

    def warnings(self) -> list[str]:
        """Return warnings about valid but probably unintended settings."""
        messages = []
        sampler, steps = self.timestep_sampler, self.train.steps
        if isinstance(sampler, LossSecondMoment):
            needed = sampler.steps_to_warm(self.diffusion.num_timesteps, self.train.batch_size)
            if needed > steps:
                messages.append(
                    f"timestep_sampler loss_second_moment may stay uniform to the end: with "
                    f"T = {self.diffusion.num_timesteps} and batches of {self.train.batch_size} it is warm only "
                    f"after {needed} steps, train.steps is {steps}"
                )
        for rate in self.train.ema_rates:
            if (kept := rate**steps) > 0.1:
                field = "ema_rate" if self.train.ema is None else "ema"
                messages.append(
                    f"train.{field} {rate} over {steps} steps keeps {kept:.0%} of the initial weights "
                    f"in the EMA; use {_largest_ema_rate(steps)} or less"
                )
        return messages

    @cached_property
    def cost_key(self) -> str:
        """Return a digest of what determines the cost of a training step: network, images, batch, precision."""
        default = type(self).model_fields["method"].default
        method = {} if self.method == default else {"method": self.method.as_plain}
        costly = {name: getattr(self, name) for name in ("method", "data", "objective", "timestep_sampler", "model")}
        own = {name: [part.name, plugins_of(part)] for name, part in costly.items() if plugins_of(part)}
        return digest(
            method
            | ({"own": own} if own else {})
            | ({} if self.train.ema is None else {"averages": len(self.train.averages)})
            | {
                "model": self.model.as_plain,
                "data": [self.data.name, self.data.pixels],
                "learned_variance": self.diffusion.var_type in LEARNED,
                "vlb": self.objective.name in ("vlb", "hybrid"),
                "batch_size": self.train.batch_size,
                "precision": self.train.precision,
            }
        )
