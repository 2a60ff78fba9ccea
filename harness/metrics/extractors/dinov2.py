"""DINOv2 ViT-L/14: the network of FD_DINOv2 (Stein et al. 2023).

torch-fidelity takes no file for it, and resizes images as TensorFlow 1 did, bilinear and not antialiased; published
numbers are of images resized to 224 pixels by an antialiased bicubic. So this is a network of our own, with the names
of the published file.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.data.base import Dataset
from harness.metrics.extractors.base import Extractor, given_file, one_layer_class, shapes_of
from harness.metrics.weights import file_digest, is_official, read_weights

DEPTH, FEATURE_DIM, NUM_HEADS = 24, 1024, 16
PATCH_SIZE, TRAINED_GRID, IMAGE_SIZE = 14, 37, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def dinov2(dataset: Dataset, weights: str | os.PathLike[str] | None) -> Extractor:
    """Load DINOv2 ViT-L/14 (1,024 features: the class token after the last norm) from its published file.

    Raises:
        DataError: no file given or found, not the weights of this network, or data that are not images.
    """
    path = given_file("dinov2", dataset, weights)
    module = one_layer_class("dinov2", _make)("dinov2", ["features"], path)
    official = is_official("dinov2", path)
    return Extractor("dinov2", file_digest(path), FEATURE_DIM, module, weights_path=path, official=official)


def read_dinov2_weights(path: Path) -> dict[str, Tensor]:
    """Read DINOv2 ViT-L/14 without registers from a file, and check that it is this network and that it can be used.

    Raises:
        DataError: it is not.
    """
    return read_weights("dinov2", path, shapes_of(lambda: DinoV2(DEPTH)))


def _make(path: Path | None) -> nn.Module:
    assert path is not None, "given_file has found it"
    with torch.device("meta"):  # the random weights that it would begin with take seconds
        network = DinoV2(DEPTH)
    network.load_state_dict(read_dinov2_weights(path), assign=True)
    return network.float()


class DinoV2(nn.Module):
    """The vision transformer of facebookresearch/dinov2: [B, C, H, W] uint8 images -> [B, FEATURE_DIM]."""

    def __init__(self, depth: int):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, FEATURE_DIM))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + TRAINED_GRID**2, FEATURE_DIM))
        self.mask_token = nn.Parameter(torch.zeros(1, FEATURE_DIM))  # of its training; in the file, never used here
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, FEATURE_DIM, PATCH_SIZE, PATCH_SIZE)})
        self.blocks = nn.ModuleList(_Block() for _ in range(depth))
        self.norm = nn.LayerNorm(FEATURE_DIM, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed["proj"](prepared(images)).flatten(2).transpose(1, 2)  # [B, 16 x 16, D]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self._position()
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])

    def _position(self) -> Tensor:
        """Return the position embedding resized as the published code does: [1, 1 + 16 x 16, D]."""
        grid = self.pos_embed[:, 1:].unflatten(1, (TRAINED_GRID, TRAINED_GRID)).permute(0, 3, 1, 2)
        # The scale is given, with an offset of 0.1, not the size: the weights were published with this resize.
        scale = (IMAGE_SIZE // PATCH_SIZE + 0.1) / TRAINED_GRID
        grid = nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(FEATURE_DIM, eps=1e-6)
        self.attn = _Attention()
        self.ls1 = _LayerScale()
        self.norm2 = nn.LayerNorm(FEATURE_DIM, eps=1e-6)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(FEATURE_DIM, 4 * FEATURE_DIM), "fc2": nn.Linear(4 * FEATURE_DIM, FEATURE_DIM)}
        )
        self.ls2 = _LayerScale()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        hidden = nn.functional.gelu(self.mlp["fc1"](self.norm2(x)))
        return x + self.ls2(self.mlp["fc2"](hidden))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(FEATURE_DIM, 3 * FEATURE_DIM)
        self.proj = nn.Linear(FEATURE_DIM, FEATURE_DIM)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, NUM_HEADS, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, N, D / heads]
        x = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class _LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(FEATURE_DIM))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def prepared(images: Tensor) -> Tensor:
    """Resize uint8 images to 224 pixels, bicubic and antialiased, and normalise them: [B, 3, 224, 224] float32.

    As EDM2's script does it; PIL's bicubic, which dgm-eval uses, differs by its rounding to integers.
    """
    x = images.expand(-1, 3, -1, -1).float()
    x = nn.functional.interpolate(x, (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True) / 255
    mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (x - mean) / std
