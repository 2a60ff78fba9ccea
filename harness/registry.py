"""The only place where a spec's names become objects. Each registry is a literal dict beside the code it lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import nn

from harness.data.base import Dataset
from harness.data.facts import DatasetFacts
from harness.data.sources import DATASETS
from harness.diffusion.objectives import OBJECTIVES
from harness.diffusion.process import GaussianDiffusion, VarType
from harness.diffusion.samplers import SAMPLERS
from harness.diffusion.schedules import SCHEDULES
from harness.diffusion.timesteps import TIMESTEP_SAMPLERS
from harness.methods.adversarial import AdversarialMethod
from harness.methods.averages import Move, exponential, power_function
from harness.methods.base import Method
from harness.methods.ddgan import DenoisingGan
from harness.methods.gaussian import GaussianMethod
from harness.methods.learning_rate import learning_rate
from harness.methods.optimizer import AdamW
from harness.methods.siddm import SemiImplicit
from harness.models import DISCRIMINATORS, MODELS, SuperResUNet
from harness.models.layers import Latent
from harness.models.unet import use_fused_kernels
from harness.randomness import derive_seed
from harness.spec.averages import PowerAverages
from harness.spec.base import SpecModel
from harness.spec.data import DataModel
from harness.spec.methods import Adversarial, Siddm
from harness.spec.networks import MLP, NetworkModel, UNet
from harness.spec.parts import NamedModel, plugin_implementation
from harness.spec.resources import Resources
from harness.spec.run import LEARNED, Diffusion, RunSpec, Train

BUILT_IN: dict[str, Mapping[str, Callable[..., Any]]] = {
    "schedule": SCHEDULES,
    "objective": OBJECTIVES,
    "timestep_sampler": TIMESTEP_SAMPLERS,
    "sampler": SAMPLERS,
    "model": MODELS,
    "discriminator": DISCRIMINATORS,
    "data": DATASETS,
    "metric": {},
}


def implementation(kind: str, part: NamedModel | DataModel | UNet | MLP) -> Callable[..., Any]:
    """Return the implementation of a part of a spec: a plugin's, or the built-in one of its name."""
    return plugin_implementation(part) or BUILT_IN[kind][part.name]


def parameters(part: SpecModel) -> dict:
    """Return a part's fields without its name: the keyword arguments of its implementation."""
    return part.model_dump(exclude={"name"})


def make_process(
    diffusion: Diffusion,
    levels: int | None,
    *,
    fixed_variance: Literal["small", "large"] = "large",
    decoder: Literal["tanh", "exact"] = "tanh",
) -> GaussianDiffusion:
    """Build the process; `fixed_variance` (small or large) makes the choice that `var_type: fixed` leaves open."""
    betas = implementation("schedule", diffusion.schedule)(diffusion.num_timesteps, **parameters(diffusion.schedule))
    var_type = f"fixed_{fixed_variance}" if diffusion.var_type == "fixed" else diffusion.var_type
    return GaussianDiffusion(
        betas, mean_type=diffusion.mean_type, var_type=cast(VarType, var_type), levels=levels, decoder=decoder
    )


