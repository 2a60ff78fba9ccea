"""Half and double the size, by convolutions of 3x3 pixels, as in Improved DDPM's U-Net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Downsample(nn.Module):
    """Halve height and width with a strided 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Double height and width: each pixel four times, then a 3x3 convolution.

    Attributes:
        fused: on a CPU, compute both by `doubled_and_convolved`.
    """

    fused = False

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused and x.is_cpu:
            return doubled_and_convolved(x, *self.conv.parameters())
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def doubled_and_convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Repeat each pixel four times and convolve that, by 2x2 convolutions of the small image (Shi et al. 2016).

    Of the three taps of a row or column, two meet the same small pixel:

        y[2i] = w_0 x[i-1] + (w_1 + w_2) x[i],  y[2i+1] = (w_0 + w_1) x[i] + w_2 x[i+1]

    which is 4/9 of the multiplications, and equal up to rounding.

    Args:
        x: [B, C, H, W].
        weight, bias: of the 3x3 convolution, [O, C, 3, 3] and [O].

    Returns: [B, O, 2 H, 2 W].
    """
    kernels = _by_parity(_by_parity(weight, 2), 4).flatten(0, 2)  # [4 O, C, 2, 2], by parity of column, then of row
    small = F.conv2d(x, kernels, bias.repeat(4), padding=1).unflatten(1, (2, 2, -1))  # [B, 2, 2, O, H + 1, W + 1]
    rows = torch.stack([small[:, :, 0, :, :-1], small[:, :, 1, :, 1:]], dim=4)  # [B, 2, O, H, 2, W + 1]
    pixels = torch.stack([rows[:, 0, ..., :-1], rows[:, 1, ..., 1:]], dim=5)  # [B, O, H, 2, W, 2]
    return pixels.flatten(4).flatten(2, 3)


def _by_parity(weight: Tensor, dim: int) -> Tensor:
    """Return the two taps for even and for odd pixels along a dimension of three taps, stacked in front."""
    w_0, w_1, w_2 = weight.unbind(dim)
    return torch.stack([torch.stack([w_0, w_1 + w_2], dim), torch.stack([w_0 + w_1, w_2], dim)])
