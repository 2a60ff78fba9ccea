"""Attention over pixels in IDDPM's order of channels, as published and by fused kernels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class WeightedSum(torch.autograd.Function):
    """v weights^T of v [B, c, N] and weights [B, N, N], whose gradient has the order in memory that softmax reads.

    Autograd's own gives that of the transpose, which softmax's backward pass copies: a tenth of attention's time. On a
    CPU the values are the same, bit for bit.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, weights: Tensor) -> Tensor:
        return torch.bmm(v, weights.mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        v, weights = ctx.saved_tensors
        return torch.bmm(gradient, weights), torch.bmm(gradient.mT, v)


def published_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Attend operation by operation, as improved-diffusion does.

    Args:
        qkv: [B, 3C, N], head by head, each with its own three thirds.

    Returns: [B, C, N].
    """
    batch, channels, num_pixels = qkv.shape
    head_width = channels // 3 // num_heads
    q, k, v = qkv.reshape(batch * num_heads, 3 * head_width, -1).split(head_width, dim=1)  # [B heads, c, N]
    s = head_width**-0.25  # on both factors: their product cannot overflow half precision
    weights = torch.softmax(torch.bmm((q * s).mT, k * s).float(), dim=-1).to(v.dtype)  # [B heads, N, N]
    h = WeightedSum.apply(v, weights) if v.is_cpu else torch.bmm(v, weights.mT)  # [B heads, c, N]
    return h.reshape(batch, channels // 3, num_pixels)


def fused_attention(qkv: Tensor, num_heads: int) -> Tensor:
    """Attend by torch's fused kernels, which want the channels last: qkv [B, N, 3C], ordered as above -> [B, N, C]."""
    batch, num_pixels, channels = qkv.shape
    q, k, v = qkv.reshape(batch, num_pixels, num_heads, 3, -1).permute(3, 0, 2, 1, 4).unbind()  # [B, heads, N, c]
    h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)  # [B, N, heads, c]
    return h.reshape(batch, num_pixels, channels // 3)
