"""The discriminators of adversarial denoisers: `discriminator(x_t, t, x_next=None, y=None) -> Verdict`.

    D([x_t, x_{t+1}], t [, y]): is x_t a noisy image of the data, or made from a generated x_0, given x_{t+1}? (DDGAN)
    D(x_t, t [, y]):            the same of x_t alone                                                         (SIDDM)

- `small`, `large`: those of Denoising Diffusion GANs (Xiao, Kreis & Vahdat 2021, table 7). They follow the published
  code, NVlabs/denoising-diffusion-gan, whose weights fit under `published_name`.
  images -> 1x1 convolution -> residual blocks (down) -> minibatch deviation -> convolution -> sum -> linear
- `unet`: the logit from the middle of a U-Net; its way up predicts what SIDDM also asks a discriminator for.
- `mlp`: the same for points of the plane.
"""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.diffusion.adversarial import Verdict
from harness.models.fir import downsample
from harness.models.layers import NEARLY_ZERO, started, time_embedding
from harness.models.mlp import MLP
from harness.models.unet import GroupNorm, UNet, UNetEncoder, check_inputs, full_precision

STDDEV_GROUP = 4
STDDEV_EPS = 1e-8


def judged(x_t: Tensor, x_next: Tensor | None, pair: bool) -> Tensor:
    """Join what a discriminator judges: [x_t, x_next] as channels, or x_t alone.

    Raises:
        ValueError: x_next is missing from a pair, was given beside x_t alone, or has another shape.
    """
    if not pair:
        if x_next is not None:
            raise ValueError("x_next was given to a discriminator of x_t alone (pair is False)")
        return x_t
    if x_next is None:
        raise ValueError("x_next is missing: this discriminator judges pairs (x_t, x_next)")
    if x_next.shape != x_t.shape:
        raise ValueError(f"x_next {list(x_next.shape)} must have the shape of x_t, {list(x_t.shape)}")
    return torch.cat([x_t, x_next], dim=1)


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


