"""The negative log-likelihood in bits per dimension: the variational bound, summed in full or estimated.

    L = L_0 + L_1 + ... + L_{T-1} + L_T                                                              (DDPM, eq. 5)

`full_nll` evaluates the network at every t; it is the reference, and at T = 4000 it costs hours. `stratified_nll` draws
a few t for each image and is unbiased for the same number (`harness/metrics/stratified.py`).

Randomness is a function of (seed, index of the image, index of the draw), independent of batch size, device and model,
so that compared arms share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.diffusion.process import GaussianDiffusion
from harness.metrics.stratified import Pilot, Progress, Terms, chunks, draw_strata, make_strata, run_pilot

Predict = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""network(x_t, t of the original chain, y) -> output."""

Keep = Callable[[Terms], Terms]


def as_it_is(terms: Terms) -> Terms:
    """Keep nothing of what a function returns."""
    return terms


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The bound on a set of images, with everything that must be reported beside the number.

    Attributes:
        total_bpd: mean over the images of the whole bound, L_T included.
        standard_error_bpd: of the Monte Carlo (noise and drawn t), for these images.
        images_standard_error_bpd: of the choice of images, with the Monte Carlo's share taken out; NaN for one image.
        L_t_bpd: [T] float64, mean over images. "full": every t. "stratified": the mean of the draws that fell on t, the
            pilot's included, and NaN where none did; every t of `curve_timesteps` has a value, a rough one in the flat
            tail. For plotting only: `total_bpd` is not its sum.
        prior_bpd, decoder_bpd: L_T and L_0, mean over images.
        image_bpd: [N] float64, the bound of each image.
        num_evaluations: of the network, the pilot's among them.
        estimator: "full" or "stratified".
        clip, decoder: how the network's output was interpreted.
        pilot: what determined the strata, to be passed on to the other arms of a comparison; None for "full".
    """

    total_bpd: float
    standard_error_bpd: float
    images_standard_error_bpd: float
    L_t_bpd: np.ndarray = field(repr=False)
    prior_bpd: float
    decoder_bpd: float
    image_bpd: np.ndarray = field(repr=False)
    num_images: int
    num_evaluations: int
    estimator: str
    clip: bool
    decoder: str
    pilot: Pilot | None = field(repr=False)


def full_nll(
    process: GaussianDiffusion,
    predict: Predict,
    x_0: Tensor,
    y: Tensor | None = None,
    *,
    seed: int,
    batch_size: int,
    clip: bool = True,
    keep: Keep = as_it_is,
    progress: Progress | None = None,
) -> Likelihood:
    """Sum the bound over every t, with one draw of noise at each: the reference.

    One draw cannot estimate its own error: 16 of the images are evaluated twice, only for the standard error.

    Args:
        x_0: [N, C, H, W], in [-1, 1].
        y: [N] classes, or None.
        keep: makes a function that keeps the terms of the bound, so that they survive a kill.
    """
    terms = keep(bound_terms(process, predict, x_0, y, seed=seed, batch_size=batch_size, clip=clip))
    num_images, num_timesteps = len(x_0), process.num_timesteps
    again = np.random.default_rng([seed, 2]).permutation(num_images)[:16]
    images = np.append(np.arange(num_images), again)
    first_draw = np.where(np.arange(len(images)) < num_images, 0, num_timesteps)
    values = evaluate_every_t(terms, images, num_timesteps, first_draw, batch_size=batch_size, progress=progress)
    once, repeated = values[:num_images], values[num_images:]  # [N, T], [16, T]
    return _likelihood(
        process,
        x_0,
        image_sum=once.sum(1),
        image_variance=((once[again] - repeated) ** 2).sum(1) / 2,
        L_t_bpd=once.mean(0),
        decoder_bpd=float(once[:, 0].mean()),
        num_evaluations=values.size,
        estimator="full",
        clip=clip,
        pilot=None,
    )


def stratified_nll(
    process: GaussianDiffusion,
    predict: Predict,
    x_0: Tensor,
    y: Tensor | None = None,
    *,
    seed: int,
    batch_size: int,
    evaluations_per_image: int = 40,
    clip: bool = True,
    pilot: Pilot | None = None,
    keep: Keep = as_it_is,
    progress: Progress | None = None,
) -> Likelihood:
    """Estimate the bound from a few t for each image, unbiased; the full sum if that costs no more.

    Args:
        x_0: [N, C, H, W], in [-1, 1].
        y: [N] classes, or None.
        evaluations_per_image: at least 4, without the pilot's (about a tenth more; 4 images' worth if that is more).
        pilot: of another arm's likelihood: then both draw the same t and the same noise, so their difference has a far
            smaller error than either. Default: a new pilot.
        keep: as in `full_nll`.

    Raises:
        ValueError: fewer than 4 evaluations per image, at more than that many timesteps.
    """
    num_timesteps, num_images = process.num_timesteps, len(x_0)
    if num_timesteps <= evaluations_per_image:
        options: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "clip": clip}
        return full_nll(process, predict, x_0, y, keep=keep, progress=progress, **options)
    terms = keep(bound_terms(process, predict, x_0, y, seed=seed, batch_size=batch_size, clip=clip))
    spent = 0
    if pilot is None:
        pilot = run_pilot(terms, num_images, num_timesteps, evaluations_per_image, seed=seed)
        spent = pilot.values.size
    strata = make_strata(pilot, num_timesteps, evaluations_per_image)
    drawn = draw_strata(terms, num_images, strata, seed=seed, images_at_once=batch_size, progress=progress)
    return _likelihood(
        process,
        x_0,
        image_sum=drawn.image_sum,
        image_variance=drawn.image_variance,
        L_t_bpd=drawn.L_t(pilot),
        decoder_bpd=drawn.L_0,
        num_evaluations=spent + num_images * evaluations_per_image,
        estimator="stratified",
        clip=clip,
        pilot=pilot,
    )


def _likelihood(
    process: GaussianDiffusion,
    x_0: Tensor,
    *,
    image_sum: np.ndarray,
    image_variance: np.ndarray,
    **attributes: Any,
) -> Likelihood:
    """Add the prior and average. image_variance, the Monte Carlo's, is that of every image or of some of them."""
    prior = process.prior_bpd(x_0.to(process.device)).double().cpu().numpy()
    image_bpd, monte_carlo = image_sum + prior, image_variance.mean()
    between = image_bpd.var(ddof=1) - monte_carlo if len(image_bpd) > 1 else math.nan
    return Likelihood(
        total_bpd=float(image_bpd.mean()),
        standard_error_bpd=math.sqrt(monte_carlo / len(image_bpd)),
        images_standard_error_bpd=math.sqrt(np.maximum(between, 0.0) / len(image_bpd)),
        prior_bpd=float(prior.mean()),
        image_bpd=image_bpd,
        num_images=len(image_bpd),
        decoder=process.decoder,
        **attributes,
    )


