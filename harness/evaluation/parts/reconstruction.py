"""Reconstruction of real images by DDIM's deterministic path (DDIM, table 2)."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from harness.diffusion.process import GaussianDiffusion
from harness.diffusion.respacing import space_timesteps
from harness.diffusion.samplers import ddim, encode
from harness.evaluation.context import EvaluationContext
from harness.evaluation.result import PartResult
from harness.randomness import Streams
from harness.spec.evaluation import Ddim, Reconstruction, section_counts


def reconstruction(context: EvaluationContext, part: Reconstruction) -> PartResult:
    """Measure the mean squared error per dimension, on data scaled to [0, 1], for each number of steps.

    Arrays: `num_steps` [K], `mse` [K, N], `image_index` [N].
    """
    split, rows, *_ = context.choose_images(part.num_images)
    batch_size, errors = context.evaluation.batch_size, np.zeros((len(part.num_steps), len(rows)))

    def measure(process: GaussianDiffusion, start: int, chosen: np.ndarray) -> np.ndarray:
        x_0, y = context.load_images(split, chosen)
        generator = Streams(context.evaluation.seed, context.device).generator("reconstruction", start)
        denoise = context.denoiser(process, generator, y, clip=False)  # clipping has no inverse
        decoded = ddim(denoise, encode(denoise, x_0, process), process, generator=generator)
        return ((decoded - x_0) / 2).square().flatten(1).mean(1).cpu().numpy()  # the data's range of 2 is 1 there

    values = context.kept_values("reconstruction")
    report = context.count("reconstructing")
    for number, num_steps in enumerate(part.num_steps):
        kept = space_timesteps(context.spec.diffusion.num_timesteps, section_counts(Ddim(), num_steps))
        process = context.process().respaced(kept)
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            batch = number * math.ceil(len(rows) / batch_size) + start // batch_size
            errors[number, start : start + len(chosen)] = values.batch(batch, partial(measure, process, start, chosen))
            report(number * len(rows) + start + len(chosen), len(part.num_steps) * len(rows))
    curve = [(num_steps, float(mean)) for num_steps, mean in zip(part.num_steps, errors.mean(1), strict=True)]
    arrays = {"num_steps": np.array(part.num_steps), "mse": errors, "image_index": rows}
    return PartResult(curves={"reconstruction_mse_by_steps": curve}, arrays={"reconstruction": arrays})
