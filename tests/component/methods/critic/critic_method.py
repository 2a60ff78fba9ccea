"""What critic.py names and what needs torch: a network that denoises, and a critic that tells its x_0 from the data.

Two networks, two optimizers, alternating updates, a lazy penalty on the critic's gradient, and an average of one of the
networks.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from harness.diffusion.process import Denoised, GaussianDiffusion
from harness.diffusion.samplers import Denoise
from harness.methods.base import Batch, Group, StepOutput, TrainedNetwork
from harness.randomness import Streams, derive_seed
from harness.registry import make_network, make_process

PENALTY_EVERY = 4  # steps


class CriticMethod:
    terms_logged: tuple[str, ...] = ("mse", "verdict")
    scalars_logged: tuple[str, ...] = ("critic_loss", "critic_accuracy", "critic_penalty")

    def __init__(
        self,
        network: nn.Module,
        critic: nn.Module,
        process: GaussianDiffusion,
        *,
        lr: float,
        critic_lr: float,
        weight: float,
        ema_rate: float,
    ):
        self.network, self.critic, self.process, self.weight = network, critic, process, weight
        self.ema = copy.deepcopy(network).requires_grad_(False).eval()
        self.optimizers = {
            "network": torch.optim.Adam(network.parameters(), lr=lr),
            "critic": torch.optim.Adam(critic.parameters(), lr=critic_lr, betas=(0.5, 0.9)),
        }
        self._average = get_ema_multi_avg_fn(ema_rate)
        self._penalty = torch.zeros((), device=next(critic.parameters()).device)  # of the last step that had one
        self._told_of_collapse = False
        self.distribute(1)

    def distribute(self, num_processes: int) -> None:
        wrap = DistributedDataParallel if num_processes > 1 else lambda network: network
        self._replicas = {"network": wrap(self.network), "critic": wrap(self.critic)}
        self._num_processes = num_processes

    def step(self, step: int, batch: Batch, streams: Streams, group: Group) -> StepOutput:
        size, rows = batch.size, batch.rows
        t = (streams.uniform("timestep", step, size) * self.process.num_timesteps).long()
        noise = streams.normal("noise", step, (size, *batch.x_0.shape[1:]))
        x_t = self.process.q_sample(batch.x_0, t[rows], noise[rows])
        self.network.train()
        critic_terms = self._update_critic(step, batch, x_t, t[rows])
        terms = self._update_network(batch, x_t, t[rows])
        gathered = group.gather(critic_terms | terms, rows, size)
        scalars = {name: gathered.pop(name).mean() for name in critic_terms}
        self._penalty = scalars.get("critic_penalty", self._penalty)
        scalars["critic_penalty"] = self._penalty
        return StepOutput(t, gathered["mse"] + self.weight * gathered["verdict"], gathered, scalars)

    def _update_critic(self, step: int, batch: Batch, x_t: Tensor, t: Tensor) -> dict[str, Tensor]:
        real = batch.x_0
        with torch.no_grad():
            fake = self.network(x_t, t, batch.y)
        real_score, fake_score = self._replicas["critic"](torch.cat([real, fake])).chunk(2)
        losses = F.softplus(-real_score) + F.softplus(fake_score)
        accuracy = ((real_score > 0).float() + (fake_score < 0).float()) / 2
        total, terms = losses.sum(), {"critic_loss": losses.detach(), "critic_accuracy": accuracy}
        if step % PENALTY_EVERY == 0:
            real = real.clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.critic(real).sum(), real, create_graph=True)
            penalty = gradient.flatten(1).square().sum(1)
            total = total + penalty.sum()
            terms["critic_penalty"] = penalty.detach()
        self._descend("critic", total, batch.size)
        return terms

    def _update_network(self, batch: Batch, x_t: Tensor, t: Tensor) -> dict[str, Tensor]:
        self.critic.requires_grad_(False)
        x_0 = self._replicas["network"](x_t, t, batch.y)
        terms = {"mse": (x_0 - batch.x_0).square().flatten(1).mean(1), "verdict": F.softplus(-self.critic(x_0))}
        self._descend("network", (terms["mse"] + self.weight * terms["verdict"]).sum(), batch.size)
        self.critic.requires_grad_(True)
        with torch.no_grad():
            self._average(list(self.ema.parameters()), list(self.network.parameters()), 0)
        return {name: term.detach() for name, term in terms.items()}

    def _descend(self, name: str, total: Tensor, batch_size: int) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        (total * self._num_processes / batch_size).backward()  # processes have their gradients averaged
        optimizer.step()

    def sampling_network(self, weights: str) -> nn.Module:
        return self.ema if weights == "ema" else self.network

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
        network = self.sampling_network(weights).eval()

        def denoise(x_t: Tensor, t: Tensor) -> Denoised:
            x_0 = network(x_t, process.original_t(t), y)
            x_0 = x_0.clamp(-1, 1) if clip else x_0
            posterior = process.q_posterior(x_0, x_t, t)
            return Denoised(x_0, process.predict_eps(x_0, x_t, t), posterior.mean, posterior.log_variance)

        return denoise

    def networks(self) -> dict[str, TrainedNetwork]:
        return {
            "network": TrainedNetwork(self.network, lambda x_0: (x_0, x_0.new_empty(len(x_0)))),
            "critic": TrainedNetwork(self.critic, lambda x_0: (x_0,), passes=3),
        }

    def learning_rates(self) -> dict[str, float]:
        return {
            "lr": self.optimizers["network"].param_groups[0]["lr"],
            "critic_lr": self.optimizers["critic"].param_groups[0]["lr"],
        }

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        if self._told_of_collapse or self._penalty > 0:
            return []
        self._told_of_collapse = True
        return [("critic_is_flat", {"penalty": float(self._penalty)})]

    def state_dict(self) -> dict[str, Any]:
        return {
            "method": {
                "network": self.network.state_dict(),
                "critic": self.critic.state_dict(),
                "ema": self.ema.state_dict(),
                **{f"{name}_optimizer": optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            },
            "critic": {"penalty": self._penalty.clone(), "told_of_collapse": self._told_of_collapse},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, network in {"network": self.network, "critic": self.critic, "ema": self.ema}.items():
            network.load_state_dict(state["method"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["method"][f"{name}_optimizer"])
        self._penalty = state["critic"]["penalty"].clone()
        self._told_of_collapse = state["critic"]["told_of_collapse"]


class PointCritic(nn.Module):
    """Score examples of any shape: [B, C, H, W] -> [B]."""

    def __init__(self, num_values: int, width: int = 16):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(num_values, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1)).squeeze(1)


def make_critic(spec, data, resources, device) -> CriticMethod:
    """Build the method of a spec, with the initial weights of the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(spec.seed, "init/critic"))
        critic = PointCritic(data.channels * data.image_size**2)
    return CriticMethod(
        make_network(spec, data).to(device),
        critic.to(device),
        make_process(spec.diffusion, data.levels).to(device),
        lr=spec.optim.lr,
        critic_lr=spec.method.critic_lr,
        weight=spec.method.weight,
        ema_rate=spec.train.ema_rate,
    )
