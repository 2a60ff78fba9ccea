"""Interpolation of real images at levels of noise (DDPM, figures 8 and 9)."""

from __future__ import annotations

import numpy as np
import torch

from harness.data.base import to_uint8
from harness.diffusion.samplers import interpolate
from harness.evaluation.context import EvaluationContext
from harness.evaluation.images import image_grid
from harness.evaluation.result import PartResult
from harness.randomness import Streams
from harness.spec.evaluation import Interpolation


def interpolation(context: EvaluationContext, part: Interpolation) -> PartResult:
    """Mix pairs of images of the protocol's split, and draw them between the two images.

    Arrays: `t` [K], `weights` [W], `images` [K, W, N, C, H, W], `originals` [2, N, C, H, W], `image_index` [2, N].
    """
    assert part.t is not None, "resolved"
    _, rows, x_0, _ = context.choose_images(2 * part.num_pairs)
    num_pairs = len(rows) // 2
    first, second = x_0[:num_pairs], x_0[num_pairs : 2 * num_pairs]
    weights = np.linspace(0, 1, part.num_weights)
    process, streams = context.process(), Streams(context.evaluation.seed, context.device)
    mixed = []
    for number, t in enumerate(part.t):
        generator = streams.generator("interpolation", number)
        denoise = context.denoiser(process, generator)  # a generator's latents are then shared like the noise
        mixed.append(interpolate(denoise, first, second, process, t=t, weights=weights.tolist(), generator=generator))
        context.count("interpolation")(number + 1, len(part.t))
    images, originals = torch.stack(mixed).cpu(), torch.stack([first, second]).cpu()
    arrays = {
        "t": np.array(part.t),
        "weights": weights,
        "image_index": np.stack([rows[:num_pairs], rows[num_pairs : 2 * num_pairs]]),
    }
    if context.data.levels is None:
        return PartResult(arrays={"interpolation": arrays | {"images": images.numpy(), "originals": originals.numpy()}})
    arrays |= {"images": to_uint8(images).numpy(), "originals": to_uint8(originals).numpy()}
    ends = np.broadcast_to(arrays["originals"][:, None], (2, len(part.t), *arrays["originals"].shape[1:]))[:, :, None]
    columns = np.concatenate([ends[0], arrays["images"], ends[1]], axis=1)  # [K, W + 2, N, C, H, W]
    tiles = columns.transpose(2, 0, 1, 3, 4, 5)  # a row for each pair and level
    picture = image_grid(tiles.reshape(-1, *tiles.shape[3:]), columns=part.num_weights + 2)
    return PartResult(arrays={"interpolation": arrays}, pictures={"interpolation": picture})
