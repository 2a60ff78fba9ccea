"""Noise schedules, and the tables over t derived from them. NumPy only: figures and plans never load torch.

All tables are float64. In float32 the cosine schedule's 1 - beta would lose the last digits that NLL is made of.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


def linear(num_timesteps: int) -> np.ndarray:
    """Let beta grow linearly, from 1e-4 to 0.02 at T = 1000, scaled by 1000 / T for other lengths.

        beta_t = (1000 / T) (1e-4 + (0.02 - 1e-4) t / (T - 1))                           (DDPM, section 4; IDDPM's code)

    Args:
        num_timesteps: T, at least 21: below, the last beta would reach 1 and no signal would be left.

    Returns:
        betas: [T], float64.
    """
    _check_length(num_timesteps)
    scale = 1000 / num_timesteps
    if scale * 0.02 >= 1:
        raise ValueError(
            f"the linear schedule needs num_timesteps >= 21, got {num_timesteps}: beta would reach {scale * 0.02:.3g}"
        )
    return np.linspace(scale * 1e-4, scale * 0.02, num_timesteps, dtype=np.float64)


def cosine(num_timesteps: int, s: float = 0.008) -> np.ndarray:
    """Let alpha-bar fall as a squared cosine, nearly linearly in the middle and flat at both ends.

        beta_t = min(1 - alpha_bar((t + 1) / T) / alpha_bar(t / T), 0.999)                      (IDDPM, eq. 17)

    Args:
        num_timesteps: T, at least 1.
        s: offset that keeps the first betas from vanishing; 0.008 puts sqrt(beta_1) a little below a grey level.

    Returns:
        betas: [T], float64.
    """
    _check_length(num_timesteps)
    if not s >= 0:
        raise ValueError(f"the cosine schedule needs s >= 0, got {s}")
    edges = [cosine_alpha_bar(i / num_timesteps, s) for i in range(num_timesteps + 1)]
    return np.array([min(1 - edges[i + 1] / edges[i], 0.999) for i in range(num_timesteps)])


def cosine_alpha_bar(u: float, s: float = 0.008) -> float:
    """Evaluate the cosine schedule's alpha-bar at u = t / T in [0, 1], up to the constant that betas divide out.

    alpha_bar(u) = cos^2((u + s) / (1 + s) pi / 2)                                                 (IDDPM, eq. 17)
    """
    return math.cos((u + s) / (1 + s) * math.pi / 2) ** 2


def vp(num_timesteps: int, beta_min: float = 0.1, beta_max: float = 20.0) -> np.ndarray:
    """Cut the variance-preserving process of score matching into a few large steps.

        alpha_bar(u) = exp(-u^2 (beta_max - beta_min) / 2 - u beta_min)          (Song et al. 2021, appendix C)
        beta_i = 1 - alpha_bar(u_{i+1}) / alpha_bar(u_i),  u from 0.001 to 1                  (DDGAN's code)

    The process starts at u = 0.001, so the data are exactly clean: what alpha_bar(0.001) loses is divided out.

    Args:
        num_timesteps: T, at least 1.
        beta_min: rate of the noise at u = 0, above 0.
        beta_max: rate at u = 1, at least beta_min.

    Returns:
        betas: [T], float64.
    """
    if not 0 < beta_min <= beta_max:
        raise ValueError(f"the vp schedule needs 0 < beta_min <= beta_max, got {beta_min} and {beta_max}")
    return _steps(num_timesteps, lambda u: np.exp(-(u**2) * (beta_max - beta_min) / 2 - u * beta_min))


def geometric(num_timesteps: int, variance_min: float = 1e-4, variance_max: float = 0.999) -> np.ndarray:
    """Let the noise's variance grow geometrically.

        alpha_bar(u) = 1 - variance_min (variance_max / variance_min)^u                                (DDGAN's code)

    Cut into steps as `vp` is.

    Args:
        num_timesteps: T, at least 1.
        variance_min: at u = 0, above 0.
        variance_max: at u = 1, below 1: beyond, nothing would be left of the data (DDGAN's default, 20, gives NaN).

    Returns:
        betas: [T], float64.
    """
    if not 0 < variance_min < variance_max < 1:
        raise ValueError(
            f"the geometric schedule needs 0 < variance_min < variance_max < 1, got {variance_min} and {variance_max}"
        )
    return _steps(num_timesteps, lambda u: 1 - variance_min * (variance_max / variance_min) ** u)


def _steps(num_timesteps: int, alpha_bar: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the betas of T steps of equal length from u = 0.001 to 1."""
    _check_length(num_timesteps)
    values = alpha_bar(np.linspace(1e-3, 1, int(num_timesteps) + 1))
    return 1 - values[1:] / values[:-1]


class Tables(NamedTuple):
    """The tables of a schedule; each is [T], float64 and read-only. T is the number of steps."""

    betas: np.ndarray  # variance of q(x_t | x_{t-1}), in (0, 1)
    alphas_cumprod: np.ndarray  # alpha-bar_t = prod (1 - beta)
    alphas_cumprod_prev: np.ndarray  # alpha-bar_{t-1}; 1 before the first step
    alphas_cumprod_next: np.ndarray  # alpha-bar_{t+1}; 0 after the last step
    sqrt_alphas_cumprod: np.ndarray
    sqrt_one_minus_alphas_cumprod: np.ndarray
    log_one_minus_alphas_cumprod: np.ndarray
    sqrt_recip_alphas_cumprod: np.ndarray  # x_0 = this x_t - the next noise
    sqrt_recipm1_alphas_cumprod: np.ndarray
    posterior_variance: np.ndarray  # beta-tilde_t, DDPM eq. 7; 0 at t = 0
    posterior_log_variance_clipped: np.ndarray  # its log, with beta-tilde_1 in place of beta-tilde_0 = 0
    posterior_mean_coef1: np.ndarray  # of x_0 in mu-tilde
    posterior_mean_coef2: np.ndarray  # of x_t in mu-tilde
    recip_posterior_mean_coef1: np.ndarray  # x_0 = this mu-tilde - the next x_t
    posterior_mean_coef2_over_1: np.ndarray
    log_betas: np.ndarray  # upper end of IDDPM's learned range, eq. 15
    fixed_large_log_variance: np.ndarray  # log beta_t, with beta-tilde_1 at t = 0 as in the reference
    snr: np.ndarray  # alpha-bar / (1 - alpha-bar)


def tables(betas: np.ndarray) -> Tables:
    """Compute every table over t from the betas.

        mu-tilde = coef1 x_0 + coef2 x_t,  coef1 = sqrt(abar_{t-1}) beta_t / (1 - abar_t),
        coef2 = sqrt(alpha_t) (1 - abar_{t-1}) / (1 - abar_t),  beta-tilde_t = (1 - abar_{t-1}) / (1 - abar_t) beta_t
                                                                                                  (DDPM, eq. 7)

    Args:
        betas: [T], each in (0, 1). With T = 1 there is no beta-tilde_1 to replace beta-tilde_0 = 0; beta_0 does.

    Raises:
        ValueError: betas are not such a vector, or their product leaves no signal that float64 can hold.
    """
    betas = np.array(betas, dtype=np.float64)  # a copy: it is frozen below
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas must be a vector of at least one step, got shape {betas.shape}")
    alphas = 1.0 - betas
    possible = (alphas > 0) & (alphas < 1)  # False for NaN, and for betas too small to change 1.0
    if not possible.all():
        t = int(np.argmin(possible))
        raise ValueError(f"betas must lie strictly between 0 and 1, got {betas[t]} at t = {t}")
    alphas_cumprod = np.cumprod(alphas)
    if alphas_cumprod[-1] < np.finfo(np.float64).tiny:
        raise ValueError(f"alphas_cumprod reaches 0 at t = {int(np.argmin(alphas_cumprod))}: use smaller betas")
    alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
    posterior_variance = betas * (1.0 - alphas_cumprod_prev) / (1.0 - alphas_cumprod)
    first = posterior_variance[1] if len(betas) > 1 else betas[0]
    coef1 = betas * np.sqrt(alphas_cumprod_prev) / (1.0 - alphas_cumprod)
    coef2 = (1.0 - alphas_cumprod_prev) * np.sqrt(alphas) / (1.0 - alphas_cumprod)
    result = Tables(
        betas=betas,
        alphas_cumprod=alphas_cumprod,
        alphas_cumprod_prev=alphas_cumprod_prev,
        alphas_cumprod_next=np.append(alphas_cumprod[1:], 0.0),
        sqrt_alphas_cumprod=np.sqrt(alphas_cumprod),
        sqrt_one_minus_alphas_cumprod=np.sqrt(1.0 - alphas_cumprod),
        log_one_minus_alphas_cumprod=np.log(1.0 - alphas_cumprod),
        sqrt_recip_alphas_cumprod=np.sqrt(1.0 / alphas_cumprod),
        sqrt_recipm1_alphas_cumprod=np.sqrt(1.0 / alphas_cumprod - 1),
        posterior_variance=posterior_variance,
        posterior_log_variance_clipped=np.log(np.append(first, posterior_variance[1:])),
        posterior_mean_coef1=coef1,
        posterior_mean_coef2=coef2,
        recip_posterior_mean_coef1=1.0 / coef1,
        posterior_mean_coef2_over_1=coef2 / coef1,
        log_betas=np.log(betas),
        fixed_large_log_variance=np.log(np.append(first, betas[1:])),
        snr=alphas_cumprod / (1.0 - alphas_cumprod),
    )
    for table in result:
        table.setflags(write=False)
    return result


def _check_length(num_timesteps: int) -> None:
    if num_timesteps < 1 or num_timesteps != int(num_timesteps):
        raise ValueError(f"num_timesteps must be a whole number of at least 1, got {num_timesteps}")


SCHEDULES: dict[str, Callable[..., np.ndarray]] = {
    "linear": linear,
    "cosine": cosine,
    "vp": vp,
    "geometric": geometric,
}
