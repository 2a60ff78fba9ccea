"""The U-Net of Improved DDPM (Nichol & Dhariwal 2021, appendix A), weight-compatible with openai/improved-diffusion.

The parameter names and shapes are those of its published checkpoints, and so is every behaviour that trained weights
depend on: GroupNorm and softmax in float32, cosines before sines in the time embedding, heads split before q, k and v.

    x_t [B, C, H, W] -> input_blocks (down) -> middle_block -> output_blocks (up, each joined by its skip) -> out

Beyond the published networks it can be a generator, conditioned on a latent z, and resample in Imagen's order.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.models.attention import fused_attention, published_attention
from harness.models.layers import Latent, check_latent, mapping_network
from harness.models.resampling import Downsample, Upsample

MAX_NORM_GROUPS = 32
Layer = TypeVar("Layer", bound=nn.Module)


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Embed timesteps as cosines, then sines, of geometrically spaced frequencies (Transformer, section 3.5).

        emb = [cos(t w_i), sin(t w_i)],  w_i = max_period^(-i / half),  half = dim // 2

    Args:
        timesteps: [B], integers or floats (rescaled timesteps are fractional).
        dim: width of the embedding; an odd one is padded with one zero.

    Returns: [B, dim], float32.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(max_period) * exponents)  # [B, half]
    embedding = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
    return F.pad(embedding, (0, dim % 2))


def norm_groups(channels: int) -> int:
    """Choose the number of GroupNorm groups: 32, or the largest number below that divides the width."""
    return next(groups for groups in range(MAX_NORM_GROUPS, 0, -1) if channels % groups == 0)


def full_precision(device: torch.device) -> AbstractContextManager:
    """Suspend autocast, on devices that have it."""
    return torch.autocast(device.type, enabled=False) if torch.amp.is_autocast_available(device.type) else nullcontext()


class GroupNorm(nn.GroupNorm):
    """Group normalisation whose statistics are float32 whatever the input's type."""

    def __init__(self, channels: int):
        super().__init__(norm_groups(channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        normed = F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return normed.to(x.dtype)


def zeroed(layer: Layer) -> Layer:
    """Zero a layer's parameters, so that its residual branch starts at zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Block(nn.Module):
    """A residual block or attention, which activation checkpointing may recompute in the backward pass."""

    use_checkpoint: bool

    def _recomputed(self, forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(forward, *inputs, use_reentrant=False)
        return forward(*inputs)


class ResBlock(Block):
    """Two 3x3 convolutions with a residual connection, conditioned on the time embedding.

        h = GN(conv(SiLU(GN(x)))) (1 + w) + b         with scale-shift, [w, b] = linear(SiLU(emb))
        h = GN(conv(SiLU(GN(x))) + b)                 without, b = linear(SiLU(emb))
        out = skip(x) + conv(dropout(SiLU(h)))                                            (IDDPM, appendix A)

    `skip` is the identity, or a 1x1 convolution where the width changes; the last convolution starts at zero.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int,
        dropout: float,
        scale_shift: bool,
        use_checkpoint: bool,
    ):
        super().__init__()
        self.scale_shift, self.use_checkpoint = scale_shift, use_checkpoint
        self.in_layers = nn.Sequential(
            GroupNorm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, kernel_size=3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels if scale_shift else out_channels)
        )
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)),
        )
        same_width = channels == out_channels
        self.skip_connection = nn.Identity() if same_width else nn.Conv2d(channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self._recomputed(self._forward, x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)  # [B, out, H, W]
        condition = self.emb_layers(emb)[:, :, None, None].to(h.dtype)  # [B, out or 2 out, 1, 1]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            h = torch.addcmul(shift, norm(h), 1 + scale)
        else:
            h = norm(h + condition)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h


class AttentionBlock(Block):
    """Multi-head self-attention over the pixels, added to its input.

        out = x + proj_out(v softmax((q s)^T (k s))^T),  s = head_width^(-1/4)

    The heads are split before q, k and v: channels of `qkv` are ordered head by head, each with its own three thirds.

    Attributes:
        fused: compute it by torch's scaled_dot_product_attention, which keeps no [N, N] weights for the backward pass,
            and cannot be differentiated twice.
    """

    fused = False

    def __init__(self, channels: int, num_heads: int, use_checkpoint: bool):
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f"attention of width {channels} cannot be split into {num_heads} heads of equal width")
        self.num_heads, self.use_checkpoint = num_heads, use_checkpoint
        self.norm = GroupNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, kernel_size=1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        return self._recomputed(self._forward, x)

    def _forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        flat = x.reshape(batch, channels, height * width)  # [B, C, N]
        normed = self.norm(flat)
        if self.fused:  # 1x1 convolutions as matrix products, which give the channels last
            qkv = F.linear(normed.mT, self.qkv.weight.squeeze(-1), self.qkv.bias)  # [B, N, 3C]
            h = fused_attention(qkv, self.num_heads)  # [B, N, C]
            h = F.linear(h, self.proj_out.weight.squeeze(-1), self.proj_out.bias).mT  # [B, C, N]
        else:
            h = self.proj_out(published_attention(self.qkv(normed), self.num_heads))  # [B, C, N]
        return (flat + h).reshape(x.shape)


