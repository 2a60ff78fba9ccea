"""A mixture of 25 Gaussians in the plane: SIDDM's 5x5 grid, the smallest data on which modes can be lost.

SIDDM's authors draw modes 5 apart (coordinates 0 .. 20) and offsets randn / 3 clamped to +-1, so that everything lies
in [-1, 21]. Here the same points are mapped linearly onto [-1, 1], as images are: (x - CENTRE) / SCALE.
"""

import numpy as np

from harness.data.base import Dataset, Split, build
from harness.data.facts import DATASET_FACTS

CENTRE, SCALE = 10.0, 11.0
_SEED = 1024  # that of the authors' code
_PER_MODE = {"train": 10_000, "test": 2_000}


def modes() -> np.ndarray:
    """Return the 25 centres, [25, 2] float32, in the data's scale: 0, +-5/11 and +-10/11 along each axis."""
    axis = np.arange(5) * 5.0
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(25, 2)
    return ((grid - CENTRE) / SCALE).astype(np.float32)


def mog(data_root: str | None = None) -> Dataset:
    """Draw the mixture from a fixed seed: 10,000 training and 2,000 test points per mode, [N, 2, 1, 1] float32.

    Labels are the modes.
    """
    generator = np.random.default_rng(_SEED)
    splits = {}
    for split, count in _PER_MODE.items():
        offsets = np.clip(generator.standard_normal((25, count, 2)) / 3, -1, 1)
        points = modes()[:, None] + (offsets / SCALE).astype(np.float32)
        splits[split] = Split(points.reshape(-1, 2, 1, 1), np.repeat(np.arange(25), count))
    return build("mog", DATASET_FACTS["mog"], splits["train"], splits["test"])
