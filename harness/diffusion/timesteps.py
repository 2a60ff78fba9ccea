"""How training draws t, and the loss weights 1 / (T p_t) that keep every estimate unbiased."""

from typing import Any, Protocol

import torch
from torch import Tensor

from harness.errors import CheckpointError


class TimestepSampler(Protocol):
    """Interface of timestep samplers; every rank holds one, all in the same state."""

    @property
    def warm(self) -> bool: ...
    def weights(self) -> Tensor: ...
    def from_uniform(self, u: Tensor) -> tuple[Tensor, Tensor]: ...
    def sample(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]: ...
    def update(self, t: Tensor, loss: Tensor) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class UniformSampler:
    """Draw t uniformly (DDPM, algorithm 1).

    Args:
        num_timesteps: T.
        device: where t and its weights are created.
    """

    warm = True

    def __init__(self, num_timesteps: int, *, device: torch.device | str = "cpu") -> None:
        if num_timesteps < 1:
            raise ValueError(f"num_timesteps must be at least 1, got {num_timesteps}")
        self.num_timesteps = num_timesteps
        self.device = torch.device(device)

    def weights(self) -> Tensor:
        """Return the probability of each t up to a common factor: [T], float64."""
        return torch.ones(self.num_timesteps, dtype=torch.float64, device=self.device)

    def from_uniform(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Turn uniform numbers into timesteps by the inverse of the cumulative distribution.

        The caller provides the randomness: numbers made from (seed, step, index of the example) give the same t on any
        number of ranks, and two arms that share them are compared on the same t.

        Args:
            u: [B], in [0, 1), float64.

        Returns:
            t: [B], integers in [0, T).
            loss weights: [B], float32, 1 / (T p_t).
        """
        p = self.weights()
        p = p / p.sum()
        # The clamp catches u above a last sum that rounding left below 1.
        t = torch.searchsorted(p.cumsum(0), u.to(p), right=True).clamp(max=self.num_timesteps - 1)
        return t, (1 / (self.num_timesteps * p[t])).float()

    def sample(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a batch of timesteps and their loss weights, both [B]; see `from_uniform`."""
        return self.from_uniform(
            torch.rand(batch_size, generator=generator, dtype=torch.float64, device=generator.device)
        )

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Ignore the losses of a batch."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise CheckpointError(f"the uniform timestep sampler has no state, the checkpoint has {sorted(state)}")


class LossSecondMomentSampler(UniformSampler):
    """Draw t in proportion to the root of the mean squared loss there, to lower the variance of L_vlb.

        p_t ~ sqrt(E[L_t^2]), over the last history_per_term losses of each t                   (IDDPM, section 3.3)

    Uniform until every t has a full history ("warm"); then mixed with a little of the uniform distribution, so that
    every t is drawn (the reference's code). State is kept and updated on the device, without synchronisation.

    Args:
        num_timesteps: T.
        history_per_term: number of losses kept for each t.
        uniform_prob: share of the uniform distribution, in [0, 1].
        device: of the losses, of t and of its weights.
    """

    def __init__(
        self,
        num_timesteps: int,
        history_per_term: int = 10,
        uniform_prob: float = 0.001,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(num_timesteps, device=device)
        if history_per_term < 1:
            raise ValueError(f"history_per_term must be at least 1, got {history_per_term}")
        if not 0 <= uniform_prob <= 1:
            raise ValueError(f"uniform_prob must lie in [0, 1], got {uniform_prob}")
        self.history_per_term = history_per_term
        self.uniform_prob = uniform_prob
        # One row more than T: what is not kept is written there, so that no shape depends on values.
        self._history = torch.zeros(num_timesteps + 1, history_per_term, dtype=torch.float64, device=self.device)
        self._seen = torch.zeros(num_timesteps + 1, dtype=torch.int64, device=self.device)  # losses ever, for each t

    @property
    def warm(self) -> bool:  # type: ignore[override]
        """Whether every t has a full history. Waits for the device: ask when logging, not at every step."""
        return bool(self._is_warm())

    def _is_warm(self) -> Tensor:
        return (self._seen[:-1] >= self.history_per_term).all()

    def weights(self) -> Tensor:
        """Return the weight of each t: [T], float64; ones until warm, then probabilities."""
        root = self._history[:-1].square().mean(1).sqrt()
        p = root / root.sum()
        p = (1 - self.uniform_prob) * p + self.uniform_prob / self.num_timesteps
        # A history of only zeros says nothing about which t matters.
        return torch.where(self._is_warm() & (root.sum() > 0), p, torch.ones_like(p))

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Record the unweighted losses of a batch, in the given order.

        Every rank passes the whole global batch in the order of the examples' index in it, so that all ranks agree. The
        result is that of one loss after another, also where t repeats. Losses that are not finite are ignored: one NaN
        would leave no distribution to draw from.

        Args:
            t: [B], integers in [0, T).
            loss: [B].
        """
        t = torch.as_tensor(t, device=self.device).long()
        loss = torch.as_tensor(loss, device=self.device).detach().to(torch.float64)
        if t.ndim != 1 or t.shape != loss.shape:
            raise ValueError(f"t and loss must both be [B]; got {list(t.shape)} and {list(loss.shape)}")
        if t.device.type == "cpu" and t.numel() and not 0 <= int(t.min()) <= int(t.max()) < self.num_timesteps:
            raise ValueError(f"t must lie in 0 .. {self.num_timesteps - 1}, got {int(t.min())} .. {int(t.max())}")
        nowhere = self.num_timesteps
        row = torch.where(torch.isfinite(loss), t, nowhere)
        row, order = torch.sort(row, stable=True)
        count = torch.zeros_like(self._seen).scatter_add_(0, row, torch.ones_like(row))  # [T + 1], in this batch
        rank = torch.arange(len(row), device=self.device) - (count.cumsum(0) - count)[row]  # among equal t, by order
        slot = (self._seen[row] + rank) % self.history_per_term  # the oldest makes room
        # Of more than a history's worth of one t only the last ones stay.
        row = torch.where(rank < count[row] - self.history_per_term, nowhere, row)
        self._history[row, slot] = loss[order]
        self._history[nowhere] = 0
        self._seen += count

    def state_dict(self) -> dict[str, Any]:
        """Return the history ([T, history_per_term]) and the number of losses of each t so far ([T])."""
        return {"history": self._history[:-1].clone(), "seen": self._seen[:-1].clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved history.

        Raises:
            CheckpointError: it belongs to another T or history_per_term.
        """
        for name, own in [("history", self._history[:-1]), ("seen", self._seen[:-1])]:
            if name not in state or state[name].shape != own.shape:
                stored_shape = list(state[name].shape) if name in state else "none"
                raise CheckpointError(f"the timestep sampler's {name} must be {list(own.shape)}, found {stored_shape}")
            own.copy_(state[name])


TIMESTEP_SAMPLERS: dict[str, type[UniformSampler]] = {
    "uniform": UniformSampler,
    "loss_second_moment": LossSecondMomentSampler,
}
