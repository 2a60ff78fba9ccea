"""What DDGAN and SIDDM share: a generator that denoises in few large steps, a discriminator, and how they take turns.

The generator predicts x_0 from x_{t+1}, t and a latent z; x_t is then drawn from the posterior. A subclass says what
the discriminator is shown, and what each of the two minimises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.diffusion.adversarial import (
    Verdict,
    discriminator_loss_fake,
    discriminator_loss_real,
    generator_loss,
    r1_penalty,
)
from harness.diffusion.pairs import posterior_sample, q_sample_pair
from harness.diffusion.process import Denoised, GaussianDiffusion
from harness.diffusion.samplers import Denoise
from harness.errors import TrainingError
from harness.methods.averages import Averages, Move
from harness.methods.base import Batch, Group, StepOutput, TrainedNetwork
from harness.methods.ranges import named_range
from harness.randomness import Streams

SATURATED = 0.995
"""Accuracy on both real and generated examples from which a discriminator teaches the generator nothing."""
RECOVERED = 0.9
ACCURACY_MEMORY = 0.998
"""Rate of the moving average of the accuracies: some 500 steps."""


@dataclass(frozen=True)
class Examples:
    """One process's examples of a step.

    Attributes:
        x_0: [rows, C, H, W].
        y: [rows], labels, or None.
        share: the weight of this process's mean in the mean over the processes; 1 if they have equally many rows.
    """

    x_0: Tensor
    y: Tensor | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Draws:
    """The random numbers of one half of a step.

    Attributes:
        t: [B], in 0 .. T-1.
        noise: of x_t, like x_0.
        noise_next: from x_t to x_{t+1}.
        z: [B, latent_dim], latents.
        posterior_noise: of the generated x_t.
        renoise: from the generated x_t to x_{t+1} again.
    """

    t: Tensor
    noise: Tensor
    noise_next: Tensor
    z: Tensor
    posterior_noise: Tensor
    renoise: Tensor | None = None

    def rows(self, rows: slice, order: Tensor) -> Draws:
        """Return those of one process, in the order in which it works on them."""
        return replace(self, **{name: value[rows][order] for name, value in vars(self).items() if value is not None})


Losses = dict[str, Tensor]
"""What a network minimises by name: [B] each, unweighted."""


class AdversarialMethod:
    """The two networks, their optimizers and the generator's EMA, and how one step trains them.

    Args:
        generator: called as generator(x_{t+1}, t, y, z) -> x_0.
        discriminator: called as discriminator(x_t, t, x_{t+1} or None, y) -> Verdict.
        process: T large steps.
        generator_optimizer, discriminator_optimizer: over their parameters.
        learning_rates: of the generator and the discriminator, each a function of the step, counted from 0.
        latent_dim: width of z.
        r1_gamma: weight of the R1 penalty; 0 for none.
        r1_every: steps from one penalty to the next; its weight is not multiplied by them, as in DDGAN's code.
        denoising_weight: of the discriminator's denoising loss, SIDDM's regulariser: the mean squared error of the x_0
            that it predicts from real x_t; 0 for none.
        averages: how a step moves each average of the generator's weights, by name; "ema" is the first. They start at
            the weights after the first step, as in DDGAN's code.
        timestep_scales: the generator and the discriminator see t times these; 1 leaves it an integer.
        group_size: examples that the discriminator compares with each other; a process's rows are a multiple of it.
        grad_clip: largest global norm of each network's gradient, None for no limit.
        autocast: the dtype of the forward passes, None for that of the weights.
        num_classes: of labels, None where the networks take none.
    """

    terms_logged: tuple[str, ...] = ("generator_loss",)
    scalars_logged: tuple[str, ...] = (
        "discriminator_loss_real",
        "discriminator_loss_fake",
        "accuracy_real",
        "accuracy_fake",
        "grad_norm_generator",
        "grad_norm_discriminator",
    )

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        process: GaussianDiffusion,
        generator_optimizer: torch.optim.Optimizer,
        discriminator_optimizer: torch.optim.Optimizer,
        *,
        learning_rates: tuple[Callable[[int], float], Callable[[int], float]],
        latent_dim: int,
        averages: Mapping[str, Move],
        r1_gamma: float = 0.0,
        r1_every: int = 1,
        denoising_weight: float = 0.0,
        timestep_scales: tuple[float, float] = (1.0, 1.0),
        group_size: int = 1,
        grad_clip: float | None = None,
        autocast: torch.dtype | None = None,
        num_classes: int | None = None,
    ):
        self.generator, self.discriminator, self.process = generator, discriminator, process
        self.optimizers = {"generator": generator_optimizer, "discriminator": discriminator_optimizer}
        self._averages = Averages(generator, averages, from_first_step=True)
        self.ema = self._averages.networks["ema"]
        self._learning_rates = dict(zip(self.optimizers, learning_rates, strict=True))
        self._latent_dim, self._r1_gamma, self._r1_every = latent_dim, r1_gamma, r1_every
        self._denoising_weight, self._timestep_scales, self._group_size = denoising_weight, timestep_scales, group_size
        self._grad_clip, self._autocast, self._num_classes = grad_clip, autocast, num_classes
        self._num_processes = 1
        device = next(discriminator.parameters()).device
        # Of the last step that had one, and moving averages of the accuracies on real and generated examples.
        self._r1_penalty, self._accuracy = torch.zeros((), device=device), torch.full((2,), 0.5, device=device)
        self._is_saturated = False
        if r1_gamma:
            self.scalars_logged += ("r1_penalty",)
        if denoising_weight:
            self.scalars_logged += ("denoising_loss",)

    # -- what a method of this kind says

    sees_pair: bool
    """Whether the discriminator sees x_{t+1} beside x_t."""
    renoises: bool = False
    """Whether `Draws.renoise` is used."""

    def further_discriminator_losses(
        self, verdict: Verdict, fake: Tensor, draws: Draws, x_next: Tensor
    ) -> tuple[Losses, Tensor | None]:
        """Return what the discriminator learns from generated x_t besides telling them from real ones.

        Returns:
            losses for the records, and their weighted sum, [B], or None.
        """
        return {}, None

    def generator_losses(
        self, verdict: Verdict, fake: Tensor, draws: Draws, x_t: Tensor, x_next: Tensor
    ) -> tuple[Losses, Tensor]:
        """Return what the generator minimises: losses for the records, and their weighted sum, [B]."""
        losses = {"generator_loss": generator_loss(verdict.logits).flatten()}
        return losses, losses["generator_loss"]

    # -- a step

    def step(self, step: int, batch: Batch, streams: Streams, group: Group) -> StepOutput:
        """Take one step of the discriminator, then one of the generator; each process passes its rows."""
        size, rows = batch.size, batch.rows
        order = self._order(len(batch.x_0), batch.x_0.device)
        halves = [self._draw(name, step, batch, streams) for name in ("discriminator", "generator")]
        examples = Examples(
            batch.x_0[order], None if batch.y is None else batch.y[order], len(order) * self._num_processes / size
        )
        terms, scalars = self.update(step, examples, *(half.rows(rows, order) for half in halves))
        terms = group.gather({name: term[order.argsort()] for name, term in terms.items()}, rows, size)
        means = {name: terms.pop(name).mean() for name in list(terms) if name in self.scalars_logged}
        self._r1_penalty = means.get("r1_penalty", self._r1_penalty)
        accuracy = torch.stack([means["accuracy_real"], means["accuracy_fake"]])
        self._accuracy = torch.lerp(accuracy, self._accuracy, ACCURACY_MEMORY)
        scalars |= means | {"r1_penalty": self._r1_penalty}
        return StepOutput(
            halves[1].t,
            terms.pop("loss"),
            {name: terms[name] for name in self.terms_logged},
            {name: scalars[name] for name in self.scalars_logged},
        )

    def update(
        self, step: int, examples: Examples, first: Draws, second: Draws
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Move the discriminator by one step, then the generator and its EMA.

        Args:
            step: counted from 0.
            examples: both halves see the same.
            first, second: the random numbers of the discriminator's half and of the generator's.

        Returns:
            losses and accuracies of the examples, [B] each and detached, `loss` being what the generator minimised,
            without "r1_penalty" where it was not applied; and scalars: the gradients' norms before clipping.
        """
        self.generator.train()
        self.discriminator.train()
        terms, discriminator_norm = self._update_discriminator(step, examples, first)
        generator_terms, generator_norm = self._update_generator(step, examples, second)
        with named_range("EMA"):
            self._averages.update(step)
        norms = {"grad_norm_discriminator": discriminator_norm, "grad_norm_generator": generator_norm}
        return {name: term.detach() for name, term in (terms | generator_terms).items()}, norms

    def _update_discriminator(self, step: int, examples: Examples, draws: Draws) -> tuple[Losses, Tensor]:
        x_0 = examples.x_0
        x_t, x_next = q_sample_pair(self.process, x_0, draws.t, draws.noise, draws.noise_next)
        penalised = bool(self._r1_gamma) and step % self._r1_every == 0
        x_t = x_t.detach().requires_grad_(penalised)
        real = self._judge(x_t, draws, x_next, examples)
        terms = {"discriminator_loss_real": discriminator_loss_real(real.logits).flatten()}
        if penalised:
            with named_range("backward"):
                terms["r1_penalty"] = r1_penalty(real.logits, x_t, self._r1_gamma)
        total = sum(terms.values())
        if self._denoising_weight:
            assert real.x_0 is not None, "the spec's validation asks for a discriminator with heads"
            terms["denoising_loss"] = (real.x_0 - x_0).square().flatten(1).mean(1)
            total = total + self._denoising_weight * terms["denoising_loss"]
        with torch.no_grad():
            fake = self._generate(x_next, draws, examples)
        verdict = self._judge(fake, draws, x_next, examples)
        terms["discriminator_loss_fake"] = discriminator_loss_fake(verdict.logits).flatten()
        further, weighted = self.further_discriminator_losses(verdict, fake, draws, x_next)
        total = total + terms["discriminator_loss_fake"] + (0 if weighted is None else weighted)
        norm = self._descend("discriminator", step, total.mean() * examples.share)
        accuracies = {
            "accuracy_real": (real.logits.flatten() > 0).float(),
            "accuracy_fake": (verdict.logits.flatten() < 0).float(),
        }
        return terms | further | accuracies, norm

    def _update_generator(self, step: int, examples: Examples, draws: Draws) -> tuple[Losses, Tensor]:
        x_t, x_next = q_sample_pair(self.process, examples.x_0, draws.t, draws.noise, draws.noise_next)
        self.discriminator.requires_grad_(False)
        fake = self._generate(x_next, draws, examples)
        terms, loss = self.generator_losses(self._judge(fake, draws, x_next, examples), fake, draws, x_t, x_next)
        norm = self._descend("generator", step, loss.mean() * examples.share)
        self.discriminator.requires_grad_(True)
        return terms | {"loss": loss}, norm

    def _generate(self, x_next: Tensor, draws: Draws, examples: Examples) -> Tensor:
        """Draw x_t from the posterior of the generator's prediction."""
        x_0 = self._predict(self.generator, x_next, draws.t, examples.y, draws.z)
        return posterior_sample(self.process, x_0, x_next, draws.t, draws.posterior_noise)

    def _predict(self, generator: nn.Module, x_next: Tensor, t: Tensor, y: Tensor | None, z: Tensor) -> Tensor:
        with named_range("forward"), self._precision(x_next):
            return generator(x_next, _scaled(t, self._timestep_scales[0]), y, z).to(x_next.dtype)

    def _judge(self, x_t: Tensor, draws: Draws, x_next: Tensor, examples: Examples) -> Verdict:
        with named_range("forward"), self._precision(x_t):
            t = _scaled(draws.t, self._timestep_scales[1])
            verdict = self.discriminator(x_t, t, x_next if self.sees_pair else None, examples.y)
        heads = (None if head is None else head.to(x_t.dtype) for head in (verdict.x_0, verdict.x_next))
        return Verdict(verdict.logits.to(x_t.dtype), *heads)

    def _precision(self, x: Tensor) -> AbstractContextManager:
        return nullcontext() if self._autocast is None else torch.autocast(x.device.type, self._autocast)

    def _descend(self, name: str, step: int, loss: Tensor) -> Tensor:
        """Take an optimizer's step, and return the norm of the gradient before clipping."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        with named_range("backward"):
            loss.backward()
        with named_range("optimizer"):
            parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
            weights = [weight for weight in parameters if weight.grad is not None]
            gradients = [weight.grad for weight in weights]
            if self._num_processes > 1:
                _average_over_processes(gradients, self._num_processes)
            norm = nn.utils.get_total_norm(gradients)
            if self._grad_clip is not None:
                nn.utils.clip_grads_with_norm_(weights, self._grad_clip, norm)
            for group in optimizer.param_groups:
                group["lr"] = self._learning_rates[name](step)
            optimizer.step()
        return norm

    def _draw(self, half: str, step: int, batch: Batch, streams: Streams) -> Draws:
        """Draw the random numbers of one half for the whole global batch."""
        size, shape = batch.size, (batch.size, *batch.x_0.shape[1:])

        def normal(name: str, shape: tuple[int, ...] = shape) -> Tensor:
            return streams.normal(f"{half}/{name}", step, shape)

        t = (streams.uniform(f"{half}/timestep", step, size) * self.process.num_timesteps).long()
        noises = normal("noise"), normal("noise_next"), normal("z", (size, self._latent_dim)), normal("posterior_noise")
        return Draws(t, *noises, normal("renoise") if self.renoises else None)

    def _order(self, rows: int, device: torch.device) -> Tensor:
        """Return the order in which the discriminator gets a process's rows.

        It compares rows i, i + n, i + 2 n, ... of n groups. In this order these are neighbours in the global batch, so
        that any number of processes compares the same.
        """
        if rows % self._group_size:
            raise TrainingError(
                f"this discriminator compares groups of {self._group_size} examples, but a process has {rows}: "
                f"choose train.batch_size and the number of processes so that each has a multiple of {self._group_size}"
            )
        return torch.arange(rows, device=device).view(-1, self._group_size).T.flatten()

    # -- for the loop, the records and the evaluation

    def distribute(self, num_processes: int) -> None:
        """Train with the other processes of torch's default group from now on, or alone again (1).

        Gradients are averaged after each backward pass. DistributedDataParallel does it by hooks on the backward pass,
        which the R1 penalty's gradient of a gradient and two forward passes for one step are not made for.
        """
        self._num_processes = num_processes

    def sampling_network(self, weights: str = "ema") -> nn.Module:
        """Return the generator with the chosen weights: "ema", "raw" or the name of a further average."""
        return self.generator if weights == "raw" else self._averages.networks[weights]

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
        """Return a `denoise` function that draws a latent from `generator` at each step.

        The mean and the variance are those of the posterior of the predicted x_0, so that ancestral sampling is
        DDGAN's: a latent, then the noise, at each step. The spec allows no guidance.
        """
        network = self.sampling_network(weights).eval()

        def denoise(x_t: Tensor, t: Tensor) -> Denoised:
            z = torch.randn((len(x_t), self._latent_dim), generator=generator, device=x_t.device)
            x_0 = self._predict(network, x_t, process.original_t(t), y, z)
            x_0 = x_0.clamp(-1, 1) if clip else x_0
            posterior = process.q_posterior(x_0, x_t, t)
            return Denoised(x_0, process.predict_eps(x_0, x_t, t), posterior.mean, posterior.log_variance)

        return denoise

    def networks(self) -> dict[str, TrainedNetwork]:
        """Return the generator and the discriminator.

        Passes, with a backward pass as two forward ones: the generator also generates for the discriminator's half. The
        discriminator sees a real and a generated batch, passes a gradient on to the generator, and its R1 penalty is a
        gradient of a gradient.
        """

        def labels(x_0: Tensor) -> Tensor | None:
            return None if self._num_classes is None else x_0.new_empty(len(x_0), dtype=torch.long)

        def generator_inputs(x_0: Tensor) -> tuple[Any, ...]:
            return x_0, x_0.new_empty(len(x_0)), labels(x_0), x_0.new_empty(len(x_0), self._latent_dim)

        def discriminator_inputs(x_0: Tensor) -> tuple[Any, ...]:
            t = x_0.new_empty(len(x_0))
            return x_0, t, x_0 if self.sees_pair else None, labels(x_0)

        penalty = 1 / self._r1_every if self._r1_gamma else 0
        return {
            "generator": TrainedNetwork(self.generator, generator_inputs, passes=4 / 3),
            "discriminator": TrainedNetwork(self.discriminator, discriminator_inputs, passes=8 / 3 + penalty),
        }

    def learning_rates(self) -> dict[str, float]:
        """Return both learning rates: `lr` of the generator, `lr_discriminator`."""
        rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in self.optimizers.items()}
        return {"lr": rates["generator"], "lr_discriminator": rates["discriminator"]}

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Report when the discriminator has told nearly all examples apart for hundreds of steps."""
        real, fake = self._accuracy.tolist()
        was_saturated = self._is_saturated
        self._is_saturated = min(real, fake) > (RECOVERED if was_saturated else SATURATED)
        if was_saturated or not self._is_saturated:
            return []
        return [("collapse", {"sign": "discriminator_saturated", "accuracy_real": real, "accuracy_fake": fake})]

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        return {
            "method": {
                **{name: network.state_dict() for name, network in self._networks()},
                **self._averages.state_dict(),
                **{f"{name}_optimizer": optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            },
            "game": {
                "r1_penalty": self._r1_penalty.clone(),
                "accuracy": self._accuracy.clone(),
                "is_saturated": self._is_saturated,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state of `state_dict`; strict in names and shapes."""
        for name, network in self._networks():
            network.load_state_dict(state["method"][name])
        self._averages.load_state_dict(state["method"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["method"][f"{name}_optimizer"])
        game = state["game"]
        self._r1_penalty, self._accuracy = game["r1_penalty"].clone(), game["accuracy"].clone()
        self._is_saturated = game["is_saturated"]

    def _networks(self) -> Iterable[tuple[str, nn.Module]]:
        return [("generator", self.generator), ("discriminator", self.discriminator)]


def _scaled(t: Tensor, scale: float) -> Tensor:
    return t if scale == 1 else t * scale


def _average_over_processes(gradients: Sequence[Tensor], num_processes: int) -> None:
    """Average gradients over the processes of torch's default group, in place and in one message."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= num_processes
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