def make_network(
    spec: RunSpec,
    data: Dataset | DatasetFacts,
    *,
    activation_checkpointing: bool = False,
    latent: Latent | None = None,
) -> nn.Module:
    """Build the network with the initial weights of the run's seed: the same on every device.

    Args:
        data: only its declared facts are used, so that a network can be built without the images.
        latent: makes it a generator of x_0 that takes z.
    """
    out_channels = data.channels * (2 if spec.diffusion.var_type in LEARNED else 1)
    num_classes = None
    if spec.model.class_cond:
        assert data.num_classes is not None, "the spec's validation asks for labels"
        num_classes = data.num_classes + bool(spec.model.label_dropout)  # the last class then means "no label"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(spec.seed, "init"))
        if isinstance(spec.model, UNet):
            assert data.image_size is not None, "only image_folder leaves it open, and its spec says it"
            return (SuperResUNet if spec.model.low_res_size else MODELS["unet"])(
                in_channels=data.channels,
                model_channels=spec.model.channels,
                out_channels=out_channels,
                num_res_blocks=spec.model.num_res_blocks,
                attention_resolutions=[data.image_size // size for size in spec.model.attention_resolutions],
                dropout=spec.model.dropout,
                channel_mult=spec.model.channel_mult,
                num_classes=num_classes,
                num_heads=spec.model.num_heads,
                use_scale_shift_norm=spec.model.use_scale_shift_norm,
                use_checkpoint=activation_checkpointing,
                latent=latent,
                resample_first=spec.model.resample_first,
            )
        if isinstance(spec.model, NetworkModel):
            options = parameters(spec.model)
            for read_elsewhere in NetworkModel.model_fields.keys() - {"name"}:
                del options[read_elsewhere]
            return implementation("model", spec.model)(
                in_channels=data.channels,
                out_channels=out_channels,
                image_size=data.image_size,
                num_classes=num_classes,
                **options,
                **({} if latent is None else {"latent": latent}),
            )
        return MODELS["mlp"](
            data.channels,
            out_channels,
            spec.model.width,
            spec.model.depth,
            num_classes,
            latent=latent,
            input_scale=spec.model.input_scale,
        )


def make_learning_rate(spec: RunSpec, lr: float | None = None) -> Callable[[int], float]:
    """Return the learning rate of a step, counted from 0: `optim.lr` or `peak`, with warm-up and decay."""
    optim = spec.optim
    return partial(
        learning_rate,
        num_steps=spec.train.steps,
        peak=optim.lr if lr is None else lr,
        warmup_steps=optim.warmup_steps,
        decay=optim.decay,
        final=optim.final_lr,
    )


def make_averages(train: Train) -> dict[str, Move]:
    """Return how a step moves each average of the weights, by name; the first is "ema"."""
    if isinstance(train.ema, PowerAverages):
        moves = [power_function(width) for width in train.ema.power]
    else:
        moves = [exponential(rate) for rate in train.ema_rates]
    return dict(zip(train.averages, moves, strict=True))


COMPILERS: dict[str, Callable[..., Any]] = {
    "compiled": partial(torch.compile, dynamic=False),
    "cuda_graphs": partial(torch.compile, dynamic=False, mode="reduce-overhead"),
}
"""How a network in training is compiled, by `resources.kernels`."""


def make_gaussian(
    spec: RunSpec, data: Dataset | DatasetFacts, resources: Resources, device: torch.device
) -> GaussianMethod:
    """Build DDPM or Improved DDPM: the network on its device, the objective, the optimizer and the EMA."""
    network = make_network(spec, data, activation_checkpointing=resources.activation_checkpointing).to(device)
    fused = resources.kernels != "reference"
    if fused:
        use_fused_kernels(network)
    optim, sampler = spec.optim, spec.timestep_sampler
    return GaussianMethod(
        network,
        make_process(spec.diffusion, data.levels).to(device),
        partial(implementation("objective", spec.objective), **parameters(spec.objective)),
        implementation("timestep_sampler", sampler)(spec.diffusion.num_timesteps, **parameters(sampler), device=device),
        AdamW(
            network.parameters(),
            lr=optim.lr,
            betas=optim.betas,
            weight_decay=optim.weight_decay,
            fused=fused or None,  # None leaves the choice to torch, as before
        ),
        learning_rate=make_learning_rate(spec),
        averages=make_averages(spec.train),
        timestep_scale=1000 / spec.diffusion.num_timesteps if spec.model.rescale_timesteps else 1.0,
        grad_clip=optim.grad_clip,
        microbatch=resources.microbatch,
        autocast=torch.bfloat16 if spec.train.precision == "bf16" else None,
        num_classes=data.num_classes if spec.model.class_cond else None,
        terms=spec.objective.terms,
        compiler=COMPILERS.get(resources.kernels),
    )


def make_discriminator(spec: RunSpec, data: Dataset | DatasetFacts, *, pair: bool) -> nn.Module:
    """Build the discriminator of an adversarial method with the initial weights of the run's seed.

    Args:
        pair: whether it sees x_{t+1} beside x_t.
    """
    method = cast(Adversarial, spec.method)
    part = method.discriminator
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(spec.seed, "init/discriminator"))
        return implementation("discriminator", part)(
            in_channels=data.channels,
            pair=pair,
            num_classes=data.num_classes if spec.model.class_cond else None,
            heads=method.needs_heads,
            **part.model_dump(exclude={"name", "rescale_timesteps"}),
        )


