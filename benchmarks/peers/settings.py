"""What is measured: two networks, each with its images, batch and number of steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

NUM_TIMESTEPS = 1000
LEARNING_RATE, BETAS, GRADIENT_CLIP, EMA_RATE = 1e-4, (0.9, 0.999), 1.0, 0.9999
SAMPLING_STEPS = 5
"""Evaluations of a network in one measurement of sampling."""


@dataclass(frozen=True)
class Setting:
    """A network, by the harness's own names, and the batch that it is trained on.

    Attributes:
        steps: training steps in one measurement.
        peer_width_multipliers, peer_head_width: of denoising-diffusion-pytorch's network, whose blocks are others: they
            bring it to the same number of parameters with a base width that is `channels` too.
    """

    name: str
    image_size: int
    image_channels: int
    levels: int
    channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    num_heads: int
    batch_size: int
    steps: int
    peer_width_multipliers: tuple[int, ...]
    peer_head_width: int

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Pixels along an edge of each level's feature maps."""
        return tuple(self.image_size // 2**level for level in range(len(self.channel_mult)))

    def images(self, count: int = 512) -> Tensor:
        """Return random images, [count, C, H, W] uint8, the same at each call."""
        shape = (count, self.image_channels, self.image_size, self.image_size)
        return torch.randint(self.levels, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


SETTINGS = (
    Setting(
        name="32 px",
        image_size=32,
        image_channels=3,
        levels=256,
        channels=32,
        channel_mult=(1, 2, 2, 2),
        num_res_blocks=2,
        attention_resolutions=(16, 8),
        num_heads=4,
        batch_size=16,
        steps=2,
        peer_width_multipliers=(1, 2, 2, 3),
        peer_head_width=32,
    ),
    Setting(
        name="digits, 8 px",
        image_size=8,
        image_channels=1,
        levels=17,
        channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        num_heads=4,
        batch_size=64,
        steps=10,
        peer_width_multipliers=(1, 2),
        peer_head_width=16,
    ),
)


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
