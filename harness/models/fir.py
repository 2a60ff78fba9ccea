"""Resampling by the factor 2 with the FIR kernel (1, 3, 3, 1), which low-passes what it drops or fills in.

    k = (1, 3, 3, 1) / 8,  K = k k^T                                          (Zhang 2019, section 3; StyleGAN2, NCSN++)

All three are linear and differentiable twice. The border is padded by zeros, so constants are kept in the inner pixels
only. The kernel is made on the image's device: one copied from the host would wait for the device at every call.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def fir_kernel(x: Tensor) -> Tensor:
    """Make the kernel K for each channel of x by itself, of sum 1: [C, 1, 4, 4] of x's type, on x's device."""
    taps = x.new_full((4,), 3 / 8)
    taps[::3] = 1 / 8
    return torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)


def upsample(x: Tensor) -> Tensor:
    """Double height and width: zeros between the pixels, then 4 K.

    Args:
        x: [B, C, H, W].

    Returns: [B, C, 2 H, 2 W].
    """
    return F.conv_transpose2d(x, 4 * fir_kernel(x), stride=2, padding=1, groups=x.shape[1])


def downsample(x: Tensor) -> Tensor:
    """Halve height and width: K, then every second pixel.

    Args:
        x: [B, C, H, W].

    Returns: [B, C, H // 2, W // 2].
    """
    return F.conv2d(x, fir_kernel(x), stride=2, padding=1, groups=x.shape[1])


def conv_downsample(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Halve height and width by K, then a convolution of stride 2.

    Args:
        x: [B, C, H, W].
        weight: [D, C, k, k], k odd.
        bias: [D].

    Returns: [B, D, H // 2, W // 2].
    """
    blurred = F.conv2d(x, fir_kernel(x), padding=1 + weight.shape[-1] // 2, groups=x.shape[1])  # [B, C, H + k - 2, ...]
    return F.conv2d(blurred, weight, bias, stride=2)
