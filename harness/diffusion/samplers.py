"""Samplers: from noise to data, one step or a whole chain at a time.

A chain sees a model through one function, `denoise(x_t, t) -> Denoised(x_0, eps, mean, log_variance)`, where t is an
index into the (possibly respaced) process that the chain is given. Any model that returns these four can be sampled,
a diffusion model as well as a denoising GAN; `denoiser` makes one from a network. Networks below are
`network(x_t, t) -> model_output` with t of the original chain, as in training.

    SAMPLERS[name](denoise, x_T, process, *, generator, start=None, on_step=None, **kw) -> x_0
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from harness.diffusion.process import Denoised, GaussianDiffusion

Denoise = Callable[[Tensor, Tensor], Denoised]
Network = Callable[[Tensor, Tensor], Tensor]
Step = Callable[[Denoised, Tensor, Tensor, int], Tensor]  # what was predicted, x_t, t as [B] and as a number -> x_{t-1}
OnStep = Callable[[int, Tensor, Denoised], None]  # t, x_{t-1} and what was predicted at t; for progress and pictures


def denoiser(process: GaussianDiffusion, network: Network, *, clip: bool = True) -> Denoise:
    """Make a `denoise` function of a network: map t to the original chain, interpret the output on this one."""

    def denoise(x_t: Tensor, t: Tensor) -> Denoised:
        return process.denoised(network(x_t, process.original_t(t)), x_t, t, clip)

    return denoise


# -- one step ----------------------------------------------------------------------------------------------------------


def ancestral_step(
    process: GaussianDiffusion, model_output: Tensor, x_t: Tensor, t: Tensor, noise: Tensor, clip: bool = True
) -> Tensor:
    """Draw x_{t-1} from p(x_{t-1} | x_t).

        x_{t-1} = mean + exp(log_variance / 2) noise, and no noise at t = 0                       (DDPM, algorithm 2)

    Args:
        model_output: [B, C, ...], or [B, 2C, ...] with a learned variance.
        x_t, noise: [B, C, ...].
        t: [B].
        clip: clamp the predicted x_0 to [-1, 1].
    """
    mean, log_variance, _ = process.p_mean_variance(model_output, x_t, t, clip)
    return _ancestral(mean, log_variance, t, noise)


def ddim_step(
    process: GaussianDiffusion,
    model_output: Tensor,
    x_t: Tensor,
    t: Tensor,
    noise: Tensor,
    eta: float = 0.0,
    clip: bool = True,
) -> Tensor:
    """Take x_t to x_{t-1}, without noise at eta = 0, with the variance beta-tilde at eta = 1.

    x_{t-1} = sqrt(abar_{t-1}) x_0 + sqrt(1 - abar_{t-1} - sigma^2) eps + sigma noise            (DDIM, eq. 12)
    sigma = eta sqrt((1 - abar_{t-1}) / (1 - abar_t)) sqrt(1 - abar_t / abar_{t-1})              (DDIM, eq. 16)
    """
    return _ddim(process, process.denoised(model_output, x_t, t, clip), x_t, t, noise, eta)


def ddim_reverse_step(
    process: GaussianDiffusion, model_output: Tensor, x_t: Tensor, t: Tensor, clip: bool = True
) -> Tensor:
    """Take x_t to x_{t+1} along DDIM's deterministic path, the inverse of `ddim_step` in the limit of small steps.

        x_{t+1} = sqrt(abar_{t+1}) x_0 + sqrt(1 - abar_{t+1}) eps                                 (DDIM, section 4.3)

    After the last t, abar is taken as 0 and x_{t+1} is eps.
    """
    return _ddim_reverse(process, process.denoised(model_output, x_t, t, clip), x_t, t)


def _ancestral(mean: Tensor, log_variance: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    noisy = (t != 0).view(-1, *[1] * (noise.ndim - 1))
    return mean + noisy * torch.exp(0.5 * log_variance) * noise


def _ddim(process: GaussianDiffusion, denoised: Denoised, x_t: Tensor, t: Tensor, noise: Tensor, eta: float) -> Tensor:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    abar, abar_prev = process.extract("alphas_cumprod", t, x_t), process.extract("alphas_cumprod_prev", t, x_t)
    sigma = eta * torch.sqrt((1 - abar_prev) / (1 - abar)) * torch.sqrt(1 - abar / abar_prev)  # 0 at t = 0
    of_eps = torch.sqrt((1 - abar_prev - sigma**2).clamp(min=0))  # float32 can round an almost empty share below 0
    return torch.sqrt(abar_prev) * denoised.x_0 + of_eps * denoised.eps + sigma * noise


def _ddim_reverse(process: GaussianDiffusion, denoised: Denoised, x_t: Tensor, t: Tensor) -> Tensor:
    abar_next = process.extract("alphas_cumprod_next", t, x_t)
    return torch.sqrt(abar_next) * denoised.x_0 + torch.sqrt(1 - abar_next) * denoised.eps


# -- whole chains ------------------------------------------------------------------------------------------------------


def ancestral(
    denoise: Denoise,
    x_T: Tensor,
    process: GaussianDiffusion,
    *,
    generator: torch.Generator,
    start: int | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample by the reverse chain (DDPM, algorithm 2).

    Args:
        denoise: the model; see `denoiser`.
        x_T: [B, C, ...], standard normal, or x at `start`.
        process: the chain to follow; its respacing decides the number of steps.
        generator: for the noise. Its device decides where the noise is drawn.
        start: the first t to denoise; the chain's last by default.
        on_step: called after every step with t, x_{t-1} and the prediction at t.

    Returns:
        x_0: like x_T, not clamped.
    """

    def step(denoised: Denoised, x_t: Tensor, t: Tensor, i: int) -> Tensor:
        return _ancestral(denoised.mean, denoised.log_variance, t, _noise_like(x_t, generator))

    return _walk(denoise, x_T, process, step, start, on_step)