def use_fused_kernels(network: nn.Module) -> None:
    """Compute attention, and on a CPU upsampling, by fewer and larger operations; weights and their names stay."""
    for module in network.modules():
        if isinstance(module, AttentionBlock | Upsample):
            module.fused = True


class Stage(nn.ModuleList):
    """A sequence of layers; residual blocks also get the embedding."""

    def __init__(self, *layers: nn.Module):
        super().__init__(layers)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class UNetEncoder(nn.Module):
    """The way down and the middle of a U-Net; UNet's docstring has the arguments.

    Attributes:
        downsampling: height and width must be divisible by it.
        skip_channels: widths of what the way down leaves for the way up, in its order.
        bottom_channels: width of the middle.
    """

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        num_classes: int | None = None,
        num_heads: int = 1,
        use_scale_shift_norm: bool = False,
        use_checkpoint: bool = False,
        latent: Latent | None = None,
        resample_first: bool = False,
    ):
        super().__init__()
        if latent is not None and not use_scale_shift_norm:
            raise ValueError(
                "a latent needs use_scale_shift_norm: what is added before a normalisation with one channel a group "
                "has no effect"
            )
        self.in_channels, self.model_channels = in_channels, model_channels
        self.num_classes, self.latent = num_classes, latent
        self.downsampling = 2 ** (len(channel_mult) - 1 + resample_first)
        self._block_options = (dropout, use_scale_shift_norm, use_checkpoint)
        emb_channels = 4 * model_channels

        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, emb_channels)
        if latent is not None:
            self.mapping = mapping_network(latent)
            self.style_emb = nn.Linear(latent.style_dim, emb_channels)

        channels, factor = model_channels, 1
        stem = Stage(nn.Conv2d(in_channels, channels, kernel_size=3, padding=1))
        if resample_first:
            stem.append(Downsample(channels))
            factor = 2
        self.input_blocks = nn.ModuleList([stem])
        self.skip_channels = [channels]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                stage = Stage(self._res_block(channels, mult * model_channels))
                channels = mult * model_channels
                if factor in attention_resolutions:
                    stage.append(AttentionBlock(channels, num_heads, use_checkpoint))
                self.input_blocks.append(stage)
                self.skip_channels.append(channels)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(Stage(Downsample(channels)))
                self.skip_channels.append(channels)
                factor *= 2

        self.bottom_channels = channels
        self.middle_block = Stage(
            self._res_block(channels, channels),
            AttentionBlock(channels, num_heads, use_checkpoint),
            self._res_block(channels, channels),
        )

    def _res_block(self, channels: int, width: int) -> ResBlock:
        return ResBlock(channels, 4 * self.model_channels, width, *self._block_options)

    def encode(
        self, x: Tensor, timesteps: Tensor, y: Tensor | None = None, z: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Run the way down and the middle; arguments as in UNet.forward.

        Returns:
            the middle's output, [B, bottom_channels, H / downsampling, W / downsampling]; the skips; and the
            embedding, [B, 4C].

        Raises:
            ValueError: a shape does not fit, or y or z is missing or not accepted.
        """
        check_inputs(x, timesteps, y, self.in_channels, self.num_classes)
        check_latent(z, len(x), self.latent)
        if x.shape[2] % self.downsampling or x.shape[3] % self.downsampling:
            raise ValueError(
                f"image of {x.shape[2]}x{x.shape[3]} pixels: this U-Net halves it {self.downsampling.bit_length() - 1} "
                f"times, so height and width must be divisible by {self.downsampling}"
            )
        dtype = next(self.parameters()).dtype
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(dtype))  # [B, 4C]
        if y is not None:
            emb = emb + self.label_emb(y)
        if z is not None:
            emb = emb + self.style_emb(self.mapping(z.to(dtype)))

        h = x.to(dtype)  # [B, in, H, W]
        skips = []
        for stage in self.input_blocks:
            h = stage(h, emb)  # [B, C mult, H / factor, W / factor]
            skips.append(h)
        return self.middle_block(h, emb), skips, emb


class UNet(UNetEncoder):
    """Predict noise (and the variance's interpolation) from a noisy image and its timestep; with a latent, x_0.

    Args:
        in_channels: channels of x_t.
        model_channels: the base width C; level i has C * channel_mult[i] channels.
        out_channels: channels of the output: in_channels, or twice as many with a learned variance.
        num_res_blocks: residual blocks a level on the way down (one more on the way up).
        attention_resolutions: downsampling factors (1, 2, 4, ...) at which attention follows each residual block.
        dropout: probability, inside the residual blocks.
        channel_mult: one multiplier a level; each level but the last halves the image.
        num_classes: makes the network class-conditional; `y` is then required.
        num_heads: attention heads on the way down and in the middle.
        num_heads_upsample: heads on the way up; -1 means num_heads.
        use_scale_shift_norm: condition by GN(h) (1 + w) + b instead of by addition.
        use_checkpoint: do not store activations inside blocks, recompute them in the backward pass.
        latent: makes it a generator of x_0 in [-1, 1]; `z` is then required. Its style is added to the embeddings that
            give w and b, so use_scale_shift_norm is required too.
        resample_first: halve the image before each level's residual blocks, the first level's too, and double it after
            them on the way up, so that no block works at the image's own size (Imagen's Efficient U-Net).

    Attributes:
        norm_groups: the numbers of groups in use; {32} if 32 divides every width.

    Raises:
        ValueError: a width cannot be split into the heads, or a latent has no scale and shift to act on.
    """

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        num_classes: int | None = None,
        num_heads: int = 1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        use_checkpoint: bool = False,
        latent: Latent | None = None,
        resample_first: bool = False,
    ):
        super().__init__(
            in_channels,
            model_channels,
            num_res_blocks,
            attention_resolutions,
            dropout,
            channel_mult,
            num_classes,
            num_heads,
            use_scale_shift_norm,
            use_checkpoint,
            latent,
            resample_first,
        )
        self.out_channels = out_channels
        channels, factor, skips = self.bottom_channels, self.downsampling, list(self.skip_channels)
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                stage = Stage(self._res_block(channels + skips.pop(), mult * model_channels))
                channels = mult * model_channels
                if factor in attention_resolutions:
                    heads = num_heads if num_heads_upsample == -1 else num_heads_upsample
                    stage.append(AttentionBlock(channels, heads, use_checkpoint))
                if i == num_res_blocks and (level > 0 or resample_first):
                    stage.append(Upsample(channels))
                    factor //= 2
                self.output_blocks.append(stage)

        self.out = nn.Sequential(
            GroupNorm(channels), nn.SiLU(), zeroed(nn.Conv2d(channels, out_channels, kernel_size=3, padding=1))
        )
        self.norm_groups = {module.num_groups for module in self.modules() if isinstance(module, GroupNorm)}

    def decode(self, h: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        """Run the way up from what `encode` returns: [B, out_channels, H, W], unbounded."""
        skips = list(skips)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), emb)  # [B, C mult, H / factor, W / factor]
        with full_precision(h.device):  # the reference also returns to full precision before the last layer
            return self.out(h.to(next(self.parameters()).dtype))  # [B, out, H, W]

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            x: [B, in_channels, H, W]; H and W divisible by `downsampling`.
            timesteps: [B], as the network was trained on them: indices, or rescaled to [0, 1000).
            y: [B], classes in [0, num_classes); required by a class-conditional network, refused by another.
            z: [B, latent.dim]; required by a generator, refused by another.

        Returns: [B, out_channels, H, W].

        Raises:
            ValueError: a shape does not fit, or y or z is missing or not accepted.
        """
        output = self.decode(*self.encode(x, timesteps, y, z))
        return output if self.latent is None else torch.tanh(output)


class SuperResUNet(UNet):
    """Denoise a large image given its small version, resized bilinearly and concatenated to x_t as further channels.

    Takes UNet's arguments; `in_channels` are those of the image, of which the first convolution sees twice as many.
    """

    def __init__(self, in_channels: int, *args, **kwargs):
        super().__init__(2 * in_channels, *args, **kwargs)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        y: Tensor | None = None,
        z: Tensor | None = None,
        *,
        low_res: Tensor | None = None,
    ) -> Tensor:
        """Run the network.

        Args:
            x, timesteps, y, z: as for UNet; x is [B, in_channels, H, W] of the large image.
            low_res: [B, in_channels, h, w], the small image in [-1, 1].

        Raises:
            ValueError: low_res is missing or does not fit x.
        """
        if low_res is None:
            raise ValueError("an upsampler needs low_res, the small image")
        if low_res.shape[:2] != x.shape[:2]:
            raise ValueError(f"low_res {list(low_res.shape)} must have x's batch and channels, x is {list(x.shape)}")
        upsampled = F.interpolate(low_res, size=x.shape[2:], mode="bilinear")  # [B, C, H, W]
        return super().forward(torch.cat([x, upsampled], dim=1), timesteps, y, z)


def check_inputs(x: Tensor, timesteps: Tensor, y: Tensor | None, in_channels: int, num_classes: int | None) -> None:
    """Refuse inputs whose shapes do not fit the network. Values are not checked: that would synchronise the device."""
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise ValueError(f"x must be [B, {in_channels}, H, W], not {list(x.shape)}")
    if timesteps.shape != x.shape[:1]:
        raise ValueError(f"timesteps must be [{x.shape[0]}], one per example, not {list(timesteps.shape)}")
    if num_classes is None and y is not None:
        raise ValueError("y was given to a network without classes (num_classes is None)")
    if num_classes is not None and y is None:
        raise ValueError(f"y is missing: this network is conditioned on one of {num_classes} classes")
    if y is not None and y.shape != x.shape[:1]:
        raise ValueError(f"y must be [{x.shape[0]}], one class per example, not {list(y.shape)}")
