"""Whether features can be compared at all."""

from __future__ import annotations

import torch
from torch import Tensor


def are_finite(*features: Tensor) -> bool:
    """Return whether no value is NaN or infinite: samples that diverged have no distance to anything."""
    return all(bool(torch.isfinite(rows).all()) for rows in features)