def ddim(
    denoise: Denoise,
    x_T: Tensor,
    process: GaussianDiffusion,
    *,
    generator: torch.Generator,
    start: int | None = None,
    on_step: OnStep | None = None,
    eta: float = 0.0,
) -> Tensor:
    """Sample by DDIM's chain (DDIM, eq. 12); arguments as for `ancestral`. At eta = 0 the generator is not used."""

    def step(denoised: Denoised, x_t: Tensor, t: Tensor, i: int) -> Tensor:
        noise = _noise_like(x_t, generator) if eta else torch.zeros_like(x_t)
        return _ddim(process, denoised, x_t, t, noise, eta)

    return _walk(denoise, x_T, process, step, start, on_step)


def dpmpp_2m(
    denoise: Denoise,
    x_T: Tensor,
    process: GaussianDiffusion,
    *,
    generator: torch.Generator,
    start: int | None = None,
    on_step: OnStep | None = None,
    lower_order_final: bool = False,
) -> Tensor:
    """Solve the probability flow by DPM-Solver++(2M), of second order with one evaluation per step.

        lambda = log(SNR) / 2,  h_t = lambda_{t-1} - lambda_t,  r = h_{t+1} / h_t
        D = x_0(t) + (x_0(t) - x_0(t+1)) / (2r)
        x_{t-1} = sigma_{t-1} / sigma_t x_t + alpha_{t-1} (1 - e^{-h_t}) D                (Lu et al. 2022b, algorithm 2)

    The first step has no earlier x_0, and the last goes to sigma = 0, where h is infinite: both are of first order.
    Arguments as for `ancestral`; the generator is not used.

    Args:
        lower_order_final: use first order for the step to t = 0 too. At an even stride its h is several times the one
            before, and extrapolating that far costs more than it gains below about 100 steps: Gaussian data of std 0.5
            have std 0.66 after 20 linear steps, with this 0.48. The error then no longer decreases smoothly.
    """
    # The whole batch is at the same t, so the coefficients are float64 numbers on the host, not tensors.
    log_snr_half = 0.5 * np.log(process.snr)
    h = np.append(np.inf, log_snr_half[:-1] - log_snr_half[1:])  # h[t] leads from t to t - 1
    sigma = process.sqrt_one_minus_alphas_cumprod
    sigma_ratio = np.append(0.0, sigma[:-1]) / sigma
    x_0_weight = -np.sqrt(process.alphas_cumprod_prev) * np.expm1(-h)
    earlier: list[Tensor] = []  # x_0 predicted one step before

    def step(denoised: Denoised, x_t: Tensor, t: Tensor, i: int) -> Tensor:
        x_0 = denoised.x_0
        if earlier and i > lower_order_final:
            x_0 = x_0 + h[i] / (2 * h[i + 1]) * (x_0 - earlier[0])
        earlier[:] = [denoised.x_0]
        return sigma_ratio[i] * x_t + x_0_weight[i] * x_0

    return _walk(denoise, x_T, process, step, start, on_step)


