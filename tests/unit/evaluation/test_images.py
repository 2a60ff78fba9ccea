import numpy as np

from harness.evaluation.images import image_grid


def test_a_grid_keeps_every_pixel_sharp():
    images = np.arange(5 * 2 * 2, dtype=np.uint8).reshape(5, 1, 2, 2)
    grid = image_grid(images, min_tile_pixels=4)
    assert grid.shape == (2 * 6 + 2, 3 * 6 + 2)
    assert (grid[2:6, 2:6] == images[0, 0].repeat(2, 0).repeat(2, 1)).all()
    assert image_grid(np.zeros((1, 3, 64, 64), np.uint8)).shape == (68, 68, 3)
