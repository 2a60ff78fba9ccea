"""Parameters of the methods."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from harness.spec.discriminators import Discriminator, MLPDiscriminator, SmallDiscriminator, UNetDiscriminator
from harness.spec.parts import Choice, NamedModel, choices
from harness.spec.resources import Resources
from harness.spec.schedules import Vp


class MethodSpec(NamedModel):
    """Base of methods. A method's parameters are fields of its class, including their defaults."""

    owns: ClassVar[tuple[str, ...]] = ()
    """Dotted paths of a run's spec that only this method, and others that list them, use; refused for other methods."""
    measures: ClassVar[frozenset[str]] = frozenset(
        ("fidelity", "sweep", "skip", "modes", "grid", "trajectories", "progressive", "interpolation", "metrics")
    )
    """The parts of an evaluation that it supports: by default those on samples."""
    keeps_averages: ClassVar[bool] = False
    """Whether it keeps the averages of the weights that `train.ema` asks for; else there is the one of `ema_rate`."""

    def defaults(self, run: Any) -> dict[str, Any]:
        """Return this method's own defaults of fields of a run, as {"part.field": value}; `run` is a RunSpec."""
        return {}

    def check_resources(self, run: Any, resources: Resources) -> None:
        """Raise ValueError if a run with this method cannot be computed in this way."""

    @classmethod
    def check_declaration(cls) -> None:
        """Require that what it owns and measures exists."""
        from harness.spec.evaluation import PARTS

        known = dict.fromkeys(path for method in METHODS.values() for path in method.owns)
        for path in cls.owns:
            if path not in known:
                raise ValueError(f"owns: {path!r} belongs to no method; choices: {', '.join(known)}")
        if unknown := sorted(cls.measures - set(PARTS)):
            raise ValueError(f"measures: an evaluation has no part {unknown[0]!r}; choices: {', '.join(PARTS)}")


class Gaussian(MethodSpec):
    """DDPM and Improved DDPM: one denoising network, trained by an objective at random timesteps."""

    name: Literal["gaussian"] = "gaussian"

    keeps_averages: ClassVar[bool] = True
    owns: ClassVar[tuple[str, ...]] = ("objective", "timestep_sampler", "diffusion.mean_type", "diffusion.var_type")
    measures: ClassVar[frozenset[str]] = MethodSpec.measures | {
        "nll",
        "rate_distortion",
        "noise_scale",
        "reconstruction",
    }