# -- the terms of a model ----------------------------------------------------------------------------------------------


def bound_terms(
    process: GaussianDiffusion,
    predict: Predict,
    x_0: Tensor,
    y: Tensor | None = None,
    *,
    seed: int,
    batch_size: int,
    clip: bool = True,
) -> Terms:
    """Make the function `terms` of a model: L_t of an image under noise that belongs to (seed, image, draw)."""
    return evaluate_draws(
        process, predict, x_0, y, seed=seed, batch_size=batch_size,
        measure=lambda output, x_0, x_t, t: process.vb_terms_bpd(output, x_0, x_t, t, clip=clip),
    )  # fmt: skip


def evaluate_draws(
    process: GaussianDiffusion,
    predict: Predict,
    x_0: Tensor,
    y: Tensor | None,
    *,
    seed: int,
    batch_size: int,
    measure: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
    """Make a function (image, t, draw), all [n], of measure(model_output, x_0, x_t, t), [B, ...] -> [n, ...] float64.

    Results are collected on the device and fetched once a call.
    """
    device = process.device
    x_0, y = x_0.to(device), None if y is None else y.to(device)

    @torch.inference_mode()
    def evaluate(image: np.ndarray, t: np.ndarray, draw: np.ndarray) -> np.ndarray:
        keys = (torch.from_numpy(np.array(key)).to(device).split(batch_size) for key in (image, t, draw))
        results = []
        for i, step, j in zip(*keys, strict=True):
            clean = x_0[i]
            noise = counter_noise(seed, i, j, clean.shape[1:]).to(clean.dtype)
            x_t = process.q_sample(clean, step, noise)
            output = predict(x_t, process.original_t(step), None if y is None else y[i])
            results.append(measure(output, clean, x_t, step))
        return torch.cat(results).double().cpu().numpy()

    return evaluate


def evaluate_every_t(
    evaluate: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    images: np.ndarray,
    num_timesteps: int,
    first_draw: np.ndarray,
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> np.ndarray:
    """Call evaluate(image, t, draw) for images, [M], at every t, with draw = first_draw[M] + t: [M, T, ...]."""
    at_once = max(1, 32 * batch_size // num_timesteps)  # about 32 batches between two transfers from the device
    t, rows = np.arange(num_timesteps), []
    for chunk in chunks(len(images), at_once):
        image, all_t, draw = np.broadcast_arrays(images[chunk, None], t, first_draw[chunk, None] + t)
        values = evaluate(image.ravel(), all_t.ravel(), draw.ravel())
        rows.append(values.reshape(image.shape + values.shape[1:]))
        if progress is not None:
            progress(int(chunk[-1] + 1) * num_timesteps, len(images) * num_timesteps)
    return np.concatenate(rows)


def counter_noise(seed: int, image: Tensor, draw: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draw standard normal noise that is a function of (seed, image, draw) alone: [B, *shape] float64.

    Generators are streams, whose numbers depend on the order in which they are taken. Here every (seed, image, draw) is
    the key of a SplitMix64 sequence (Steele et al. 2014), made normal by Box and Muller on the target device.

    Args:
        image, draw: [B] int64.
    """
    count = math.prod(shape)
    pairs = -(-count // 2)
    key = _splitmix64(torch.full_like(image, _signed(seed)))
    key = _splitmix64(_splitmix64(key + image) + draw)  # [B]
    steps = torch.arange(1, 2 * pairs + 1, device=image.device)
    bits = _splitmix64(key[:, None] + _GOLDEN_GAMMA * steps)  # [B, 2 pairs]
    uniform = (((bits >> 11) & (2**53 - 1)) + 0.5) * 2.0**-53  # in (0, 1)
    radius = torch.sqrt(-2 * torch.log(uniform[:, :pairs]))
    angle = 2 * math.pi * uniform[:, pairs:]
    normal = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], 1)
    return normal[:, :count].reshape(-1, *shape)


def _signed(bits: int) -> int:
    """Read 64 bits as torch's int64, which wraps around as the unsigned does."""
    return (bits + 2**63) % 2**64 - 2**63


_GOLDEN_GAMMA = _signed(0x9E3779B97F4A7C15)


def _splitmix64(z: Tensor) -> Tensor:
    """Scramble 64 bits (the output function of SplitMix64). The masks make torch's arithmetic shift a logical one."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _signed(0x94D049BB133111EB)
    return z ^ ((z >> 31) & (2**33 - 1))


# -- the baseline ------------------------------------------------------------------------------------------------------


def gaussian_baseline_bpd(train_images: np.ndarray, test_images: np.ndarray, levels: int) -> float:
    """Code the test images by one Gaussian per pixel, fitted to the training images: a baseline in bits/dim.

    The mass of each grey level's bin, the outermost reaching to infinity (DDPM, eq. 13); mixed with 1 / (n + 1) of the
    uniform, as if one more image, of noise, had been seen. Without it a pixel that is constant in the training images
    would cost infinitely many bits where it differs.

    Args:
        train_images: [n, ...] uint8, in 0 .. levels - 1.
        test_images: like them, any number.

    Raises:
        ValueError: a grey level that is none of `levels`.
    """
    from scipy.special import ndtr  # a tenth of what a job imports beside torch

    if max(train_images.max(), test_images.max()) >= levels:
        raise ValueError(f"images must lie in 0 .. {levels - 1}")
    count = len(train_images)
    train, test = (np.asarray(images).reshape(len(images), -1) for images in (train_images, test_images))
    mean = train.mean(0, dtype=np.float64)
    square = np.square(train, dtype=np.uint16).mean(0, dtype=np.float64)
    std = np.sqrt(np.maximum(square - mean**2, 1e-12))
    upper = ndtr((np.arange(levels - 1)[:, None] + 0.5 - mean) / std)  # [levels - 1, D]
    mass = np.diff(upper, axis=0, prepend=0.0, append=1.0)
    bits = -np.log2((count * mass + 1 / levels) / (count + 1))
    return float(bits[test, np.arange(test.shape[1])].mean())
