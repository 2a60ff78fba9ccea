"""Grids of images, and PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def image_grid(images: np.ndarray, min_tile_pixels: int = 48, columns: int | None = None) -> np.ndarray:
    """Arrange uint8 images [N, C, H, W] in a grid, small ones enlarged without smoothing.

    Args:
        columns: by default the grid is near-square.

    Returns:
        [height, width] for grey, [height, width, 3] for colour, with a thin light gap between tiles.
    """
    count, channels, size, _ = images.shape
    scale, columns = max(1, -(-min_tile_pixels // size)), columns or int(np.ceil(np.sqrt(count)))
    tile, gap = size * scale, 2
    rows = -(-count // columns)
    canvas = np.full((rows * (tile + gap) + gap, columns * (tile + gap) + gap, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (gap + (tile + gap) * place for place in divmod(index, columns))
        enlarged = image.transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1)
        canvas[top : top + tile, left : left + tile] = enlarged
    return canvas[:, :, 0] if channels == 1 else canvas


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write a uint8 image as PNG."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
