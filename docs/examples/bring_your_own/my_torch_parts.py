"""What my_parts.py names and what needs torch."""

import torch
from torch import nn

from harness.diffusion.objectives import training_terms
from harness.models.unet import timestep_embedding


def p2(process, model_output, x_0, x_t, t, noise, k, gamma):
    """Return the terms of each example, [B]: mse, and the loss that weighs it."""
    terms = training_terms(process, model_output, x_0, x_t, t, noise, learn_variance=False)
    snr = process.extract("snr", t, x_t).flatten()
    return {"loss": terms["mse"] / (k + snr) ** gamma, **terms}


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width, elementwise_affine=False) for _ in range(2)])
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens, emb):
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(emb)[:, None].chunk(6, dim=-1)
        h = self.norms[0](tokens) * (1 + scale_1) + shift_1
        tokens = tokens + gate_1 * self.attention(h, h, h, need_weights=False)[0]
        return tokens + gate_2 * self.mlp(self.norms[1](tokens) * (1 + scale_2) + shift_2)


class DiffusionTransformer(nn.Module):
    """Patches as tokens, conditioned on t and y by adaptive layer norms."""

    def __init__(self, in_channels, out_channels, image_size, num_classes, patch_size, width, depth, num_heads):
        super().__init__()
        self.width = width
        self.patches = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image_size // patch_size) ** 2, width))
        self.time_embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label_emb = nn.Embedding(num_classes, width) if num_classes is not None else None
        self.blocks = nn.ModuleList([Block(width, num_heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, patch_size**2 * out_channels)
        self.unpatch = nn.PixelShuffle(patch_size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x, timesteps, y=None):
        emb = self.time_embed(timestep_embedding(timesteps, self.width))  # [B, width]
        if self.label_emb is not None:
            emb = emb + self.label_emb(y)
        h = self.patches(x)  # [B, width, H/p, W/p]
        tokens = h.flatten(2).transpose(1, 2) + self.positions  # [B, N, width]
        for block in self.blocks:
            tokens = block(tokens, emb)
        h = self.out(self.norm(tokens)).transpose(1, 2).unflatten(2, h.shape[2:])  # [B, p p out, H/p, W/p]
        return self.unpatch(h)  # [B, out, H, W]


def contrast(context, num_samples, num_steps):
    """Return the standard deviation of sampled pixels and of as many from the data, in [-1, 1]."""
    from harness.spec.evaluation import Ancestral

    samples = context.sample(Ancestral(), num_steps, num_samples)
    _, _, x_0, _ = context.choose_images(num_samples)
    return {"contrast": samples.std(), "contrast_of_data": x_0.std()}
