"""The peers: each library's own network, diffusion process, average of the weights and sampling loop.

Batches, AdamW and clipping are the same plain PyTorch for all of them. Imports are inside the functions, so that the
start-up of one peer can be measured without the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.candidate import Candidate
from benchmarks.peers.settings import (
    BETAS,
    EMA_RATE,
    GRADIENT_CLIP,
    LEARNING_RATE,
    NUM_TIMESTEPS,
    SAMPLING_STEPS,
    Setting,
)


def _batches(setting: Setting) -> Iterator[Tensor]:
    """Yield batches of random rows, [B, C, H, W] in [-1, 1]."""
    images = setting.images()
    while True:
        rows = torch.randint(len(images), (setting.batch_size,))
        yield images[rows].float() / ((setting.levels - 1) / 2) - 1


def _stepping(
    setting: Setting, network: nn.Module, loss: Callable[[Tensor], Tensor], average: Callable[[], object]
) -> Callable[[], None]:
    """Return a function that takes one optimizer step."""
    batches = _batches(setting)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0)

    def step() -> None:
        network.train()
        optimizer.zero_grad(set_to_none=True)
        loss(next(batches)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_CLIP)
        optimizer.step()
        average()

    return step


def diffusers_unet(setting: Setting) -> nn.Module:
    """Build the same network by diffusers: parameter for parameter, in its own modules."""
    from harness.metrics.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    from diffusers import UNet2DModel

    has_attention = [resolution in setting.attention_resolutions for resolution in setting.resolutions]
    return UNet2DModel(
        sample_size=setting.image_size,
        in_channels=setting.image_channels,
        out_channels=setting.image_channels,
        down_block_types=tuple("AttnDownBlock2D" if has else "DownBlock2D" for has in has_attention),
        up_block_types=tuple("AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(has_attention)),
        block_out_channels=tuple(setting.channels * mult for mult in setting.channel_mult),
        layers_per_block=setting.num_res_blocks,
        attention_head_dim=setting.channels * setting.channel_mult[-1] // setting.num_heads,
        norm_num_groups=32,
        attn_norm_num_groups=32,
        resnet_time_scale_shift="scale_shift",
    )


def diffusers(setting: Setting) -> Candidate:
    """Train as diffusers' example of unconditional training does, sample as its pipeline does."""
    network = diffusers_unet(setting)
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    scheduler, ema = DDPMScheduler(NUM_TIMESTEPS), EMAModel(network.parameters(), decay=EMA_RATE)
    shape = (setting.batch_size, setting.image_channels, setting.image_size, setting.image_size)

    def loss(x_0: Tensor) -> Tensor:
        noise, t = torch.randn_like(x_0), torch.randint(NUM_TIMESTEPS, (len(x_0),))
        return nn.functional.mse_loss(network(scheduler.add_noise(x_0, noise, t), t).sample, noise)

    @torch.no_grad()
    def sample(num_steps: int) -> Tensor:
        network.eval()
        scheduler.set_timesteps(num_steps)
        x = torch.randn(shape)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
        return x

    step = _stepping(setting, network, loss, lambda: ema.step(network.parameters()))
    return Candidate(network, step, sample)


def denoising_diffusion_pytorch(setting: Setting) -> Candidate:
    """Train and sample by denoising-diffusion-pytorch; its GaussianDiffusion takes images in [0, 1]."""
    from harness.metrics.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    network = Unet(
        dim=setting.channels,
        dim_mults=setting.peer_width_multipliers,
        channels=setting.image_channels,
        attn_dim_head=setting.peer_head_width,
        attn_heads=setting.num_heads,
    )
    options: dict[str, Any] = {"image_size": setting.image_size, "objective": "pred_noise", "beta_schedule": "linear"}
    diffusion = GaussianDiffusion(network, timesteps=NUM_TIMESTEPS, **options)
    # Its ancestral loop has no respacing: a chain of so many steps runs the same code so many times.
    short = GaussianDiffusion(network, timesteps=SAMPLING_STEPS, **options)
    ema = EMA(network, beta=EMA_RATE, update_every=1, update_after_step=0, include_online_model=False)

    def sample(num_steps: int) -> Tensor:
        assert num_steps == SAMPLING_STEPS, "the chain was built for these"
        network.eval()
        return short.sample(setting.batch_size)

    step = _stepping(setting, network, lambda x_0: diffusion((x_0 + 1) / 2), ema.update)
    return Candidate(network, step, sample)


def torchcfm(setting: Setting) -> Candidate:
    """Train as torchcfm's example for CIFAR-10 does, with its network: guided-diffusion's.

    Conditional flow matching instead of DDPM's objective; its examples integrate by Euler's method from other packages.
    """
    import copy

    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
    from torchcfm.models.unet import UNetModel

    shape = (setting.image_channels, setting.image_size, setting.image_size)
    network = UNetModel(
        dim=shape,
        num_channels=setting.channels,
        num_res_blocks=setting.num_res_blocks,
        channel_mult=setting.channel_mult,
        attention_resolutions=",".join(map(str, setting.attention_resolutions)),
        num_heads=setting.num_heads,
        use_scale_shift_norm=True,
    )
    matcher, averaged = ConditionalFlowMatcher(sigma=0.0), copy.deepcopy(network)

    def loss(x_1: Tensor) -> Tensor:
        t, x_t, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(x_1), x_1)
        return (network(t, x_t) - velocity).square().mean()

    def average() -> None:  # as its example writes it
        source, target = network.state_dict(), averaged.state_dict()
        for key in source:
            target[key].data.copy_(target[key].data * EMA_RATE + source[key].data * (1 - EMA_RATE))

    @torch.no_grad()
    def sample(num_steps: int) -> Tensor:
        network.eval()
        x = torch.randn(setting.batch_size, *shape)
        for i in range(num_steps):
            x = x + network(torch.full((len(x),), i / num_steps), x) / num_steps
        return x

    return Candidate(network, _stepping(setting, network, loss, average), sample)


THEIRS = {
    "diffusers": diffusers,
    "denoising-diffusion-pytorch": denoising_diffusion_pytorch,
    "torchcfm": torchcfm,
}
