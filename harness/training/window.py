"""Means of the steps since the last log line, accumulated on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.methods.base import StepOutput


class Window:
    """Sums over the steps since the last log line, kept on the device; terms also by quartile of t.

    Args:
        num_timesteps: T.
        terms, scalars: names of the terms and scalars that every step returns.
    """

    def __init__(self, num_timesteps: int, terms: Sequence[str], scalars: Sequence[str], device: torch.device):
        self._num_timesteps, self._terms, self._scalars = num_timesteps, tuple(terms), tuple(scalars)
        # Rows: each term, then its count; columns: quartiles of t.
        self.sums = torch.zeros(len(self._terms) + 1, 4, dtype=torch.float64, device=device)
        # Sums of the weighted loss and of each scalar, the number of steps, and 1 + the first bad step.
        self.steps = torch.zeros(len(self._scalars) + 3, dtype=torch.float64, device=device)

    def add(self, step: int, output: StepOutput) -> None:
        """Add the output of a step; does not synchronise with the device."""
        t = output.t
        terms = [output.terms[name].double() for name in self._terms]
        rows = torch.stack([*terms, torch.ones_like(t, dtype=torch.float64)])
        self.sums.index_add_(1, 4 * t // self._num_timesteps, rows)
        values = torch.stack([output.loss.double().mean(), *(output.scalars[name].double() for name in self._scalars)])
        bad = torch.where(values.isfinite().all(), 0.0, step + 1.0)
        first_bad = torch.where(self.steps[-1] > 0, self.steps[-1], bad)
        self.steps = torch.cat([self.steps[:-2] + values, torch.stack([self.steps[-2] + 1, first_bad])])

    def first_bad_step(self) -> int | None:
        """Return the first step (counted from 0) whose loss or gradient is not finite; synchronises with the device."""
        return int(self.steps[-1]) - 1 if self.steps[-1] > 0 else None

    def flush(self) -> dict[str, float]:
        """Return the means since the last flush and reset the sums; synchronises with the device."""
        sums, (loss, *scalars, steps, _) = self.sums.cpu(), self.steps.tolist()
        counts = sums[-1]
        values = {"train/loss": loss / steps}
        values |= {f"train/{name}": value / steps for name, value in zip(self._scalars, scalars, strict=True)}
        for name, row in zip(self._terms, sums, strict=False):
            if name != "loss":
                values[f"train/{name}"] = float(row.sum() / counts.sum())
            for quartile in range(4):
                if counts[quartile]:
                    values[f"train/{name}_q{quartile}"] = float(row[quartile] / counts[quartile])
        self.sums.zero_()
        self.steps.zero_()
        return values
