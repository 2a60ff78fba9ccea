"""What data cost a training step: images that are kept on the device, and mapped files that are read ahead."""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.ours import CPU, method_of_a_job
from benchmarks.peers.settings import num_parameters
from benchmarks.peers.timing import in_turns, timed
from benchmarks.tables import cost, head, table
from harness.data.base import Dataset
from harness.randomness import Streams
from harness.spec.run import RunSpec
from harness.training import batches as batches_module
from harness.training.batches import Batches
from harness.training.distributed import ProcessGroup

IMAGES, BATCH, REPEATED = 20_000, 32, 20
NETWORK = {"channels": 32, "channel_mult": [1, 2, 2, 2], "num_res_blocks": 1, "attention_resolutions": [8]}


def measure(rounds: int) -> str:
    """The share of data in a step: a folder of 64x64 PNGs, and ImageNet-64's npz files."""
    torch.set_num_threads(1)
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name, _cache_below(Path(name)):
        for label, dataset, spec in _data_sets(Path(name)):
            step, candidates = _OfData(dataset, spec), {}
            candidates["a step"] = step.train
            candidates |= {way: partial(step.batches, way) for way in step.ways}
            units = {way: 1.0 if way == "a step" else float(REPEATED) for way in candidates}
            times = in_turns({way: partial(timed, do) for way, do in candidates.items()}, rounds=rounds, units=units)
            for way in step.ways:
                speed = BATCH / statistics.median(times[way].processor)
                rows.append([f"{label}, {way}", cost(times[way], times["a step"]), f"{speed:,.0f}"])
    return "\n\n".join([
        *head("Data", rounds),
        f"{IMAGES:,} images of 64x64, batch {BATCH}; a step of a network with {step.num_parameters / 1e6:.1f} M "
        "parameters. Processor time, with that of the thread that reads ahead, its share of a step's, and time on the "
        "wall; the last column is what one core could bring. Files are in the machine's memory: no disk is measured.",
        table(["", "a batch", "images a second and core"], rows),
    ])  # fmt: skip


class _OfData:
    """Steps on a data set, and its batches in both ways in which they may come to the device."""

    def __init__(self, dataset: Dataset, spec: RunSpec):
        self._streams, self._step = Streams(0, CPU), 0
        self._method = method_of_a_job(spec, dataset)
        self.num_parameters = num_parameters(self._method.network)
        self.ways = {"kept on the device": Batches(spec, dataset, self._streams)}
        kept, batches_module.IN_MEMORY_BYTES = batches_module.IN_MEMORY_BYTES, 0
        self.ways["mapped files, read ahead"] = Batches(spec, dataset, self._streams)
        batches_module.IN_MEMORY_BYTES = kept

    def train(self) -> None:
        self._step += 1
        batch = next(iter(self.ways.values()))(self._step)
        self._method.step(self._step, batch, self._streams, ProcessGroup())

    def batches(self, way: str) -> None:
        for _ in range(REPEATED):
            self._step += 1
            self.ways[way](self._step)


def _data_sets(folder: Path) -> Iterator[tuple[str, Dataset, RunSpec]]:
    """Write images to files of both kinds, and load them as a run does."""
    from PIL import Image

    from harness.data.imagenet64 import TEST, TRAIN, imagenet64
    from harness.datasets import make_dataset

    draw = np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "imagenet64").mkdir()
    for number in range(IMAGES):
        picture = Image.fromarray(draw.integers(256, size=(64, 64, 3), dtype=np.uint8))
        picture.save(folder / "images" / f"{number}.png", compress_level=1)
    spec = _spec({"name": "image_folder", "path": "images", "image_size": 64})
    began = time.perf_counter()
    dataset = make_dataset(spec.data, str(folder))
    print(f"the folder was read in {time.perf_counter() - began:.1f} s, once", file=sys.stderr)
    yield "a folder of PNGs", dataset, spec
    for file in (*TRAIN, TEST):
        images = draw.integers(256, size=(IMAGES // len(TRAIN), 3 * 64 * 64), dtype=np.uint8)
        np.savez(folder / "imagenet64" / file, data=images, labels=np.ones(len(images), np.int64))
    counts = IMAGES, IMAGES // len(TRAIN)
    yield f"{len(TRAIN)} npz files", imagenet64(str(folder), counts=counts), _spec({"name": "imagenet64"})


def _spec(of_data: dict[str, Any]) -> RunSpec:
    train = {"steps": 1_000_000, "batch_size": BATCH}
    return RunSpec.model_validate({"data": of_data, "model": NETWORK, "train": train})


@contextmanager
def _cache_below(folder: Path) -> Iterator[None]:
    before = os.environ.get("HARNESS_CACHE")
    os.environ["HARNESS_CACHE"] = str(folder / "cache")
    try:
        yield
    finally:
        os.environ.pop("HARNESS_CACHE")
        if before is not None:
            os.environ["HARNESS_CACHE"] = before