class PublishedDiscriminator(nn.Module):
    """A discriminator of DDGAN; subclasses say for which size of image.

    Args:
        in_channels: channels of one image.
        pair: judge (x_t, x_{t+1}), as published, or x_t alone.
        num_classes: makes the network class-conditional; `y` is then required.
        heads: refused; there are none.
        channels: the base width, in whose units the blocks' widths are.
        time_dim: width of the time embedding.
        negative_slope: of the leaky ReLUs.

    Attributes:
        halvings: how often the image is halved; height and width must be at least 2^halvings.
    """

    width_mult: tuple[int, ...]  # of the first convolution, then of each block
    first_block_halves: bool
    last_gain: float

    def __init__(
        self,
        in_channels: int,
        pair: bool,
        num_classes: int | None = None,
        heads: bool = False,
        *,
        channels: int = 64,
        time_dim: int = 256,
        negative_slope: float = 0.2,
    ):
        super().__init__()
        if heads:
            raise ValueError(f"{type(self).__name__} has no heads that predict images; UNetDiscriminator has")
        self.in_channels, self.pair, self.num_classes = in_channels, pair, num_classes
        self.time_dim, self.negative_slope = time_dim, negative_slope
        widths = [mult * channels for mult in self.width_mult]
        self.time_embed = nn.Sequential(
            started(nn.Linear(time_dim, time_dim), "fan_out"),
            nn.LeakyReLU(negative_slope),
            started(nn.Linear(time_dim, time_dim), "fan_out"),
            nn.LeakyReLU(negative_slope),
        )
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, time_dim)
        self.conv_in = started(nn.Conv2d((1 + pair) * in_channels, widths[0], kernel_size=1), "fan_out")
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(width, out_width, time_dim, self.first_block_halves or i > 0, negative_slope)
            for i, (width, out_width) in enumerate(pairwise(widths))
        )
        self.halvings = len(self.blocks) - (not self.first_block_halves)
        last = nn.Conv2d(widths[-1] + 1, widths[-1], kernel_size=3, padding=1)
        self.conv_out = started(last, "fan_out", self.last_gain)
        self.out = started(nn.Linear(widths[-1], 1), "fan_out")

    def forward(self, x_t: Tensor, t: Tensor, x_next: Tensor | None = None, y: Tensor | None = None) -> Verdict:
        """Run the network.

        Args:
            x_t: [B, in_channels, H, W], the less noisy image; B below 4 or divisible by 4.
            t: [B], of x_t, as the network was trained on them: the published ones on indices in 0 .. T-1.
            x_next: x_{t+1}, like x_t; required for pairs, refused otherwise.
            y: [B], classes in [0, num_classes); required by a class-conditional network, refused by another.

        Returns: logits alone; each depends on its group of the batch (see `minibatch_stddev`).

        Raises:
            ValueError: a shape does not fit, or x_next or y is missing or not accepted.
        """
        check_inputs(x_t, t, y, self.in_channels, self.num_classes)
        images = judged(x_t, x_next, self.pair)
        if min(x_t.shape[2:]) < 2**self.halvings:
            raise ValueError(
                f"image of {x_t.shape[2]}x{x_t.shape[3]} pixels: {type(self).__name__} halves it {self.halvings} "
                f"times, so height and width must be at least {2**self.halvings}"
            )
        dtype = self.conv_in.weight.dtype
        emb = self.time_embed(time_embedding(t, self.time_dim).to(dtype))  # [B, time_dim]
        if y is not None:
            emb = emb + self.label_emb(y)
        h = self.conv_in(images)  # [B, C, H, W]
        for block in self.blocks:
            h = block(h, emb)  # [B, C, H / 2^i, W / 2^i]
        with full_precision(h.device):  # small deviations and a sum over pixels do not survive bfloat16
            h = h.to(dtype)
            h = self.conv_out(torch.cat([h, minibatch_stddev(h)], dim=1))
            return Verdict(self.out(F.leaky_relu(h, self.negative_slope).sum(dim=(2, 3))))  # [B, 1]


class SmallDiscriminator(PublishedDiscriminator):
    """The discriminator for CIFAR-10 and StackedMNIST: images from 8 pixels on, three halvings."""

    width_mult = (2, 2, 4, 8, 8)
    first_block_halves = False
    last_gain = NEARLY_ZERO


class LargeDiscriminator(PublishedDiscriminator):
    """The discriminator for CelebA-HQ and LSUN: images from 64 pixels on, six halvings."""

    width_mult = (2, 4, 8, 8, 8, 8, 8)
    first_block_halves = True
    last_gain = 1.0


