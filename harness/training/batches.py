"""The training split in the order of its permutations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.data.base import Dataset
from harness.methods.base import Batch
from harness.randomness import Permutations, Streams
from harness.spec.run import RunSpec

IN_MEMORY_BYTES = 4 << 30  # a training split up to this size is kept on the device


class Batches:
    """The training split in the order of its permutations, scaled to [-1, 1], on the device."""

    def __init__(self, spec: RunSpec, data: Dataset, streams: Streams):
        images, labels = data.train.images, data.train.labels
        self._data, self._streams, self._flip = data, streams, spec.data.horizontal_flip
        self._label_dropout = spec.model.label_dropout
        self._order = Permutations(len(images), spec.seed)
        self._batch_size = spec.train.batch_size
        self._images: Any = images
        if images[:1].nbytes * len(images) <= IN_MEMORY_BYTES:
            self._images = torch.from_numpy(images[:]).to(streams.device)
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
        indices = self.indices(step)[rows]
        on_device = indices.to(self._streams.device, non_blocking=True)
        stored = self._images[on_device] if isinstance(self._images, Tensor) else self._images[indices.numpy()]
        x_0 = self._data.to_unit(stored).to(self._streams.device, non_blocking=True)
        if self._flip:
            mirrored = self._streams.uniform("flip", step, self._batch_size)[rows] < 0.5
            x_0 = torch.where(mirrored.view(-1, 1, 1, 1), x_0.flip(-1), x_0)
        y = None if self._labels is None else self._labels[on_device]
        if y is not None and self._label_dropout:
            hidden = self._streams.uniform("label_dropout", step, self._batch_size)[rows] < self._label_dropout
            assert self._data.num_classes is not None, "it has labels"
            y = torch.where(hidden, self._data.num_classes, y)
        return Batch(x_0, y, self._batch_size, rows)
