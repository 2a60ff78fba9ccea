"""The negative log-likelihood in bits per dimension: the variational bound, summed in full or estimated.

    L = L_0 + L_1 + ... + L_{T-1} + L_T                                                              (DDPM, eq. 5)

`full_nll` evaluates the network at every t; it is the reference, and at T = 4000 it costs hours. `stratified_nll` draws
a few t for each image and is unbiased for the same number: t is drawn within strata that hold about equal shares of the
bound, in proportion to a pilot's curve of L_t, so that L_t / p(t) hardly varies. Its core knows no network: it works on
a function `terms` and can be replayed on stored values.

Randomness is a function of (seed, index of the image, index of the draw), whatever the batch size, the device or the
model: arms that are compared share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from harness.diffusion.process import GaussianDiffusion

Predict = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""network(x_t, t of the original chain, y) -> output."""

Terms = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""terms(image, t, draw) -> L_t in bits/dim, all [n]: the same image, t and draw give the same value."""

Progress = Callable[[int, int], None]
"""progress(network evaluations done, of how many)."""


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The bound on a set of images, with all that must be said beside the number.

    Attributes:
        total_bpd: mean over the images of the whole bound, L_T included.
        standard_error_bpd: of the Monte Carlo (noise and drawn t), for these very images.
        images_standard_error_bpd: of the choice of images, with the Monte Carlo's share taken out; NaN for one image.
        L_t_bpd: [T] float64, mean over images. "full": every t. "stratified": the mean of the draws that fell on t, the
            pilot's included, and NaN where none did; every t of `curve_timesteps` has a value, which is rough in the
            flat tail. A curve to look at: `total_bpd` is not its sum.
        prior_bpd, decoder_bpd: L_T and L_0, mean over images.
        image_bpd: [N] float64, the bound of each image.
        num_evaluations: of the network, the pilot's among them.
        estimator: "full" or "stratified".
        clip, decoder: how p was read.
        pilot: what steered the strata, to be handed to the other arms of a comparison; None for "full".
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
    progress: Progress | None = None,
) -> Likelihood:
    """Sum the bound over every t, with one draw of noise at each: the reference.

    One draw cannot tell its own error: 16 of the images are evaluated a second time, for the standard error alone.

    Args:
        x_0: [N, C, H, W], in [-1, 1].
        y: [N] classes, or None.
    """
    terms = bound_terms(process, predict, x_0, y, seed=seed, batch_size=batch_size, clip=clip)
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
    progress: Progress | None = None,
) -> Likelihood:
    """Estimate the bound from a few t for each image, unbiased; the full sum where that is no dearer.

    Args:
        x_0: [N, C, H, W], in [-1, 1].
        y: [N] classes, or None.
        evaluations_per_image: at least 4, without the pilot's (about a tenth more; 4 images' worth if that is more).
        pilot: of another arm's likelihood: then both draw the same t and the same noise, and their difference is far
            more certain than either. Its own by default.

    Raises:
        ValueError: fewer than 4 evaluations an image, at more than that many timesteps.
    """
    num_timesteps, num_images = process.num_timesteps, len(x_0)
    if num_timesteps <= evaluations_per_image:
        return full_nll(process, predict, x_0, y, seed=seed, batch_size=batch_size, clip=clip, progress=progress)
    terms = bound_terms(process, predict, x_0, y, seed=seed, batch_size=batch_size, clip=clip)
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
    **said: Any,
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
        **said,
    )


# -- the stratified estimator, on any `terms` --------------------------------------------------------------------------


class Pilot(NamedTuple):
    """Draws that steer the strata and fill the curve's tail, and stay out of the estimate.

    Attributes:
        timesteps: [G], ascending, with t = 0.
        values: [P, G, 2], L_t of P images, two draws each.
    """

    timesteps: np.ndarray
    values: np.ndarray

    @property
    def L_t(self) -> np.ndarray:
        """Mean over images and draws: [G]."""
        return self.values.mean((0, 2))


class Strata(NamedTuple):
    """Where the timesteps are drawn.

    Attributes:
        edges: [K + 1], stratum k is edges[k] .. edges[k + 1] - 1. The first is t = 0 alone.
        draws: [K], for each image, at least 2.
        density: [T], p(t) within its stratum, where it sums to one.
    """

    edges: np.ndarray
    draws: np.ndarray
    density: np.ndarray


class Drawn(NamedTuple):
    """What the draws gave.

    Attributes:
        image_sum: [N], unbiased for L_0 + ... + L_{T-1} of each image.
        image_variance: [N], unbiased for the variance of image_sum.
        L_0: mean over images.
        sum_at, count_at: [T], of the draws that fell on t.
    """

    image_sum: np.ndarray
    image_variance: np.ndarray
    L_0: float
    sum_at: np.ndarray
    count_at: np.ndarray

    @property
    def mean(self) -> float:
        """Estimate the mean over images of L_0 + ... + L_{T-1}."""
        return float(self.image_sum.mean())

    @property
    def standard_error(self) -> float:
        """Of `mean`, for these images."""
        return math.sqrt(self.image_variance.mean() / len(self.image_variance))

    def L_t(self, pilot: Pilot) -> np.ndarray:
        """Return the mean of all draws at each t, the pilot's included: [T], NaN where there are none."""
        total, count = self.sum_at.copy(), self.count_at.copy()
        total[pilot.timesteps] += pilot.values.sum((0, 2))
        count[pilot.timesteps] += pilot.values.shape[0] * pilot.values.shape[2]
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def curve_timesteps(num_timesteps: int, count: int = 300) -> np.ndarray:
    """Choose about `count` values of t for a curve of L_t, no more: every t below 50, then spaced by their log."""
    if num_timesteps <= count:
        return np.arange(num_timesteps)
    tail = np.geomspace(50, num_timesteps - 1, count - 50)
    return np.unique(np.concatenate([np.arange(50), tail.round().astype(int)]))