class UNetDiscriminator(nn.Module):
    """A U-Net whose middle gives the logit and whose way up gives the heads, which share all layers but the last.

        logit = linear(mean over pixels of SiLU(GN(middle)))

    Without heads there is no way up. The normalisation is by groups of channels, so an output depends on no other
    example, and everything is differentiable twice.

    Args:
        in_channels: channels of one image.
        pair: judge (x_t, x_{t+1}), or x_t alone.
        num_classes: makes the network class-conditional; `y` is then required.
        heads: also predict x_0 and, if the network judges x_t alone, x_{t+1}.
        channels: the base width C; level i has C * channel_mult[i] channels.
        channel_mult: one multiplier a level; each level but the last halves the image.
        num_res_blocks: residual blocks a level on the way down (one more on the way up).
    """

    def __init__(
        self,
        in_channels: int,
        pair: bool,
        num_classes: int | None = None,
        heads: bool = False,
        *,
        channels: int = 64,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
    ):
        super().__init__()
        self.in_channels, self.pair = in_channels, pair
        options: dict[str, Any] = {
            "in_channels": (1 + pair) * in_channels,
            "model_channels": channels,
            "num_res_blocks": num_res_blocks,
            "attention_resolutions": (),
            "channel_mult": channel_mult,
            "num_classes": num_classes,
            "use_scale_shift_norm": True,
        }
        predicted = in_channels * (1 if pair else 2)
        self.trunk = UNet(**options, out_channels=predicted) if heads else UNetEncoder(**options)
        bottom = self.trunk.bottom_channels
        self.out = nn.Sequential(GroupNorm(bottom), nn.SiLU(), nn.Conv2d(bottom, 1, kernel_size=1))

    def forward(self, x_t: Tensor, t: Tensor, x_next: Tensor | None = None, y: Tensor | None = None) -> Verdict:
        """Run the network.

        Args:
            x_t: [B, in_channels, H, W], the less noisy image; H and W divisible by 2^(levels - 1).
            t: [B], of x_t, as the network was trained on them.
            x_next: x_{t+1}, like x_t; required for pairs, refused otherwise.
            y: [B], classes in [0, num_classes); required by a class-conditional network, refused by another.

        Raises:
            ValueError: a shape does not fit, or x_next or y is missing or not accepted.
        """
        check_inputs(x_t, t, y, self.in_channels, self.trunk.num_classes)
        middle, skips, emb = self.trunk.encode(judged(x_t, x_next, self.pair), t, y)
        with full_precision(x_t.device):
            logits = self.out(middle.to(next(self.out.parameters()).dtype)).mean(dim=(2, 3))  # [B, 1]
        if not isinstance(self.trunk, UNet):
            return Verdict(logits)
        return _with_heads(logits, self.trunk.decode(middle, skips, emb), self.in_channels)


class MLPDiscriminator(nn.Module):
    """Fully connected layers for points of the plane (MLP); logit and heads are linear in the last.

    Args:
        in_channels: coordinates of a point.
        pair: judge (x_t, x_{t+1}), or x_t alone.
        num_classes: makes the network class-conditional; `y` is then required.
        heads: also predict x_0 and, if the network judges x_t alone, x_{t+1}.
        width: of the hidden layers and the time embedding.
        depth: number of hidden layers.
        input_scale: multiplies the points, see MLP.
    """

    def __init__(
        self,
        in_channels: int,
        pair: bool,
        num_classes: int | None = None,
        heads: bool = False,
        *,
        width: int = 512,
        depth: int = 3,
        input_scale: float = 1.0,
    ):
        super().__init__()
        self.in_channels, self.pair, self.heads = in_channels, pair, heads
        predicted = in_channels * (1 if pair else 2) if heads else 0
        self.trunk = MLP((1 + pair) * in_channels, 1 + predicted, width, depth, num_classes, input_scale=input_scale)
        # The MLP's own starts at 0, where a discriminator teaches nothing: the game was seen to stay there.
        self.trunk.out = nn.Linear(width, 1 + predicted)

    def forward(self, x_t: Tensor, t: Tensor, x_next: Tensor | None = None, y: Tensor | None = None) -> Verdict:
        """Run the network.

        Args:
            x_t: [B, in_channels, 1, 1], the less noisy point.
            t: [B], of x_t, as the network was trained on them.
            x_next: x_{t+1}, like x_t; required for pairs, refused otherwise.
            y: [B], classes in [0, num_classes); required by a class-conditional network, refused by another.

        Raises:
            ValueError: a shape does not fit, or x_next or y is missing or not accepted.
        """
        check_inputs(x_t, t, y, self.in_channels, self.trunk.num_classes)
        with full_precision(x_t.device):
            output = self.trunk(judged(x_t, x_next, self.pair), t, y)  # [B, 1 + predicted, 1, 1]
        logits = output[:, :1, 0, 0]
        return _with_heads(logits, output[:, 1:], self.in_channels) if self.heads else Verdict(logits)


def _with_heads(logits: Tensor, predicted: Tensor, channels: int) -> Verdict:
    """Split what the heads predict, [B, C or 2 C, H, W]: x_0, then x_{t+1} where it is predicted."""
    return Verdict(logits, *predicted.split(channels, dim=1))


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
