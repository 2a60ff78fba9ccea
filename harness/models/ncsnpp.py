"""The generator of Denoising Diffusion GANs (Xiao, Kreis & Vahdat 2021): NCSN++ with a latent variable.

    G(x_{t+1}, t [, y], z) -> x_0 in [-1, 1]

    z -> mapping -> style, which scales and shifts every group normalisation inside the residual blocks
    x_{t+1} [B, C, H, W] -> conv_in -> down -> middle -> up (each block joined by its skip) -> conv_out -> tanh
    x_{t+1} -> FIR pyramid, added to what goes down at each halving ("progressive_input: residual")

It follows the published code, NVlabs/denoising-diffusion-gan: the parameters' shapes are those of the published
netG_*.pth, and `published_names` says which of them each is. Theirs is one list that is numbered by the configuration
(`all_modules.17`); the structure here is that of the network.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.models import fir
from harness.models.layers import (
    NEARLY_ZERO,
    Latent,
    check_latent,
    mapping_network,
    started,
    time_embedding,
    uniform_,
)
from harness.models.unet import check_inputs, full_precision

NORM_EPS = 1e-6
PROJECTION_GAIN = 0.1


def norm_groups(channels: int) -> int:
    """Choose the number of GroupNorm groups: four channels or more in each, at most 32 groups."""
    return min(channels // 4, 32)


class AdaptiveGroupNorm(nn.Module):
    """Group normalisation whose scale and shift come from the style: gamma norm(x) + beta, [gamma, beta] = W s + b.

    The bias b starts gamma at 1 and beta at 0.
    """

    def __init__(self, channels: int, style_dim: int):
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups(channels), channels, eps=NORM_EPS, affine=False)
        self.style = started(nn.Linear(style_dim, 2 * channels), "fan_out")
        nn.init.ones_(self.style.bias[:channels])

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        gamma, beta = self.style(style)[:, :, None, None].chunk(2, dim=1)  # [B, C, 1, 1]
        return torch.addcmul(beta, gamma, self.norm(x))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection, conditioned on the time embedding and on the style.

        h = conv1(resample(SiLU(AdaGN1(x, style)))) + time(SiLU(emb))
        out = (skip(resample(x)) + conv2(SiLU(AdaGN2(h, style)))) / sqrt(2)

    `resample` halves or doubles the image by FIR, or is the identity (None). `skip` is the identity, or a 1x1
    convolution where the width or the image's size changes.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        time_dim: int,
        style_dim: int,
        resample: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.resample = resample
        self.norm1 = AdaptiveGroupNorm(channels, style_dim)
        self.conv1 = started(nn.Conv2d(channels, out_channels, kernel_size=3, padding=1), "fan_avg")
        self.time = started(nn.Linear(time_dim, out_channels), "fan_avg")
        self.norm2 = AdaptiveGroupNorm(out_channels, style_dim)
        self.conv2 = started(nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1), "fan_avg", NEARLY_ZERO)
        keeps_shape = channels == out_channels and resample is None
        self.skip = (
            nn.Identity() if keeps_shape else started(nn.Conv2d(channels, out_channels, kernel_size=1), "fan_avg")
        )

    def forward(self, x: Tensor, emb: Tensor, style: Tensor) -> Tensor:
        h = F.silu(self.norm1(x, style))  # [B, C, H, W]
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h) + self.time(F.silu(emb))[:, :, None, None]  # [B, out, H', W']
        h = self.conv2(F.silu(self.norm2(h, style)))
        return (self.skip(x) + h) / math.sqrt(2)


class Projection(nn.Module):
    """Map the channels of each pixel: y = x W + b, with W of shape [in, out] as it was published."""

    def __init__(self, channels: int, gain: float):
        super().__init__()
        self.W = nn.Parameter(torch.empty(channels, channels))
        self.b = nn.Parameter(torch.zeros(channels))
        uniform_(self.W, "fan_avg", gain)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W + self.b


class Attention(nn.Module):
    """Self-attention of one head over the pixels, added to its input.

        out = (x + out_projection(softmax(q k^T / sqrt(C)) v)) / sqrt(2)

    q, k and v are projections of the normalised pixels, [B, N, C].
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups(channels), channels, eps=NORM_EPS)
        self.q = Projection(channels, PROJECTION_GAIN)
        self.k = Projection(channels, PROJECTION_GAIN)
        self.v = Projection(channels, PROJECTION_GAIN)
        self.out = Projection(channels, NEARLY_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).flatten(2).mT  # [B, N, C]
        weights = torch.softmax(torch.bmm(self.q(pixels), self.k(pixels).mT) / math.sqrt(x.shape[1]), dim=-1)
        h = self.out(torch.bmm(weights, self.v(pixels)))  # [B, N, C]
        return (x + h.mT.reshape(x.shape)) / math.sqrt(2)