class Adversarial(MethodSpec):
    """Base of the adversarial methods: the generator's latent, the discriminator, and how it is trained.

    `optim` is the generator's, and the discriminator's but for its learning rate.
    """

    latent_dim: int = Field(100, ge=1, le=65536)
    style_dim: int = Field(256, ge=1, le=65536)  # of the mapping network that makes a style of z
    mapping_layers: int = Field(5, ge=1, le=100)  # its dense layers: one more than n_mlp of DDGAN's code
    discriminator: Discriminator = SmallDiscriminator()
    lr_discriminator: float = Field(1.25e-4, gt=0)
    r1_gamma: float = Field(0.02, ge=0)  # 0: no penalty
    r1_every: int = Field(15, ge=1)  # steps; the penalty is not multiplied by them
    denoising_weight: float = Field(0.0, ge=0)  # of x_0 predicted by the discriminator from real x_t

    keeps_averages: ClassVar[bool] = True
    measures: ClassVar[frozenset[str]] = MethodSpec.measures | {"rate_distortion"}
    sees_pair: ClassVar[bool]

    @property
    def needs_heads(self) -> bool:
        """Return whether the discriminator has to predict images beside its logit."""
        return self.denoising_weight > 0

    def defaults(self, run: Any) -> dict[str, Any]:
        """Return the published settings: few large steps of the vp process, Adam with (0.5, 0.9)."""
        values = {
            "diffusion.num_timesteps": 4,
            "diffusion.schedule": Vp(),
            "optim.lr": 1.6e-4,
            "optim.betas": (0.5, 0.9),
        }
        if run.data.facts.are_points:
            values["method.discriminator"] = MLPDiscriminator()
        return values

    def check(self, run: Any) -> None:
        """Require networks, a batch and labels that fit."""
        part = self.discriminator
        try:
            part.require_data(run.data.facts)
        except ValueError as error:
            raise ValueError(f"method.discriminator: {error}") from None
        if self.needs_heads and not part.heads:
            able = [name for name, kind in choices(Discriminator).items() if getattr(kind, "heads", False)]
            raise ValueError(
                f"method.discriminator {part.name} has no heads to predict images with, as denoising_weight and C_psi "
                f"need: choose {' | '.join(able)}"
            )
        if run.model.label_dropout:
            raise ValueError("model.label_dropout is for classifier-free guidance, which adversarial methods have not")
        if getattr(run.model, "low_res_size", None):
            raise ValueError("model.low_res_size: an upsampler is no generator of this method")
        self._check_rows(run.train.batch_size, "train.batch_size")

    def check_resources(self, run: Any, resources: Resources) -> None:
        """Refuse microbatches, compiling, and processes whose rows are no whole groups."""
        if resources.kernels in ("compiled", "cuda_graphs"):
            raise ValueError(
                f"kernels: {resources.kernels} compiles the network of method gaussian alone; {self.name}'s penalty "
                "takes a gradient of a gradient, which compiled networks have not: take fused"
            )
        if resources.microbatch:
            raise ValueError(
                f"microbatch: method {self.name} needs all examples of a process in one pass; remove it, and use "
                "activation_checkpointing or more processes to save memory"
            )
        count, size = resources.num_processes, run.train.batch_size
        for rank in range(count):
            rows = (rank + 1) * size // count - rank * size // count
            self._check_rows(rows, f"with {count} processes and train.batch_size {size} the share of one")

    def _check_rows(self, rows: int, what: str) -> None:
        multiple = self.discriminator.batch_multiple
        if rows % multiple:
            raise ValueError(
                f"{what} is {rows}, but discriminator {self.discriminator.name} compares groups of {multiple} "
                f"examples: choose a multiple of {multiple}"
            )


class Ddgan(Adversarial):
    """Denoising Diffusion GANs: the discriminator sees pairs (x_t, x_{t+1}). Defaults: its code's CIFAR-10 command."""

    name: Literal["ddgan"] = "ddgan"

    sees_pair: ClassVar[bool] = True


class Siddm(Adversarial):
    """Semi-implicit denoising diffusion: the discriminator sees x_t alone, and AFD ties x_t to x_{t+1}."""

    name: Literal["siddm"] = "siddm"
    discriminator: Discriminator = UNetDiscriminator()
    r1_gamma: float = Field(0.0, ge=0)
    r1_every: int = Field(1, ge=1)
    denoising_weight: float = Field(1.0, ge=0)
    lambda_afd: float = Field(1.0, ge=0)  # 0: the game on the marginal alone
    adversarial: bool = True  # false: AFD alone, lambda infinite
    cross_entropy: Literal["exact", "printed"] = "exact"  # printed: as in the paper, not stationary at the truth
    c_psi_target: Literal["x_t", "renoised"] | None = "x_t"  # null: no C_psi and no entropy, as the authors' code

    sees_pair: ClassVar[bool] = False

    @property
    def needs_heads(self) -> bool:
        """Return whether the discriminator has to predict images beside its logit."""
        return self.denoising_weight > 0 or (self.lambda_afd > 0 and self.c_psi_target is not None)

    def check(self, run: Any) -> None:
        """Also require something to minimise."""
        super().check(run)
        if not self.adversarial and not self.lambda_afd:
            raise ValueError(
                "method: adversarial false leaves AFD alone, but lambda_afd is 0: nothing would be trained"
            )


WHY_NOT = {
    "nll": "needs a density of x_t given x_{t+1}, to add up a bound",
    "noise_scale": "is of the gradient of one loss of one network",
    "reconstruction": "runs the chain forwards and backwards, which a latent of its own at each step does not allow",
}
"""Why a part of an evaluation cannot be measured under every method."""

METHODS: dict[str, type[MethodSpec]] = {"gaussian": Gaussian, "ddgan": Ddgan, "siddm": Siddm}


Method = Annotated[MethodSpec, Choice("method", MethodSpec, METHODS)]