@torch.no_grad()
def _walk(
    denoise: Denoise,
    x: Tensor,
    process: GaussianDiffusion,
    step: Step,
    start: int | None,
    on_step: OnStep | None,
) -> Tensor:
    """Denoise from `start` down to t = 0."""
    start = process.num_timesteps - 1 if start is None else start
    if not 0 <= start < process.num_timesteps:
        raise ValueError(f"start must lie in 0 .. {process.num_timesteps - 1}, got {start}")
    for i in range(start, -1, -1):
        t = torch.full(x.shape[:1], i, device=x.device)
        denoised = denoise(x, t)
        x = step(denoised, x, t, i)
        if on_step is not None:
            on_step(i, x, denoised)
    return x


def _noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    # Drawn where the generator lives: a generator on the CPU gives the same noise to any device.
    return torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)


# -- other uses of a chain ---------------------------------------------------------------------------------------------


def skip_fraction(process: GaussianDiffusion, fraction: float) -> int:
    """Return the `start` of a chain whose first `fraction` is skipped, x_T being used as x at `start` (IDDPM, fig. 4).

    Args:
        fraction: in [0, 1), of the chain's steps; at least one step stays.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"the skipped fraction must lie in [0, 1), got {fraction}")
    return max(1, round((1 - fraction) * process.num_timesteps)) - 1


@torch.no_grad()
def encode(denoise: Denoise, x_0: Tensor, process: GaussianDiffusion, *, on_step: OnStep | None = None) -> Tensor:
    """Follow DDIM's path in reverse, from data to the latent at T-1 that `ddim` decodes (DDIM, section 4.3).

    Data enter as x at t = 0, as in the reference: one step of noise is missing from them.
    """
    x = x_0
    for i in range(process.num_timesteps - 1):
        t = torch.full(x.shape[:1], i, device=x.device)
        denoised = denoise(x, t)
        x = _ddim_reverse(process, denoised, x, t)
        if on_step is not None:
            on_step(i, x, denoised)
    return x


def interpolate(
    denoise: Denoise,
    x_0: Tensor,
    other_x_0: Tensor,
    process: GaussianDiffusion,
    *,
    t: int,
    weights: Sequence[float],
    generator: torch.Generator,
    sampler: str = "ancestral",
) -> Tensor:
    """Interpolate two images at noise level t, and denoise the mixture.

        x_t' = (1 - w) q_sample(x_0) + w q_sample(other_x_0), both with the same noise             (DDPM, section 4.4)

    Args:
        x_0, other_x_0: [B, C, ...].
        t: how far to diffuse; larger values vary more.
        weights: of other_x_0; 0 gives back a variant of x_0, 1 of other_x_0.

    Returns:
        [len(weights), B, C, ...]; every mixture shares its noise, forwards and backwards.
    """
    noise = _noise_like(x_0, generator)
    steps = torch.full(x_0.shape[:1], t, device=x_0.device)
    x_t, other_x_t = process.q_sample(x_0, steps, noise), process.q_sample(other_x_0, steps, noise)
    state = generator.get_state()
    mixtures = []
    for weight in weights:
        generator.set_state(state)
        mixed = (1 - weight) * x_t + weight * other_x_t
        mixtures.append(SAMPLERS[sampler](denoise, mixed, process, generator=generator, start=t))
    return torch.stack(mixtures)


def guided(conditional: Network, unconditional: Network, scale: float) -> Network:
    """Guide a class-conditional network without a classifier: two evaluations a step.

        eps = eps(no class) + scale (eps(class) - eps(no class))        (Ho and Salimans 2022, eq. 6, scale = 1 + w)

    Only the mean's channels are guided; a learned variance stays that of the conditional network. x_0, v and mu-tilde
    are affine in eps at a given x_t, so guiding them is guiding eps.

    Args:
        scale: 1 is the conditional network alone, 0 the unconditional one, more than 1 sharpens.
    """

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        channels = x_t.shape[1]
        given, free = conditional(x_t, t), unconditional(x_t, t)
        mean = free[:, :channels] + scale * (given[:, :channels] - free[:, :channels])
        return torch.cat([mean, given[:, channels:]], dim=1)

    return network


def ensemble(ends: Network, middle: Network, *, low: int, high: int) -> Network:
    """Use one network near both ends of the chain and another in between: IDDPM's L_vlb and L_hybrid (appendix).

    Args:
        ends: for t < low and t >= high, t of the original chain; the appendix has low = 100, high = T - 100.
        middle: for low <= t < high.
    """

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        at_end = (t < low) | (t >= high)
        # Reading the mask synchronises the device once per call, but saves half the evaluations: a chain has one t.
        if bool(at_end.all()):
            return ends(x_t, t)
        if not bool(at_end.any()):
            return middle(x_t, t)
        return torch.where(at_end.view(-1, *[1] * (x_t.ndim - 1)), ends(x_t, t), middle(x_t, t))

    return network


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
}
