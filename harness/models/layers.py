"""What the two networks of Denoising Diffusion GANs share: the time embedding and how weights start.

Both differ from the U-Net's (harness/models/unet.py): here sines come first, and weights start uniform.
"""

import math
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