class PyramidConv(nn.Module):
    """Halve the pyramid of the input by FIR and a strided 3x3 convolution, to the width of what goes down beside it."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.conv = started(nn.Conv2d(channels, out_channels, kernel_size=3), "fan_avg")

    def forward(self, pyramid: Tensor) -> Tensor:
        return fir.conv_downsample(pyramid, self.conv.weight, self.conv.bias)


class Stage(nn.ModuleList):
    """A residual block and what follows it; residual blocks also get the embedding and the style."""

    def __init__(self, *layers: nn.Module):
        super().__init__(layers)

    def forward(self, x: Tensor, emb: Tensor, style: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb, style) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class Halving(nn.Module):
    """Halve what goes down and the pyramid, and join them: both go on as (pyramid + h) / sqrt(2)."""

    def __init__(self, block: ResidualBlock, pyramid: PyramidConv):
        super().__init__()
        self.block, self.pyramid = block, pyramid

    def forward(self, x: Tensor, pyramid: Tensor, emb: Tensor, style: Tensor) -> Tensor:
        return (self.pyramid(pyramid) + self.block(x, emb, style)) / math.sqrt(2)


class NCSNpp(nn.Module):
    """Generate x_0 from a noisy image, its timestep and a latent.

    Args:
        in_channels: channels of x_{t+1}.
        out_channels: channels of x_0.
        image_size: height and width in pixels for which it is built; they say where attention is.
        latent: the sizes of z and of the style.
        channels: the base width C; level i has C * channel_mult[i] channels.
        channel_mult: one multiplier a level; each level but the last halves the image.
        num_res_blocks: residual blocks a level on the way down (one more on the way up).
        attention_resolutions: sizes in pixels of feature maps at which attention follows each residual block on the way
            down and the last one on the way up; the middle has it always.
        num_classes: makes the network class-conditional; `y` is then required.

    Attributes:
        downsampling: height and width must be divisible by it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        image_size: int,
        latent: Latent,
        channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        num_classes: int | None = None,
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.model_channels = in_channels, out_channels, channels
        self.latent, self.num_classes = latent, num_classes
        self.downsampling = 2 ** (len(channel_mult) - 1)
        base, time_dim = channels, 4 * channels

        def res_block(channels: int, width: int, resample: Callable[[Tensor], Tensor] | None = None) -> ResidualBlock:
            return ResidualBlock(channels, width, time_dim, latent.style_dim, resample)

        self.mapping = mapping_network(latent)
        self.time_embed = nn.Sequential(
            started(nn.Linear(base, time_dim), "fan_avg"),
            nn.SiLU(),
            started(nn.Linear(time_dim, time_dim), "fan_avg"),
        )
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, time_dim)
        pyramid_channels = in_channels
        self.conv_in = started(nn.Conv2d(in_channels, channels, kernel_size=3, padding=1), "fan_avg")
        self.down = nn.ModuleList()
        skips = [channels]  # widths of what the way down leaves for the way up
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                stage = Stage(res_block(channels, mult * base))
                channels = mult * base
                if image_size // 2**level in attention_resolutions:
                    stage.append(Attention(channels))
                self.down.append(stage)
                skips.append(channels)
            if level < len(channel_mult) - 1:
                halving = res_block(channels, channels, fir.downsample)
                self.down.append(Halving(halving, PyramidConv(pyramid_channels, channels)))
                pyramid_channels = channels
                skips.append(channels)

        self.middle = Stage(res_block(channels, channels), Attention(channels), res_block(channels, channels))

        self.up = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for _ in range(num_res_blocks + 1):
                stage = Stage(res_block(channels + skips.pop(), mult * base))
                channels = mult * base
                self.up.append(stage)
            if image_size // 2**level in attention_resolutions:
                stage.append(Attention(channels))
            if level > 0:
                stage.append(res_block(channels, channels, fir.upsample))

        self.norm_out = nn.GroupNorm(norm_groups(channels), channels, eps=NORM_EPS)
        self.conv_out = started(nn.Conv2d(channels, out_channels, kernel_size=3, padding=1), "fan_avg", NEARLY_ZERO)

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            x: x_{t+1}, [B, in_channels, H, W]; H and W divisible by `downsampling`.
            timesteps: [B], of x_t, as the network was trained on them: the published ones on indices in 0 .. T-1.
            y: [B], classes in [0, num_classes); required by a class-conditional network, refused by another.
            z: [B, latent.dim], required.

        Returns: x_0, [B, out_channels, H, W] in [-1, 1].

        Raises:
            ValueError: a shape does not fit, z is missing, or y is missing or not accepted.
        """
        check_inputs(x, timesteps, y, self.in_channels, self.num_classes)
        check_latent(z, len(x), self.latent)
        if x.shape[2] % self.downsampling or x.shape[3] % self.downsampling:
            raise ValueError(
                f"image of {x.shape[2]}x{x.shape[3]} pixels: this generator halves it "
                f"{self.downsampling.bit_length() - 1} times, so height and width must be divisible by "
                f"{self.downsampling}"
            )
        style = self.mapping(z)  # [B, style_dim]
        dtype = self.conv_in.weight.dtype
        emb = self.time_embed(time_embedding(timesteps, self.model_channels).to(dtype))  # [B, 4C]
        if y is not None:
            emb = emb + self.label_emb(y)

        pyramid, h = x, self.conv_in(x)  # [B, C, H, W]
        skips = [h]
        for step in self.down:
            if isinstance(step, Halving):
                h = pyramid = step(h, pyramid, emb, style)  # [B, C mult, H / 2, W / 2]
            else:
                h = step(h, emb, style)  # [B, C mult, H, W]
            skips.append(h)
        h = self.middle(h, emb, style)
        for stage in self.up:
            h = stage(torch.cat([h, skips.pop()], dim=1), emb, style)  # [B, C mult, H, W] or twice the size
        with full_precision(x.device):  # as the U-Net's last layer
            return torch.tanh(self.conv_out(F.silu(self.norm_out(h.to(dtype)))))  # [B, out, H, W]


_PUBLISHED_PARTS: dict[type[nn.Module], dict[str, str]] = {  # our parts of a block -> theirs
    ResidualBlock: {
        "norm1": "GroupNorm_0",
        "conv1": "Conv_0",
        "time": "Dense_0",
        "norm2": "GroupNorm_1",
        "conv2": "Conv_1",
        "skip": "Conv_2",
    },
    Attention: {"norm": "GroupNorm_0", "q": "NIN_0", "k": "NIN_1", "v": "NIN_2", "out": "NIN_3"},
    PyramidConv: {"conv": "Conv2d_0"},
}


def published_names(network: NCSNpp) -> dict[str, str]:
    """Say for each parameter of a generator what a published netG_*.pth calls it, less the leading `module.`.

    So `{ours: state[theirs] for ours, theirs in published_names(network).items()}` is what the network loads. No
    published one is class-conditional, so `label_emb` has no name.
    """
    names = {f"mapping.{parameter}": f"z_transform.{parameter}" for parameter, _ in network.mapping.named_parameters()}
    for number, (prefix, layer) in enumerate(_numbered_layers(network)):
        for parameter, _ in layer.named_parameters():
            part, *rest = parameter.split(".")
            published_part = _PUBLISHED_PARTS.get(type(layer), {}).get(part, part)
            names[f"{prefix}.{parameter}"] = ".".join(["all_modules", str(number), published_part, *rest])
    return names


def _numbered_layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Walk the layers that a published file numbers, in its order: blocks as a whole, and what is in no block."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(child, (*_PUBLISHED_PARTS, nn.Linear, nn.Conv2d, nn.GroupNorm)):
            yield path, child
        elif path != "mapping":
            yield from _numbered_layers(child, path)
