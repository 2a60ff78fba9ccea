"""Batches are the same wherever the images lie."""

import numpy as np
import pytest
import torch

from harness.data.base import Concatenation, Dataset, Split
from harness.randomness import Streams
from harness.spec.run import RunSpec
from harness.training import batches as module
from harness.training.batches import Batches

SPEC = RunSpec.model_validate(
    {
        "data": "digits",
        "diffusion": {"num_timesteps": 30},
        "model": {"attention_resolutions": [4], "channel_mult": [1, 2]},
        "train": {"steps": 9, "batch_size": 5},
    }
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    images = np.random.default_rng(0).integers(0, 17, (12, 1, 8, 8), dtype=np.uint8)
    split = Split(Concatenation([images[:7], images[7:]]), None)
    return Dataset("digits", 8, 1, 17, None, split, split, "0" * 64)


def test_images_that_are_read_ahead_are_those_that_are_kept_on_the_device(data, monkeypatch):
    kept = Batches(SPEC, data, Streams(0))
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 0)
    ahead = Batches(SPEC, data, Streams(0))
    for step in [0, 1, 2, 3, 7, 2, 3]:  # through the end of an epoch, and out of order
        assert torch.equal(ahead(step).x_0, kept(step).x_0)
        assert torch.equal(ahead(step, slice(1, 3)).x_0, kept(step).x_0[1:3])


def test_the_next_steps_images_are_read_while_a_step_is_computed(data, monkeypatch):
    monkeypatch.setattr(module, "IN_MEMORY_BYTES", 0)
    batches, read = Batches(SPEC, data, Streams(0)), []

    def recorded(rows: torch.Tensor) -> torch.Tensor:
        read.append(rows.tolist())
        return torch.from_numpy(data.train.images[rows.numpy()])

    monkeypatch.setattr(batches._images, "_read", recorded)
    for step in range(3):
        batches(step)
    batches._images._thread.shutdown(wait=True)
    assert read == [batches.indices(step).tolist() for step in range(4)]  # each once, and one ahead
