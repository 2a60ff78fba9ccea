"""The harness's own training step, sampling and full NLL: plain, as it comes, and as fast as its switches make it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.peers.candidate import Build, Candidate
from benchmarks.peers.settings import (
    BETAS,
    EMA_RATE,
    GRADIENT_CLIP,
    LEARNING_RATE,
    NUM_TIMESTEPS,
    Setting,
)
from harness.data.base import Dataset, Split
from harness.diffusion.process import GaussianDiffusion
from harness.diffusion.respacing import space_timesteps
from harness.diffusion.samplers import ancestral
from harness.job.kernels import keep_freed_memory, prepare_compiler
from harness.methods.base import Predict
from harness.methods.gaussian import GaussianMethod
from harness.metrics.likelihood import full_nll
from harness.models import unet
from harness.randomness import Streams
from harness.registry import implementation, make_method, make_network, make_process, parameters
from harness.spec.resources import Resources
from harness.spec.run import RunSpec
from harness.training.batches import Batches
from harness.training.distributed import ProcessGroup
from harness.training.loop import Training

CPU = torch.device("cpu")


def spec_of(setting: Setting, *, hybrid: bool = False) -> RunSpec:
    """Return the spec of a setting: L_simple as the peers minimise it, or L_hybrid with a learned variance."""
    return RunSpec.model_validate(
        {
            "data": {"name": "digits" if setting.image_size == 8 else "cifar10"},
            "diffusion": {
                "num_timesteps": NUM_TIMESTEPS,
                "schedule": {"name": "linear"},
                "var_type": "learned_range" if hybrid else "fixed",
            },
            "objective": {"name": "hybrid" if hybrid else "simple"},
            "model": {
                "channels": setting.channels,
                "channel_mult": setting.channel_mult,
                "num_res_blocks": setting.num_res_blocks,
                "attention_resolutions": setting.attention_resolutions,
                "num_heads": setting.num_heads,
            },
            "optim": {"lr": LEARNING_RATE, "betas": BETAS, "grad_clip": GRADIENT_CLIP},
            "train": {"steps": 1_000_000, "batch_size": setting.batch_size, "ema_rate": EMA_RATE},
        }
    )


def dataset_of(setting: Setting) -> Dataset:
    """Return the setting's images as a data set."""
    split = Split(setting.images().numpy(), None)
    return Dataset(
        setting.name, setting.image_size, setting.image_channels, setting.levels, None, split, split, digest=""
    )


def plain_method(spec: RunSpec, data: Dataset) -> GaussianMethod:
    """Build the method as improved-diffusion computes it: one kernel a parameter in AdamW and EMA, nothing fused."""
    unet.published_attention = plain_attention  # for this process, which is this candidate's own
    network = make_network(spec, data)
    sampler = spec.timestep_sampler
    return GaussianMethod(
        network,
        make_process(spec.diffusion, data.levels),
        partial(implementation("objective", spec.objective), **parameters(spec.objective)),
        implementation("timestep_sampler", sampler)(NUM_TIMESTEPS, **parameters(sampler), device=CPU),
        torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, foreach=False),
        learning_rate=lambda step: LEARNING_RATE,
        averages={"ema": _parameter_by_parameter},
        timestep_scale=1.0,
        grad_clip=GRADIENT_CLIP,
        terms=spec.objective.terms,
    )


