"""What networks of adversarial methods share: latents and their mapping, the time embedding, and how weights start.

Time embedding and initial weights are those of Denoising Diffusion GANs, and differ from the U-Net's
(harness/models/unet.py): here sines come first, and weights start uniform.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)

NEARLY_ZERO = (
    1e-10  # the gain of a layer that starts at zero: not exactly, so that gradients pass through from the start
)


def time_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Embed timesteps as sines, then cosines, of geometrically spaced frequencies (NCSN++'s positional embedding).

        emb = [sin(t w_i), cos(t w_i)],  w_i = max_period^(-i / (half - 1)),  half = dim // 2

    Args:
        t: [B], integers or floats.
        dim: width of the embedding, at least 4; an odd one is padded with one zero.

    Returns: [B, dim], float32.

    Raises:
        ValueError: dim is below 4, where the frequencies are not defined.
    """
    half = dim // 2
    if half < 2:
        raise ValueError(f"a time embedding of width {dim}: it needs two frequencies, so at least 4")
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / (half - 1)
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * exponents)  # [B, half]
    return F.pad(torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1), (0, dim % 2))


def uniform_(weight: Tensor, fan: Literal["fan_out", "fan_avg"], gain: float = 1.0) -> None:
    """Draw a weight from U(-b, b) of variance gain / fan.

    Args:
        weight: [out, in, ...]; the size of a convolution's kernel counts on both sides.
        fan: the number of outputs, or the mean of inputs and outputs. What the published code calls fan_avg is fan_out
            in the discriminators, the mapping network and the styles, and the mean in the rest of the generator.
    """
    kernel_size = weight[0, 0].numel()
    outputs = weight.shape[0] * kernel_size
    inputs = weight.shape[1] * kernel_size
    bound = math.sqrt(3 * gain / (outputs if fan == "fan_out" else (inputs + outputs) / 2))
    nn.init.uniform_(weight, -bound, bound)


def started(layer: Layer, fan: Literal["fan_out", "fan_avg"], gain: float = 1.0) -> Layer:
    """Start a layer with a uniform weight and, where it has one, a bias of zero."""
    uniform_(layer.weight, fan, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True)
class Latent:
    """The sizes of a generator's latent z and of the network that maps it to a style.

    Attributes:
        dim: width of z. Only its direction counts (see `pixel_norm`).
        style_dim: width of the mapping network and of the style.
        mapping_layers: dense layers of the mapping network (the published n_mlp + 1).
    """

    dim: int
    style_dim: int
    mapping_layers: int


def pixel_norm(z: Tensor) -> Tensor:
    """Scale each latent to a mean square of 1 (StyleGAN).

    Args:
        z: [B, dim].
    """
    return z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)


class PixelNorm(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return pixel_norm(z)


def mapping_network(latent: Latent) -> nn.Sequential:
    """Build the network from z to the style: pixel norm, then `mapping_layers` times a dense layer and SiLU."""
    network = nn.Sequential(PixelNorm())
    for i in range(latent.mapping_layers):
        network.append(started(nn.Linear(latent.style_dim if i else latent.dim, latent.style_dim), "fan_out"))
        network.append(nn.SiLU())
    return network


def check_latent(z: Tensor | None, batch: int, latent: Latent | None) -> None:
    """Refuse a z that is missing, or does not fit the network."""
    if latent is None and z is not None:
        raise ValueError("z was given to a network without a latent (latent is None)")
    if latent is not None and z is None:
        raise ValueError(f"z is missing: this network generates from a latent of width {latent.dim}")
    if latent is not None and z is not None and z.shape != (batch, latent.dim):
        raise ValueError(f"z must be [{batch}, {latent.dim}], one latent per example, not {list(z.shape)}")
