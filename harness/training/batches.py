"""The training split in the order of its permutations."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from harness.data.base import Concatenation, Dataset
from harness.methods.base import Batch
from harness.randomness import Permutations, Streams
from harness.spec.run import RunSpec

IN_MEMORY_BYTES = 4 << 30  # a training split up to this size is kept on the device
SHARE_OF_GPU = 1 / 4  # of its free memory, which a larger one may take
_ROWS_COPIED = 50_000  # at a time, to the device


class Batches:
    """The training split in the order of its permutations, scaled to [-1, 1], on the device."""

    def __init__(self, spec: RunSpec, data: Dataset, streams: Streams):
        images, labels = data.train.images, data.train.labels
        self._data, self._streams, self._flip = data, streams, spec.data.horizontal_flip
        self._label_dropout = spec.model.label_dropout
        self._order = Permutations(len(images), spec.seed)
        self._batch_size = spec.train.batch_size
        num_bytes = images[:1].nbytes * len(images)
        self._images: Tensor | ReadAhead
        if num_bytes <= IN_MEMORY_BYTES or num_bytes <= SHARE_OF_GPU * _free_bytes(streams.device):
            self._images = _copied(images, streams.device)
        else:
            self._images = ReadAhead(images, pinned=streams.device.type == "cuda")
        self._labels: Tensor | None = None
        if spec.model.class_cond:
            assert labels is not None, "the spec's validation asks for labels"
            self._labels = torch.from_numpy(labels).to(streams.device)

    def indices(self, step: int) -> Tensor:
        """Return which training images a step sees, [B]."""
        return self._order.batch(step, self._batch_size)

    def __call__(self, step: int, rows: slice | None = None) -> Batch:
        """Return a step's examples, or some rows of its global batch."""
        rows = rows or slice(0, self._batch_size)
        indices, device = self.indices(step)[rows], self._streams.device
        on_device = indices.to(device, non_blocking=True)
        if isinstance(self._images, Tensor):
            stored = self._images[on_device]
        else:
            stored = self._images(indices, following=self.indices(step + 1)[rows]).to(device, non_blocking=True)
        x_0 = self._data.to_unit(stored)
        if self._flip:
            mirrored = self._streams.uniform("flip", step, self._batch_size)[rows] < 0.5
            x_0 = torch.where(mirrored.view(-1, 1, 1, 1), x_0.flip(-1), x_0)
        y = None if self._labels is None else self._labels[on_device]
        if y is not None and self._label_dropout:
            hidden = self._streams.uniform("label_dropout", step, self._batch_size)[rows] < self._label_dropout
            assert self._data.num_classes is not None, "it has labels"
            y = torch.where(hidden, self._data.num_classes, y)
        return Batch(x_0, y, self._batch_size, rows)


class ReadAhead:
    """Rows of an array that is too large for the device: a thread reads the next step's while this step is computed.

    Args:
        pinned: put them where a GPU can fetch them by itself.
    """

    def __init__(self, images: np.ndarray | Concatenation, *, pinned: bool):
        self._images, self._pinned = images, pinned
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._ahead: tuple[Tensor, Future[Tensor]] | None = None

    def __call__(self, indices: Tensor, *, following: Tensor) -> Tensor:
        """Return the rows of some indices, as stored, and begin to read the following ones."""
        if self._ahead is not None and torch.equal(self._ahead[0], indices):
            rows = self._ahead[1].result()
        else:  # the first step, or one out of order
            rows = self._read(indices)
        self._ahead = following, self._thread.submit(self._read, following)
        return rows

    def _read(self, indices: Tensor) -> Tensor:
        rows = torch.from_numpy(self._images[indices.numpy()])  # a copy, by NumPy's loop over rows
        return rows.pin_memory() if self._pinned else rows


def _copied(images: np.ndarray | Concatenation, device: torch.device) -> Tensor:
    """Copy an array to a device, without a second copy of all of it in the machine's memory."""
    dtype = torch.from_numpy(np.array(images[:1])).dtype
    copied = torch.empty((len(images), *images.shape[1:]), dtype=dtype, device=device)
    for start in range(0, len(images), _ROWS_COPIED):
        copied[start : start + _ROWS_COPIED] = torch.from_numpy(np.array(images[start : start + _ROWS_COPIED]))
    return copied


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