def plain_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Attend as `published_attention` does, with the gradients that autograd gives, which improved-diffusion has."""
    batch, channels, num_pixels = qkv.shape
    head_width = channels // 3 // num_heads
    q, k, v = qkv.reshape(batch * num_heads, 3 * head_width, -1).split(head_width, dim=1)  # [B heads, c, N]
    s = head_width**-0.25
    weights = torch.softmax(torch.einsum("bct,bcs->bts", q * s, k * s).float(), dim=-1).to(v.dtype)
    return torch.einsum("bts,bcs->bct", weights, v).reshape(batch, channels // 3, num_pixels)


def _parameter_by_parameter(averages: Sequence[Tensor], weights: Sequence[Tensor], step: int) -> None:
    for average, weight in zip(averages, weights, strict=True):
        average.mul_(EMA_RATE).add_(weight, alpha=1 - EMA_RATE)


def method_of_a_job(spec: RunSpec, data: Dataset, *, kernels: str = "") -> GaussianMethod:
    """Build the method in a process that is prepared as a job prepares its own; kernels: "" is the default."""
    keep_freed_memory()
    resources = Resources.model_validate({"device": "cpu", **({"kernels": kernels} if kernels else {})})
    prepare_compiler(resources.kernels, CPU)
    method = make_method(spec, data, resources, CPU)
    assert isinstance(method, GaussianMethod)
    return method


def candidate(
    setting: Setting, *, build: Callable[[RunSpec, Dataset], GaussianMethod], hybrid: bool = False
) -> Candidate:
    """Make a candidate whose step is what the training loop does between two log lines."""
    spec, data = spec_of(setting, hybrid=hybrid), dataset_of(setting)
    training = Training(spec, build(spec, data), CPU)
    method, streams, group = training.method, Streams(0, CPU), ProcessGroup()
    assert isinstance(method, GaussianMethod)
    batches = Batches(spec, data, streams)

    def step() -> None:
        streams.seed_dropout(training.step, group.rank)
        training.window.add(training.step, method.step(training.step, batches(training.step), streams, group))
        training.step += 1

    def sample(num_steps: int) -> Tensor:
        process = method.process.respaced(space_timesteps(NUM_TIMESTEPS, str(num_steps)))
        generator = torch.Generator().manual_seed(0)
        denoise = method.denoiser("ema", process, y=None, generator=generator, clip=True)
        shape = (setting.batch_size, setting.image_channels, setting.image_size, setting.image_size)
        return ancestral(denoise, torch.randn(shape, generator=generator), process, generator=generator)

    return Candidate(method.network, step, sample)


OURS: dict[str, Build] = {
    "ours, plain": partial(candidate, build=plain_method),
    "ours, reference kernels": partial(candidate, build=partial(method_of_a_job, kernels="reference")),
    "ours, default": partial(candidate, build=method_of_a_job),
    "ours, compiled": partial(candidate, build=partial(method_of_a_job, kernels="compiled")),
    "ours, default, L_hybrid": partial(candidate, build=method_of_a_job, hybrid=True),
}


# -- the full NLL ------------------------------------------------------------------------------------------------------

NLL_TIMESTEPS = 5
Likelihood = tuple[Callable[[], object], int]
"""What computes the bound of some images, and how many evaluations of an image at a timestep that takes."""


def batched_likelihood(setting: Setting) -> Likelihood:
    """Compute it as the harness does: images and timesteps in one batch; 16 images twice, for a standard error."""
    process, predict, x_0 = _model(setting, method_of_a_job)
    evaluations = NLL_TIMESTEPS * (len(x_0) + min(16, len(x_0)))
    return partial(full_nll, process, predict, x_0, seed=0, batch_size=setting.batch_size), evaluations


def plain_likelihood(setting: Setting, *, num_images: int) -> Likelihood:
    """Compute it as improved-diffusion does, a timestep at a time for a batch of images."""
    process, predict, x_0 = _model(setting, plain_method)
    return partial(_one_timestep_at_a_time, process, predict, x_0[:num_images]), NLL_TIMESTEPS * num_images


def _model(
    setting: Setting, build: Callable[[RunSpec, Dataset], GaussianMethod]
) -> tuple[GaussianDiffusion, Predict, Tensor]:
    spec, data = spec_of(setting, hybrid=True), dataset_of(setting)
    method = build(spec, data)
    process = method.process.respaced(space_timesteps(NUM_TIMESTEPS, str(NLL_TIMESTEPS)))
    return process, method.predict("ema"), data.to_unit(setting.images(setting.batch_size))


LIKELIHOODS: dict[str, Callable[[Setting], Likelihood]] = {
    "ours, images and timesteps in one batch": batched_likelihood,
    "plain, one timestep of 16 images": partial(plain_likelihood, num_images=16),
    "plain, one timestep of one image": partial(plain_likelihood, num_images=1),
}


@torch.no_grad()
def _one_timestep_at_a_time(process: GaussianDiffusion, predict: Callable[..., Tensor], x_0: Tensor) -> Tensor:
    """Sum the bound as improved-diffusion's calc_bpd_loop does, with its mean squared errors of x_0 and eps: [B]."""
    terms, errors = [], []
    for step in reversed(range(process.num_timesteps)):
        t, noise = torch.full((len(x_0),), step), torch.randn_like(x_0)
        x_t = process.q_sample(x_0, t, noise)
        output = predict(x_t, process.original_t(t))
        terms.append(process.vb_terms_bpd(output, x_0, x_t, t))
        predicted = process.p_mean_variance(output, x_t, t).x_0
        eps = process.predict_eps(predicted, x_t, t)
        errors.append(((predicted - x_0).square().flatten(1).mean(1), (eps - noise).square().flatten(1).mean(1)))
    return torch.stack(terms).sum(0) + process.prior_bpd(x_0)
