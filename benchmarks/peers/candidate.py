"""What every candidate offers to be measured, ours and the peers'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from benchmarks.peers.settings import Setting

Train = Callable[[], object]
Sample = Callable[[int], object]


@dataclass(frozen=True)
class Candidate:
    """A library's network with its training step and sampling loop, written as the library's own examples do.

    Attributes:
        train: takes one optimizer step: data, noise, forward, backward, clipping, optimizer, EMA.
        sample: draws a batch of images with a number of evaluations of the network.
    """

    network: nn.Module
    train: Train
    sample: Sample


Build = Callable[[Setting], Candidate]
