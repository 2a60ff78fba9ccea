"""What an evaluation keeps in its run directory: batches, so that a kill costs one, and the features of samples.

A batch of samples, or of terms of the bound, is a function of the weights, the protocol and its index alone. So a
repetition takes those that were kept and computes the others, and ends in the same bits. Features are kept as the
float32 numbers that the metrics are computed from, so that a metric is the same number whether it was asked for at once
or later.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data.base import to_uint8
from harness.metrics.features import Extractor
from harness.records.kept import KeptArrays

logger = logging.getLogger(__name__)

SAMPLING_VERSION = 1
"""Part of every draw's key. Raise it with any change to the samples that weights and a protocol give."""

VALUES_VERSION = 1
"""Part of the key of a part's values. Raise it with any change to what weights and a protocol give."""

BATCHES_AT_ONCE = 32
"""Of the network between two files of values."""

Evaluate = Callable[..., np.ndarray]

_MIB = 1 << 20


@dataclass(frozen=True)
class Keeping:
    """Where an evaluation keeps its samples and features.

    Attributes:
        folder: of all draws of a run.
        samples: whether samples stay when the evaluation has been recorded.
        features_mib: features that take more are not kept.
    """

    folder: Path
    samples: bool = False
    features_mib: float = 256.0


class Draw:
    """Samples that are being drawn, batch by batch, and what was kept of them before.

    Args:
        arrays: of this draw in the run directory.
        exact: keep floats: the data are continuous, or somebody reads samples before they become images.
    """

    def __init__(self, arrays: KeptArrays, *, exact: bool):
        self.arrays, self._exact = arrays, exact
        self._full = False

    def read(self, batch: int, count: int) -> Tensor | None:
        """Return a batch of samples in [-1, 1], [count, C, H, W]; None if it was not kept."""
        for kind in ("float32",) if self._exact else ("uint8", "float32"):
            if (stored := self.arrays.read(_batch_name(batch, count, kind))) is not None:
                return to_unit(torch.from_numpy(stored)) if kind == "uint8" else torch.from_numpy(stored)
        return None

    def write(self, batch: int, samples: Tensor) -> None:
        """Keep a batch of samples; on a full disk say so once, and go on without."""
        if self._full:
            return
        # uint8 has no NaN, so a batch with a diverged sample is kept as it is.
        as_images = not self._exact and bool(samples.isfinite().all())
        stored = to_uint8(samples).numpy() if as_images else samples.float().numpy()
        try:
            self.arrays.write(_batch_name(batch, len(stored), str(stored.dtype)), stored)
        except OSError as error:
            self._full = True
            logger.warning(f"{_problem(self.arrays, error)}; the evaluation goes on, but a kill would lose its samples")

    def read_features(self, extractor: Extractor, num_samples: int) -> Tensor | None:
        """Return the features of the first samples, [N, F]; None if they were not kept."""
        stored = self.arrays.read(_features_name(extractor, num_samples))
        return None if stored is None else torch.from_numpy(stored)

    def write_features(self, extractor: Extractor, features: Tensor, limit_mib: float) -> None:
        """Keep the features of samples, unless they take more than the limit or the disk is full."""
        size_mib = features.numel() * features.element_size() / _MIB
        if size_mib > limit_mib:
            if limit_mib:
                logger.info(
                    f"the features of {len(features)} samples are not kept, since they take {size_mib:.0f} MiB: to "
                    f"compute metrics from them later, set records.keep_features_mib to {math.ceil(size_mib)} or more"
                )
            return
        try:
            self.arrays.write(_features_name(extractor, len(features)), features.numpy())
        except OSError as error:
            logger.warning(f"{_problem(self.arrays, error)}; a metric that is added later samples again")


class KeptValues:
    """Values that a part computes batch by batch, and what was kept of them before.

    Args:
        arrays: of this part in the run directory; None keeps nothing.
    """

    def __init__(self, arrays: KeptArrays | None):
        self._arrays, self._full = arrays, False

    def batch(self, number: int, compute: Callable[[], np.ndarray]) -> np.ndarray:
        """Return a batch of values: the kept ones, else computed and kept; on a full disk go on without."""
        if self._arrays is None or self._full:
            return compute()
        name = f"batch-{number:06d}"
        if (stored := self._arrays.read(name)) is not None:
            return stored
        values = compute()
        try:
            self._arrays.write(name, values)
        except OSError as error:
            self._full = True
            logger.warning(f"{_problem(self._arrays, error)}; the evaluation goes on, but a kill would start it anew")
        return values

    def of_calls(self, evaluate: Evaluate, rows_at_once: int) -> Evaluate:
        """Keep what a function of rows returns, as many rows at once; its calls have to come in the same order again.

        Args:
            evaluate: of arrays [n], to [n, ...].
        """
        numbers = count()

        def kept(*arrays: np.ndarray) -> np.ndarray:
            starts = range(0, len(arrays[0]), rows_at_once)
            pieces = [[array[start : start + rows_at_once] for array in arrays] for start in starts]
            return np.concatenate([self.batch(next(numbers), partial(evaluate, *piece)) for piece in pieces])

        return kept

    def release(self) -> None:
        """Remove what was kept."""
        if self._arrays is not None:
            self._arrays.remove_batches()


def to_unit(images: Tensor) -> Tensor:
    """Return samples that `to_uint8` turns into these images again: the middle of each level."""
    return (images.float() + 0.5) / 127.5 - 1


def weights_digest(weights: Mapping[str, Any]) -> str:
    """Return sha256 (hex) over the names, shapes and values of a state dict."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def array_digest(array: np.ndarray) -> str:
    """Return sha256 (hex) over the shape and values of an array."""
    return hashlib.sha256(f"{array.shape} {array.dtype}".encode() + array.tobytes()).hexdigest()


def _batch_name(batch: int, count: int, kind: str) -> str:
    return f"batch-{batch:06d}-{count}-{kind}"


def _features_name(extractor: Extractor, num_samples: int) -> str:
    name = re.sub(r"[^\w.+=,-]", "_", extractor.name)
    return f"features-{name}-{extractor.digest[:16]}-{num_samples}"


def _problem(arrays: KeptArrays, error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"{arrays.folder} cannot be written: {'the disk or your quota is full' if full else error.strerror}"