def make_adversarial(
    build: Callable[..., AdversarialMethod],
    spec: RunSpec,
    data: Dataset | DatasetFacts,
    resources: Resources,
    device: torch.device,
    **options: Any,
) -> AdversarialMethod:
    """Build an adversarial method: both networks on their device, their optimizers and the generator's EMA."""
    method, optim = cast(Adversarial, spec.method), spec.optim
    latent = Latent(method.latent_dim, method.style_dim, method.mapping_layers)
    checkpointing = resources.activation_checkpointing
    generator = make_network(spec, data, activation_checkpointing=checkpointing, latent=latent).to(device)
    discriminator = make_discriminator(spec, data, pair=method.sees_pair).to(device)

    def adam(network: nn.Module, lr: float) -> torch.optim.Optimizer:
        return AdamW(network.parameters(), lr=lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True)

    def scale(rescale: bool) -> float:
        return 1000 / spec.diffusion.num_timesteps if rescale else 1.0

    return build(
        generator,
        discriminator,
        make_process(spec.diffusion, data.levels).to(device),
        adam(generator, optim.lr),
        adam(discriminator, method.lr_discriminator),
        learning_rates=(make_learning_rate(spec), make_learning_rate(spec, method.lr_discriminator)),
        latent_dim=method.latent_dim,
        averages=make_averages(spec.train),
        r1_gamma=method.r1_gamma,
        r1_every=method.r1_every,
        denoising_weight=method.denoising_weight,
        timestep_scales=(scale(spec.model.rescale_timesteps), scale(method.discriminator.rescale_timesteps)),
        group_size=method.discriminator.batch_multiple,
        grad_clip=optim.grad_clip,
        autocast=torch.bfloat16 if spec.train.precision == "bf16" else None,
        num_classes=data.num_classes if spec.model.class_cond else None,
        **options,
    )


def make_ddgan(
    spec: RunSpec, data: Dataset | DatasetFacts, resources: Resources, device: torch.device
) -> AdversarialMethod:
    """Build a denoising diffusion GAN."""
    return make_adversarial(DenoisingGan, spec, data, resources, device)


def make_siddm(
    spec: RunSpec, data: Dataset | DatasetFacts, resources: Resources, device: torch.device
) -> AdversarialMethod:
    """Build a semi-implicit denoising diffusion model."""
    method = cast(Siddm, spec.method)
    options = {
        "lambda_afd": method.lambda_afd,
        "adversarial": method.adversarial,
        "cross_entropy": method.cross_entropy,
        "c_psi_target": method.c_psi_target,
    }
    return make_adversarial(SemiImplicit, spec, data, resources, device, **options)


MethodBuilder = Callable[[RunSpec, "Dataset | DatasetFacts", Resources, torch.device], Method]

METHODS: dict[str, MethodBuilder] = {"gaussian": make_gaussian, "ddgan": make_ddgan, "siddm": make_siddm}
BUILT_IN["method"] = METHODS


def make_method(spec: RunSpec, data: Dataset | DatasetFacts, resources: Resources, device: torch.device) -> Method:
    """Build the method, with the initial weights of the run's seed.

    Args:
        data: only its declared facts are used, so that a method can be built without the images.
    """
    return implementation("method", spec.method)(spec, data, resources, device)