def run_pilot(terms: Terms, num_images: int, num_timesteps: int, evaluations_per_image: int, *, seed: int) -> Pilot:
    """Evaluate a few images at the curve's timesteps: about a tenth of the estimate's own cost, but four images."""
    timesteps = curve_timesteps(num_timesteps)
    affordable = num_images * evaluations_per_image // (10 * 2 * len(timesteps))
    images = np.random.default_rng([seed, 1]).permutation(num_images)[: max(4, affordable)]
    shape = (len(images), len(timesteps), 2)
    image, t, draw = np.broadcast_arrays(images[:, None, None], timesteps[:, None], np.arange(2))
    # Negative draws: the estimate's noise, whose draws count up from 0, is never met here.
    values = terms(image.ravel(), t.ravel(), (-1 - draw - 2 * t).ravel())
    return Pilot(timesteps, values.reshape(shape))


def make_strata(pilot: Pilot, num_timesteps: int, evaluations_per_image: int) -> Strata:
    """Cut 1 .. T-1 into strata of equal shares of the pilot's L_t, and divide the draws by its standard deviations.

    Two draws to each stratum; t = 0 gets its share by Neyman's rule, n_k proportional to the standard deviation of the
    stratum's contribution. Whatever the pilot saw, the estimate is unbiased: it only varies more under a poor one.

    Raises:
        ValueError: fewer than 4 evaluations, which cannot put two draws into two strata.
    """
    budget = evaluations_per_image
    if budget < 4:
        raise ValueError(f"evaluations_per_image must be at least 4, two in each of two strata; got {budget}")
    mass = _interpolated_curve(pilot, num_timesteps)
    strata = _cut(mass, budget // 2 - 1)
    std = np.sqrt(_variances(pilot, strata))
    at_0 = int(np.clip(round(budget * std[0] / max(std.sum(), 1e-30)), 2, budget - 2))
    strata = _cut(mass, (budget - at_0) // 2)
    variance = _variances(pilot, strata)
    for _ in range(budget - int(strata.draws.sum())):
        strata.draws[np.argmax(variance / (strata.draws * (strata.draws + 1)))] += 1
    return strata


def draw_strata(
    terms: Terms,
    num_images: int,
    strata: Strata,
    *,
    seed: int,
    images_at_once: int = 1000,
    progress: Progress | None = None,
) -> Drawn:
    """Draw every stratum's timesteps for every image and sum up.

        sum_k 1/n_k sum_j L_{t_kj} / p(t_kj),   each t_kj drawn from p within stratum k, independently

    The same strata and seed give the same t, and draw j of an image has number j in `terms`.
    """
    edges, draws, density = strata
    num_draws, starts = int(draws.sum()), np.cumsum(draws) - draws
    stratum = np.repeat(np.arange(len(draws)), draws)  # [m]
    cumulative = np.cumsum(density)  # k at the start of stratum k
    uniform = np.random.default_rng(seed)
    image_sum, image_variance = np.zeros(num_images), np.zeros(num_images)
    sum_at, count_at, L_0 = np.zeros(len(density)), np.zeros(len(density), int), 0.0
    for images in _chunks(num_images, images_at_once):
        position = stratum + uniform.random((len(images), num_draws))
        t = np.searchsorted(cumulative, position, side="right").clip(edges[stratum], edges[stratum + 1] - 1)
        image, draw = np.broadcast_arrays(images[:, None], np.arange(num_draws))
        L = terms(image.ravel(), t.ravel(), draw.ravel()).reshape(t.shape)
        contribution = L / density[t]
        mean = np.add.reduceat(contribution, starts, axis=1) / draws  # [b, K]
        deviation = contribution - mean[:, stratum]
        variance = np.add.reduceat(deviation**2, starts, axis=1) / (draws - 1)
        image_sum[images], image_variance[images] = mean.sum(1), (variance / draws).sum(1)
        L_0 += float(mean[:, 0].sum()) / num_images
        sum_at += np.bincount(t.ravel(), L.ravel(), minlength=len(density))
        count_at += np.bincount(t.ravel(), minlength=len(density))
        if progress is not None:
            progress(int(images[-1] + 1) * num_draws, num_images * num_draws)
    return Drawn(image_sum, image_variance, L_0, sum_at, count_at)


def _interpolated_curve(pilot: Pilot, num_timesteps: int) -> np.ndarray:
    """Give the pilot's L_t at every t, [T], straight lines on logarithmic axes, and above 0 whatever the pilot saw."""
    known = np.nan_to_num(pilot.L_t, nan=0.0, posinf=0.0)
    known = np.maximum(known, max(1e-9 * known.max(), 1e-30))
    return np.exp(np.interp(np.log1p(np.arange(num_timesteps)), np.log1p(pilot.timesteps), np.log(known)))


def _cut(mass: np.ndarray, count: int) -> Strata:
    """Part t = 0, and the rest into at most `count` strata of equal mass; two draws in each."""
    cumulative = np.cumsum(mass[1:])
    inner = 2 + np.searchsorted(cumulative, cumulative[-1] * np.arange(1, count) / count)
    edges = np.unique(np.concatenate([[0, 1], inner.clip(max=len(mass)), [len(mass)]]))
    size = np.diff(edges)
    share = mass / np.repeat(np.add.reduceat(mass, edges[:-1]), size)
    # A tenth of each stratum is drawn evenly: no draw then weighs more than 10 times what it would without a pilot.
    density = 0.9 * share + 0.1 / np.repeat(size, size)
    return Strata(edges, np.full(len(size), 2), density)


def _variances(pilot: Pilot, strata: Strata) -> np.ndarray:
    """Give the variance of one draw's contribution within each stratum, averaged over the pilot's images: [K]."""
    contribution = pilot.values / strata.density[pilot.timesteps][:, None]
    which = np.searchsorted(strata.edges, pilot.timesteps, side="right") - 1
    inside = (contribution[:, which == k].reshape(len(contribution), -1) for k in range(len(strata.draws)))
    with np.errstate(invalid="ignore"):  # a network that overflows
        return np.nan_to_num([x.var(1, ddof=1).mean() if x.shape[1] else 0.0 for x in inside], posinf=0.0)


def _chunks(count: int, size: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]


# -- the terms of a real model -----------------------------------------------------------------------------------------


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
    at_once = max(1, 32 * batch_size // num_timesteps)  # some 32 batches between two fetches from the device
    t, rows = np.arange(num_timesteps), []
    for chunk in _chunks(len(images), at_once):
        image, all_t, draw = np.broadcast_arrays(images[chunk, None], t, first_draw[chunk, None] + t)
        values = evaluate(image.ravel(), all_t.ravel(), draw.ravel())
        rows.append(values.reshape(image.shape + values.shape[1:]))
        if progress is not None:
            progress(int(chunk[-1] + 1) * num_timesteps, len(images) * num_timesteps)
    return np.concatenate(rows)


def counter_noise(seed: int, image: Tensor, draw: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draw standard normal noise that is a function of (seed, image, draw) alone: [B, *shape] float64.

    Generators are streams, whose numbers depend on the order in which they are taken. Here every (seed, image, draw) is
    the key of a SplitMix64 sequence (Steele et al. 2014), made normal by Box and Muller on the device that wants it.

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
    """Code the test images by one Gaussian a pixel, fitted to the training images: bits/dim that a model must beat.

    The mass of each grey level's bin, the outermost reaching to infinity (DDPM, eq. 13); mixed with 1 / (n + 1) of the
    uniform, as if one more image had been seen, of noise. Without it a pixel that never changes in training would cost
    infinitely many bits where it does.

    Args:
        train_images: [n, ...] uint8, in 0 .. levels - 1.
        test_images: like them, any number.

    Raises:
        ValueError: a grey level that is none of `levels`.
    """
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
