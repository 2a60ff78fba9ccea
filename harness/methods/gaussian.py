"""DDPM and Improved DDPM: one network that denoises, one optimizer, one moving average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from harness.diffusion.process import GaussianDiffusion

Objective = Callable[..., dict[str, Tensor]]
Predict = Callable[..., Tensor]  # (x_t, t of the original chain, y or None; an upsampler also low_res=) -> output


class GaussianMethod:
    """What one step of training is, and what is left of it: the network, its optimizer and its EMA.

    Args:
        network: called as network(x_t, timesteps, y).
        process: the chain that it is trained on, on the network's device.
        objective: from OBJECTIVES, its parameters bound.
        optimizer: over network.parameters().
        learning_rate: of a step, counted from 0.
        ema_rate: the EMA starts as a copy of the weights, without warm-up (IDDPM's code).
        timestep_scale: the network sees t times this (1000 / T under rescale_timesteps).
        grad_clip: largest global norm of the gradient, None for any.
        microbatch: examples in one forward pass; gradients add up to those of the whole batch.
        autocast: the dtype of the forward pass, None for that of the weights.
    """

    def __init__(
        self,
        network: nn.Module,
        process: GaussianDiffusion,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        *,
        learning_rate: Callable[[int], float],
        ema_rate: float,
        timestep_scale: float,
        grad_clip: float | None = None,
        microbatch: int | None = None,
        autocast: torch.dtype | None = None,
    ):
        self.network, self.process, self.objective, self.optimizer = network, process, objective, optimizer
        self.ema = copy.deepcopy(network).requires_grad_(False).eval()
        self._learning_rate, self._average = learning_rate, get_ema_multi_avg_fn(ema_rate)
        self._timestep_scale, self._grad_clip, self._microbatch = timestep_scale, grad_clip, microbatch
        self._autocast = autocast
        self._replica, self._num_processes = network, 1

    def distribute(self, num_processes: int) -> None:
        """Train from now on with the other processes of torch's default group, or alone again (1).

        Each then gives `step` its rows of the global batch; gradients are those of the whole, on all alike.
        """
        self._num_processes = num_processes
        # It broadcasts the first process's weights; norms without running statistics leave no buffers to do so for.
        self._replica = DistributedDataParallel(self.network) if num_processes > 1 else self.network

    def step(
        self,
        step: int,
        x_0: Tensor,
        y: Tensor | None,
        t: Tensor,
        weight: Tensor,
        noise: Tensor,
        *,
        batch_size: int | None = None,
    ) -> dict[str, Tensor]:
        """Take one optimizer step on a batch.

        Args:
            step: counted from 0.
            x_0: [B, C, H, W], in [-1, 1]; of a distributed batch, the rows of this process.
            y: [B], labels, or None.
            t: [B].
            weight: [B], 1 / (T p_t) for how t was drawn.
            noise: like x_0.
            batch_size: of all processes together, B when this one is alone.

        Returns:
            the objective's terms, [B] each and detached, and the gradient's norm before clipping, a scalar. Nothing
            here waits for the device.
        """
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        # Processes have their gradients averaged, where those of their rows add up.
        divisor = (batch_size or len(x_0)) / self._num_processes
        for rows in _slices(len(x_0), self._microbatch):
            with self._keeping_to_itself(last=rows.stop >= len(x_0)):
                terms = self.terms(x_0[rows], None if y is None else y[rows], t[rows], noise[rows])
                (terms["loss"] * weight[rows]).sum().div(divisor).backward()
            parts.append({name: term.detach() for name, term in terms.items()})
        weights = list(self.network.parameters())
        grad_norm = nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        if self._grad_clip is not None:
            nn.utils.clip_grads_with_norm_(weights, self._grad_clip, grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(step)
        self.optimizer.step()
        with torch.no_grad():
            self._average(list(self.ema.parameters()), weights, step)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} | {"grad_norm": grad_norm}

    def terms(self, x_0: Tensor, y: Tensor | None, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Give the objective's terms of a batch at the present weights, [B] each, ready for a backward pass."""
        x_t = self.process.q_sample(x_0, t, noise)
        return self.objective(self.process, self._forward(self._replica, x_t, t, y), x_0, x_t, t, noise)

    def predict(self, weights: str = "ema") -> Predict:
        """Return the network with the chosen weights ("ema" or "raw"), in eval mode, on the original chain's t."""
        network = self.ema if weights == "ema" else self.network
        network.eval()
        return partial(self._forward, network)

    def _keeping_to_itself(self, *, last: bool) -> AbstractContextManager:
        """Add a microbatch's gradients up here; the last one's backward pass tells the sums to the other processes."""
        if last or not isinstance(self._replica, DistributedDataParallel):
            return nullcontext()
        return self._replica.no_sync()

    def _forward(self, network: nn.Module, x_t: Tensor, t: Tensor, y: Tensor | None = None, **given: Tensor) -> Tensor:
        with _autocast(x_t.device.type, self._autocast):
            return network(x_t, t * self._timestep_scale, y, **given).float()

    def state_dict(self) -> dict[str, Any]:
        """Give everything that the next step depends on."""
        return {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of `state_dict`; strict in names and shapes."""
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])


def _slices(count: int, size: int | None) -> Iterator[slice]:
    size = size or count
    return (slice(start, start + size) for start in range(0, count, size))


def _autocast(device: str, dtype: torch.dtype | None) -> AbstractContextManager:
    return nullcontext() if dtype is None else torch.autocast(device, dtype)
