"""What the steps since the last log line gave, summed on the device."""

from __future__ import annotations

import torch
from torch import Tensor


class Window:
    """Sums of what the steps since the last log line gave, kept on the device; terms also by quartile of t."""

    TERMS = ("loss", "mse", "vb")

    def __init__(self, num_timesteps: int, device: torch.device):
        self._num_timesteps = num_timesteps
        # Rows: each term, then its count; columns: quartiles of t.
        self.sums = torch.zeros(len(self.TERMS) + 1, 4, dtype=torch.float64, device=device)
        # Sums of the weighted loss and of the gradient's norm, the number of steps, and 1 + the first bad step.
        self.steps = torch.zeros(4, dtype=torch.float64, device=device)

    def add(self, step: int, t: Tensor, weight: Tensor, terms: dict[str, Tensor]) -> None:
        rows = torch.stack([*(terms[name].double() for name in self.TERMS), torch.ones_like(t, dtype=torch.float64)])
        self.sums.index_add_(1, 4 * t // self._num_timesteps, rows)
        loss, norm = (terms["loss"] * weight).double().mean(), terms["grad_norm"].double()
        bad = torch.where((loss + norm).isfinite(), 0.0, step + 1.0)
        first_bad = torch.where(self.steps[3] > 0, self.steps[3], bad)
        self.steps = torch.stack([self.steps[0] + loss, self.steps[1] + norm, self.steps[2] + 1, first_bad])

    def first_bad_step(self) -> int | None:
        """Return the first step (counted from 0) whose loss or gradient is not a number; waits for the device."""
        return int(self.steps[3]) - 1 if self.steps[3] > 0 else None

    def flush(self) -> dict[str, float]:
        """Return the means since the last flush and begin anew; waits for the device."""
        sums, (loss, norm, steps, _) = self.sums.cpu(), self.steps.tolist()
        counts = sums[-1]
        values = {"train/loss": loss / steps, "train/grad_norm_preclip": norm / steps}
        for name, row in zip(self.TERMS, sums, strict=False):
            if name != "loss":
                values[f"train/{name}"] = float(row.sum() / counts.sum())
            for quartile in range(4):
                if counts[quartile]:
                    values[f"train/{name}_q{quartile}"] = float(row[quartile] / counts[quartile])
        self.sums.zero_()
        self.steps.zero_()
        return values
