"""The discriminators of Denoising Diffusion GANs (Xiao, Kreis & Vahdat 2021, table 7), for small and for large images.

    D(x_t, t, x_{t+1}) -> logit: is x_t a noisy image of the data, or made from a generated x_0, given x_{t+1}?

    [x_t, x_{t+1}] -> 1x1 convolution -> residual blocks (down) -> minibatch deviation -> convolution -> sum -> linear

They follow the published code, NVlabs/denoising-diffusion-gan, whose weights fit under `published_name`.
"""

import math
import re
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.fir import downsample
from harness.models.layers import NEARLY_ZERO, started, time_embedding
from harness.models.unet import check_inputs, full_precision

class Verdict(NamedTuple):
    """What a discriminator makes of x_t.

    Attributes:
        logits: [B, 1].
        x_0: like x_t, the clean image predicted from x_t; None without heads.
        x_next: like x_t, C_psi(x_t), what the forward process makes of x_t; None without heads.
    """

    logits: Tensor
    x_0: Tensor | None = None
    x_next: Tensor | None = None


STDDEV_GROUP = 4
STDDEV_EPS = 1e-8


def minibatch_stddev(features: Tensor) -> Tensor:
    """Measure how much the examples of a group differ (Progressive GAN, section 3): a further channel of features.

        s_g = mean over channels and pixels of sqrt(Var_{i in g} f_i + 1e-8)

    Groups are strided: with B = 4 n, example i is with i + n, i + 2 n and i + 3 n. Fewer than 4 examples are one group;
    a single one gets 1e-4. So an example's output depends on the batch that it is in.

    Args:
        features: [B, C, H, W], with B below 4 or divisible by 4.

    Returns: [B, 1, H, W], constant over the pixels and within a group.

    Raises:
        ValueError: B is neither below 4 nor divisible by 4.
    """
    batch, _, height, width = features.shape
    size = min(batch, STDDEV_GROUP)
    if batch % size:
        raise ValueError(
            f"batch of {batch} examples: the minibatch deviation compares groups of {STDDEV_GROUP}, "
            f"so give fewer than {STDDEV_GROUP} examples or a multiple of {STDDEV_GROUP}"
        )
    groups = features.unflatten(0, (size, batch // size))  # [4, B / 4, C, H, W]
    deviations = torch.sqrt(groups.var(dim=0, correction=0) + STDDEV_EPS).mean(dim=(1, 2, 3))  # [B / 4]
    return deviations.repeat(size)[:, None, None, None].expand(batch, 1, height, width)


class DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection, conditioned on the time embedding.

        h = down(act(conv1(act(x)) + time(emb)))
        out = (conv2(h) + skip(down(x))) / sqrt(2)

    `down` halves the image by FIR, or is the identity; `skip` is a 1x1 convolution also where the width stays.
    """

    def __init__(self, channels: int, out_channels: int, time_dim: int, halves: bool, negative_slope: float):
        super().__init__()
        self.halves, self.negative_slope = halves, negative_slope
        self.conv1 = started(nn.Conv2d(channels, out_channels, kernel_size=3, padding=1), "fan_out")
        self.conv2 = started(nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1), "fan_out", NEARLY_ZERO)
        self.time = started(nn.Linear(time_dim, out_channels), "fan_out")
        self.skip = started(nn.Conv2d(channels, out_channels, kernel_size=1, bias=False), "fan_out")

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.leaky_relu(x, self.negative_slope))  # [B, out, H, W]
        h = F.leaky_relu(h + self.time(emb)[:, :, None, None], self.negative_slope)
        if self.halves:
            h, x = downsample(h), downsample(x)
        return (self.conv2(h) + self.skip(x)) / math.sqrt(2)


class PairDiscriminator(nn.Module):
    """Tell pairs (x_t, x_{t+1}) of the data from generated ones; subclasses say for which size of image.

    Args:
        in_channels: channels of one image; the network sees two.
        model_channels: the base width, in whose units the blocks' widths are.
        time_dim: width of the time embedding.
        negative_slope: of the leaky ReLUs.

    Attributes:
        halvings: how often the image is halved; height and width must be at least 2^halvings.
    """

    width_mult: tuple[int, ...]  # of the first convolution, then of each block
    first_block_halves: bool
    last_gain: float

    def __init__(self, in_channels: int, model_channels: int, time_dim: int, negative_slope: float = 0.2):
        super().__init__()
        self.in_channels, self.time_dim, self.negative_slope = in_channels, time_dim, negative_slope
        widths = [mult * model_channels for mult in self.width_mult]
        self.time_embed = nn.Sequential(
            started(nn.Linear(time_dim, time_dim), "fan_out"),
            nn.LeakyReLU(negative_slope),
            started(nn.Linear(time_dim, time_dim), "fan_out"),
            nn.LeakyReLU(negative_slope),
        )
        self.conv_in = started(nn.Conv2d(2 * in_channels, widths[0], kernel_size=1), "fan_out")
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(width, out_width, time_dim, self.first_block_halves or i > 0, negative_slope)
            for i, (width, out_width) in enumerate(pairwise(widths))
        )
        self.halvings = len(self.blocks) - (not self.first_block_halves)
        last = nn.Conv2d(widths[-1] + 1, widths[-1], kernel_size=3, padding=1)
        self.conv_out = started(last, "fan_out", self.last_gain)
        self.out = started(nn.Linear(widths[-1], 1), "fan_out")

    def forward(self, x_t: Tensor, t: Tensor, x_next: Tensor) -> Tensor:
        """Run the network.

        Args:
            x_t: [B, in_channels, H, W], the less noisy image of the pair; B below 4 or divisible by 4.
            t: [B], the index of x_t in 0 .. T-1, as it is.
            x_next: x_{t+1}, of the shape of x_t.

        Returns: [B, 1], logits; each depends on its group of the batch (see `minibatch_stddev`).

        Raises:
            ValueError: a shape does not fit.
        """
        check_inputs(x_t, t, None, self.in_channels, None)
        if x_next.shape != x_t.shape:
            raise ValueError(f"x_next {list(x_next.shape)} must have the shape of x_t, {list(x_t.shape)}")
        if min(x_t.shape[2:]) < 2**self.halvings:
            raise ValueError(
                f"image of {x_t.shape[2]}x{x_t.shape[3]} pixels: {type(self).__name__} halves it {self.halvings} "
                f"times, so height and width must be at least {2**self.halvings}"
            )
        dtype = self.conv_in.weight.dtype
        emb = self.time_embed(time_embedding(t, self.time_dim).to(dtype))  # [B, time_dim]
        h = self.conv_in(torch.cat([x_t, x_next], dim=1))  # [B, C, H, W]
        for block in self.blocks:
            h = block(h, emb)  # [B, C, H / 2^i, W / 2^i]
        with full_precision(h.device):  # small deviations and a sum over pixels do not survive bfloat16
            h = h.to(dtype)
            h = self.conv_out(torch.cat([h, minibatch_stddev(h)], dim=1))
            return self.out(F.leaky_relu(h, self.negative_slope).sum(dim=(2, 3)))  # [B, 1]


class SmallDiscriminator(PairDiscriminator):
    """The discriminator for CIFAR-10 and StackedMNIST: images from 8 pixels on, three halvings."""

    width_mult = (2, 2, 4, 8, 8)
    first_block_halves = False
    last_gain = NEARLY_ZERO


class LargeDiscriminator(PairDiscriminator):
    """The discriminator for CelebA-HQ and LSUN: images from 64 pixels on, six halvings."""

    width_mult = (2, 4, 8, 8, 8, 8, 8)
    first_block_halves = True
    last_gain = 1.0


_PUBLISHED = (  # pattern of our name -> theirs
    (r"time_embed\.(\d)", r"t_embed.main.\1"),
    (r"conv_in", "start_conv"),
    (r"conv_out", "final_conv"),
    (r"out", "end_linear"),
    (r"blocks\.(\d)\.time", r"conv{block}.dense_t1"),
    (r"blocks\.(\d)\.(conv1|conv2|skip)", r"conv{block}.\2.0"),
)


def published_name(name: str) -> str:
    """Translate a parameter's name into that of the published code: `blocks.0.skip.weight` is `conv1.skip.0.weight`.

    Raises:
        ValueError: no parameter of a discriminator has the name.
    """
    layer, _, parameter = name.rpartition(".")
    for pattern, published in _PUBLISHED:
        if match := re.fullmatch(pattern, layer):
            block = int(match[1]) + 1 if "{block}" in published else 0
            return f"{match.expand(published).format(block=block)}.{parameter}"
    raise ValueError(f"{name} is no parameter of a discriminator")
