"""Randomness as a function of (seed, stream, step): no generator state has to be stored or restored.

A draw for a step is always made for the whole global batch, in the order of the examples' index in it; a process that
works on a part of the batch takes its rows. So any number of processes draws the same, a run that was killed anywhere
continues with the same numbers, and arms of one replicate share data order, timesteps and noise.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive_seed(seed: int, stream: str) -> int:
    """Return 62 bits that belong to this seed and stream."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest(), "big") >> 2


class Streams:
    """Named streams of random numbers of one run.

    Args:
        seed: of the run; replicates differ in it.
        device: where the numbers are drawn and returned. CPU and CUDA draw different numbers from one seed.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        self.seed, self.device = seed, torch.device(device)

    def generator(self, stream: str, step: int = 0) -> torch.Generator:
        """Return a fresh generator for a step of a stream.

        torch's CPU generator uses the low 32 bits of a seed; adding the step to them keeps the steps of one stream
        distinct with certainty, whereas hashing could make some of them collide.
        """
        return torch.Generator(self.device).manual_seed(derive_seed(self.seed, stream) + step)

    def normal(self, stream: str, step: int, shape: tuple[int, ...]) -> Tensor:
        """Draw standard normal numbers for a step: `shape` begins with the size of the global batch."""
        return torch.randn(shape, generator=self.generator(stream, step), device=self.device)

    def uniform(self, stream: str, step: int, count: int) -> Tensor:
        """Draw numbers from [0, 1) for a step, [count], float64."""
        return torch.rand(count, generator=self.generator(stream, step), device=self.device, dtype=torch.float64)

    def seed_dropout(self, step: int, rank: int = 0) -> None:
        """Seed torch's global generators, which dropout draws from, for a step.

        torch.manual_seed would also note it, with a traceback, for each kind of device that is not in use: for a small
        network that is a tenth of a step.
        """
        number = derive_seed(self.seed, f"dropout/{rank}") + step
        torch.default_generator.manual_seed(number)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(number)


class Permutations:
    """The order of the data: example i of the endless sequence is place i mod N of permutation i // N.

    Every epoch shows every example once; batches continue across its end. The position depends only on the step.
    """

    def __init__(self, num_examples: int, seed: int):
        self.num_examples, self.seed = num_examples, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def batch(self, step: int, batch_size: int) -> Tensor:
        """Return the indices of a step's global batch, [batch_size], on the CPU."""
        places = torch.arange(step * batch_size, (step + 1) * batch_size)
        parts = [
            self._permutation(int(epoch))[places[places // self.num_examples == epoch] % self.num_examples]
            for epoch in torch.unique(places // self.num_examples)
        ]
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order") + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.num_examples, generator=generator)
        return self._order
