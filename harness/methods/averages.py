"""Moving averages of a network's weights, several beside one another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from harness.diffusion.power_averages import exponent_of, weight_of_newest

Move = Callable[[Sequence[Tensor], Sequence[Tensor], int], None]
"""move(averages, weights, step): change averages in place by a step, counted from 0, without waiting for the device."""


def exponential(rate: float) -> Move:
    """Return how an exponential moving average of a constant rate is moved."""
    return get_ema_multi_avg_fn(rate)


def power_function(width: float) -> Move:
    """Return how the power-function average of a width is moved (EDM2); it starts at the weights after step 0."""
    exponent = exponent_of(width)

    def move(averages: Sequence[Tensor], weights: Sequence[Tensor], step: int) -> None:
        torch._foreach_lerp_(list(averages), list(weights), weight_of_newest(exponent, step + 1))

    return move


class Averages:
    """Networks whose weights are averages of those of a network in training.

    Args:
        network: is copied for each of them; its weights are followed.
        moves: by the averages' names, at least "ema".
        from_first_step: they start at the weights after the first step, not at the initial ones.
    """

    def __init__(self, network: nn.Module, moves: Mapping[str, Move], *, from_first_step: bool = False):
        self.networks = {name: copy.deepcopy(network).requires_grad_(False).eval() for name in moves}
        self._moves, self._from_first_step = dict(moves), from_first_step
        # Listed once: to walk through a network's modules takes as long as to move a small network's averages.
        self._weights = list(network.parameters())
        self._averaged = {name: list(average.parameters()) for name, average in self.networks.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move all averages towards the network's weights after a step, counted from 0."""
        for name, move in self._moves.items():
            if step == 0 and self._from_first_step:
                for average, weight in zip(self._averaged[name], self._weights, strict=True):
                    average.copy_(weight)
            else:
                move(self._averaged[name], self._weights, step)

    def state_dict(self) -> dict[str, Any]:
        """Return the entries of the checkpoint: `ema`, and `averages` if there are others."""
        others = {name: network.state_dict() for name, network in self.networks.items() if name != "ema"}
        return {"ema": self.networks["ema"].state_dict(), **({"averages": others} if others else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the entries of `state_dict`, which may be among others."""
        for name, network in self.networks.items():
            network.load_state_dict(state["ema"] if name == "ema" else state["averages"][name])
