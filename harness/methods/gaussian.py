"""DDPM and Improved DDPM: one denoising network, one optimizer, one moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.diffusion.process import GaussianDiffusion
from harness.diffusion.samplers import Denoise, Network, denoiser, guided
from harness.diffusion.timesteps import UniformSampler
from harness.errors import TrainingError
from harness.methods.averages import Averages, Move
from harness.methods.base import Batch, Group, Predict, StepOutput, TrainedNetwork
from harness.methods.ranges import named_range
from harness.randomness import Streams

Objective = Callable[..., dict[str, Tensor]]


class GaussianMethod:
    """The network, its optimizer and its EMA, and how one step trains them.

    Args:
        network: called as network(x_t, timesteps, y).
        process: the chain that it is trained on, on the network's device.
        objective: from OBJECTIVES, its parameters bound.
        timesteps: draws t, and is updated with the losses.
        optimizer: over network.parameters().
        learning_rate: of a step, counted from 0.
        averages: how a step moves each average of the weights, by name; "ema" is the first. They start as copies of
            the weights, without warm-up (IDDPM's code).
        timestep_scale: the network sees t times this (1000 / T under rescale_timesteps).
        grad_clip: largest global norm of the gradient, None for no limit.
        microbatch: examples in one forward pass; gradients add up to those of the whole batch.
        autocast: the dtype of the forward pass, None for that of the weights.
        num_classes: of labels, None where the network takes none; the class after the last means "not told".
        terms: names of what the objective gives of each example.
        compiler: compiles the network for training, where all batches have one shape; evaluations run it as it is.
    """

    terms_logged: tuple[str, ...]
    scalars_logged: tuple[str, ...] = ("grad_norm_preclip",)

    def __init__(
        self,
        network: nn.Module,
        process: GaussianDiffusion,
        objective: Objective,
        timesteps: UniformSampler,
        optimizer: torch.optim.Optimizer,
        *,
        learning_rate: Callable[[int], float],
        averages: Mapping[str, Move],
        timestep_scale: float,
        grad_clip: float | None = None,
        microbatch: int | None = None,
        autocast: torch.dtype | None = None,
        num_classes: int | None = None,
        terms: tuple[str, ...] = ("loss", "mse", "vb"),
        compiler: Callable[[nn.Module], nn.Module] | None = None,
    ):
        self.terms_logged = terms
        self.network, self.process, self.objective, self.optimizer = network, process, objective, optimizer
        self.timesteps, self._was_warm = timesteps, timesteps.warm
        self._averages = Averages(network, averages)
        self.ema, self._learning_rate = self._averages.networks["ema"], learning_rate
        self._timestep_scale, self._grad_clip, self._microbatch = timestep_scale, grad_clip, microbatch
        self._autocast, self.num_classes = autocast, num_classes
        self._compiler, self._weights = compiler, list(network.parameters())
        self.distribute(1)

    def distribute(self, num_processes: int) -> None:
        """Train with the other processes of torch's default group from now on, or alone again (1).

        Each process then passes `step` its rows of the global batch; gradients are those of the whole batch.
        """
        self._num_processes = num_processes
        self._replica: nn.Module = self.network
        if num_processes > 1:
            # It broadcasts the first process's weights; norms without running statistics leave no buffers to do so for.
            # Gradients are kept once, where they are sent from. Other sizes of buckets, or static_graph, change bits.
            self._replica = DistributedDataParallel(self.network, gradient_as_bucket_view=True)
        self._trained = self._replica if self._compiler is None else self._compiler(self._replica)  # at its first call

    def step(self, step: int, batch: Batch, streams: Streams, group: Group) -> StepOutput:
        """Take one optimizer step on a batch; each process passes its rows of the global batch."""
        size, rows = batch.size, batch.rows
        t, weight = self.timesteps.from_uniform(streams.uniform("timestep", step, size))
        noise = streams.normal("noise", step, (size, *batch.x_0.shape[1:]))
        own, grad_norm = self.update(step, batch, t[rows], weight[rows], noise[rows])
        terms = group.gather(own, rows, size)
        self.timesteps.update(t, terms["loss"])
        return StepOutput(t, terms["loss"] * weight, terms, {"grad_norm_preclip": grad_norm})

    def update(
        self, step: int, batch: Batch, t: Tensor, weight: Tensor, noise: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Move the weights and their EMA by one step.

        Args:
            step: counted from 0.
            batch: of this process.
            t: [rows].
            weight: [rows], 1 / (T p_t) for how t was drawn.
            noise: like x_0.

        Returns:
            the objective's terms, [rows] each and detached, and the gradient's norm before clipping, a scalar.
        """
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        x_0, y, parts = batch.x_0, batch.y, []
        # DistributedDataParallel averages gradients over processes, but those of the rows have to add up.
        divisor = batch.size / self._num_processes
        for rows in _slices(len(x_0), self._microbatch):
            with self._without_all_reduce(unless=rows.stop >= len(x_0)):
                with named_range("forward"):
                    of_rows = x_0[rows], None if y is None else y[rows], t[rows], noise[rows]
                    terms = self._terms(self._trained, *of_rows)
                    loss = (terms["loss"] * weight[rows]).sum().div(divisor)
                with named_range("backward"):
                    loss.backward()
            parts.append({name: term.detach() for name, term in terms.items()})
        with named_range("optimizer"):
            grad_norm = nn.utils.get_total_norm([w.grad for w in self._weights if w.grad is not None])
            if self._grad_clip is not None:
                nn.utils.clip_grads_with_norm_(self._weights, self._grad_clip, grad_norm)
            for group in self.optimizer.param_groups:
                group["lr"] = self._learning_rate(step)
            self.optimizer.step()
        with named_range("EMA"):
            self._averages.update(step)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, grad_norm

    def terms(self, x_0: Tensor, y: Tensor | None, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Give the objective's terms of a batch at the present weights, [B] each, ready for a backward pass.

        Raises:
            TrainingError: they have other names or another shape than declared.
        """
        return self._terms(self._replica, x_0, y, t, noise)

    def _terms(self, network: nn.Module, x_0: Tensor, y: Tensor | None, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        x_t = self.process.q_sample(x_0, t, noise)
        terms = self.objective(self.process, self._forward(network, x_t, t, y), x_0, x_t, t, noise)
        if terms.keys() != set(self.terms_logged):
            raise TrainingError(f"the objective gives {sorted(terms)}, but declares {sorted(self.terms_logged)}")
        if any(term.shape != t.shape for term in terms.values()):
            shapes = {name: list(term.shape) for name, term in terms.items()}
            raise TrainingError(
                f"the objective gives terms of shape {shapes}; one number an example is {list(t.shape)}"
            )
        return terms

    def weighted_loss(self, x_0: Tensor, y: Tensor | None, u: Tensor, noise: Tensor) -> Tensor:
        """Return the training loss, [B], with t drawn from u as in training."""
        t, weight = self.timesteps.from_uniform(u)
        return self.terms(x_0, y, t, noise)["loss"] * weight

    def sampling_network(self, weights: str = "ema") -> nn.Module:
        """Return the network with the chosen weights: "ema", "raw" or the name of a further average."""
        return self.network if weights == "raw" else self._averages.networks[weights]

    def predict(self, weights: str = "ema") -> Predict:
        """Return the network with the chosen weights, in eval mode, on the original chain's t."""
        return partial(self._forward, self.sampling_network(weights).eval())

    def denoiser(
        self,
        weights: str,
        process: GaussianDiffusion,
        *,
        y: Tensor | None,
        generator: torch.Generator,
        clip: bool,
        guidance: float = 1.0,
        low_res: Tensor | None = None,
    ) -> Denoise:
        """Return the network's `denoise` function, with classifier-free guidance; draws nothing."""
        inputs = {} if low_res is None else {"low_res": low_res}
        predict = partial(self.predict(weights), **inputs)
        return guided_denoiser(predict, process, y, clip=clip, guidance=guidance, num_classes=self.num_classes)

    def networks(self) -> dict[str, TrainedNetwork]:
        """Return the only network."""

        def inputs(x_0: Tensor) -> tuple[Tensor, ...]:
            t = x_0.new_empty(len(x_0))
            return (x_0, t) if self.num_classes is None else (x_0, t, t.long())

        return {"network": TrainedNetwork(self.network, inputs)}

    def learning_rates(self) -> dict[str, float]:
        """Return the optimizer's learning rate as `lr`."""
        return {"lr": self.optimizer.param_groups[0]["lr"]}

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Report once when t is no longer drawn uniformly."""
        if self._was_warm or not self.timesteps.warm:
            return []
        self._was_warm = True
        return [("timestep_sampler_warm", {})]

    def _without_all_reduce(self, *, unless: bool) -> AbstractContextManager:
        """Accumulate gradients locally; the backward pass of the last microbatch reduces them over the processes."""
        if unless or not isinstance(self._replica, DistributedDataParallel):
            return nullcontext()
        return self._replica.no_sync()

    def _forward(self, network: nn.Module, x_t: Tensor, t: Tensor, y: Tensor | None = None, **given: Tensor) -> Tensor:
        with _autocast(x_t.device.type, self._autocast):
            return network(x_t, t * self._timestep_scale, y, **given).float()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        return {
            "method": {
                "network": self.network.state_dict(),
                **self._averages.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
            "timesteps": self.timesteps.state_dict(),
            "was_warm": self._was_warm,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of `state_dict`; strict in names and shapes."""
        self.network.load_state_dict(state["method"]["network"])
        self._averages.load_state_dict(state["method"])
        load_optimizer(self.optimizer, state["method"]["optimizer"])
        self.timesteps.load_state_dict(state["timesteps"])
        self._was_warm = state["was_warm"]


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimizer's state, but keep how this one computes: the state may be of another implementation."""
    own = optimizer.param_groups[0]
    kept = {name: own[name] for name in ("foreach", "fused") if name in own}
    optimizer.load_state_dict({**state, "param_groups": [group | kept for group in state["param_groups"]]})


def guided_denoiser(
    predict: Predict,
    process: GaussianDiffusion,
    y: Tensor | None,
    *,
    clip: bool,
    guidance: float,
    num_classes: int | None,
) -> Denoise:
    """Return the `denoise` function of a network, with classifier-free guidance."""

    def network_of(label: Tensor | None) -> Network:
        return lambda x_t, t: predict(x_t, t, label)

    network = network_of(y)
    if guidance != 1 and y is not None:
        assert num_classes is not None, "a network with labels"
        network = guided(network, network_of(torch.full_like(y, num_classes)), guidance)
    return denoiser(process, network, clip=clip)


def _slices(count: int, size: int | None) -> Iterator[slice]:
    size = size or count
    return (slice(start, start + size) for start in range(0, count, size))


def _autocast(device: str, dtype: torch.dtype | None) -> AbstractContextManager:
    return nullcontext() if dtype is None else torch.autocast(device, dtype)
