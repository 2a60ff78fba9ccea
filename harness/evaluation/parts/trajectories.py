"""Reverse trajectories: x_t from noise to data, and what was predicted of x_0 at every step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from harness.data.base import to_uint8
from harness.diffusion.process import Denoised
from harness.evaluation.context import EvaluationContext
from harness.evaluation.images import image_grid
from harness.evaluation.result import PartResult
from harness.spec.evaluation import Trajectories
from harness.spec.metrics import trajectory_frames


def trajectories(context: EvaluationContext, part: Trajectories) -> PartResult:
    """Draw samples and keep their states at some of the steps, the first and the last among them, and a picture.

    Arrays: `steps_left` [F], `x_t` and `x_0` [F, N, C, H, W], the last as predicted from x_t; uint8 if they are images.
    """
    assert part.num_steps is not None, "resolved"
    num_steps = part.num_steps
    made = trajectory_frames(num_steps, part.num_frames)  # steps that were made before a frame
    frames: dict[int, list[Tensor]] = {step: [] for step in made}
    predicted: dict[int, list[Tensor]] = {step: [] for step in made}

    def on_step(t: int, x: Tensor, denoised: Denoised) -> None:
        before = num_steps - 1 - t
        if before in predicted:
            predicted[before].append(denoised.x_0.cpu())
        if before + 1 in frames:
            frames[before + 1].append(x.cpu())

    samples = context.sample(part.sampler, num_steps, part.num_samples, on_step=on_step, on_noise=frames[0].append)
    predicted[num_steps] = [samples]
    x_t, x_0 = (torch.stack([torch.cat(kept[step]) for step in made]) for kept in (frames, predicted))
    arrays = {"steps_left": num_steps - np.array(made)}
    if context.data.levels is None:
        return PartResult(arrays={"trajectories": arrays | {"x_t": x_t.numpy(), "x_0": x_0.numpy()}})
    images = {"x_t": to_uint8(x_t).numpy(), "x_0": to_uint8(x_0).numpy()}
    rows = np.stack([images["x_t"], images["x_0"]]).transpose(2, 0, 1, 3, 4, 5)  # [N, 2, F, C, H, W]
    picture = image_grid(rows.reshape(-1, *rows.shape[3:]), columns=len(made))
    return PartResult(arrays={"trajectories": arrays | images}, pictures={"trajectories": picture})
