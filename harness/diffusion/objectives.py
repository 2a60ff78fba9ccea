"""Training objectives: terms per example, and the papers' sums of them.

    OBJECTIVES[name](process, model_output, x_0, x_t, t, noise, **kw) -> {"loss": [B], "mse": [B], "vb": [B]}

mse is a mean over dimensions, vb is in bits/dim: the papers add the two as they are, and so do we. Importance weights
of t are applied by the caller (timesteps.py): the terms here are unweighted.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from harness.diffusion.process import GaussianDiffusion


def training_terms(
    process: GaussianDiffusion,
    model_output: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    learn_variance: bool,
) -> dict[str, Tensor]:
    """Return the two terms of which every objective is a sum.

        mse = mean (target - output)^2, the target by mean_type;  vb = L_t in bits/dim, x_0 unclipped

    Args:
        model_output: [B, C, ...], or [B, 2C, ...] with a learned variance.
        x_0, x_t, noise: [B, C, ...], with x_t = q_sample(x_0, t, noise).
        t: [B].
        learn_variance: vb is to train the variance alone: its gradient stops at the mean (IDDPM, section 3.1). False:
            it trains all that it depends on.

    Returns:
        {"mse": [B], "vb": [B]}; learn_variance changes gradients, never values.
    """
    prediction, variance = model_output[:, : x_0.shape[1]], model_output[:, x_0.shape[1] :]
    seen_by_vb = torch.cat([prediction.detach(), variance], dim=1) if learn_variance else model_output
    vb = process.vb_terms_bpd(seen_by_vb, x_0, x_t, t, clip=False)  # refuses shapes that do not fit
    return {"mse": _mse(process, prediction, x_0, x_t, t, noise), "vb": vb}


def _mse_terms(
    process: GaussianDiffusion, model_output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor
) -> dict[str, Tensor]:
    """Return the same two terms where nothing learns from vb: most of its time would be its graph."""
    vb = process.vb_terms_bpd(model_output.detach(), x_0, x_t, t, clip=False)  # refuses shapes that do not fit
    return {"mse": _mse(process, model_output, x_0, x_t, t, noise), "vb": vb}


def _mse(process: GaussianDiffusion, prediction: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    return ((process.mean_target(x_0, x_t, t, noise) - prediction) ** 2).flatten(1).mean(1)


def simple(
    process: GaussianDiffusion, model_output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor
) -> dict[str, Tensor]:
    """L_simple = mse (DDPM, eq. 14). vb is computed to be logged; nothing learns from it, so the variance is fixed."""
    _refuse_learned_variance("simple", process)
    terms = _mse_terms(process, model_output, x_0, x_t, t, noise)
    return {"loss": terms["mse"], **terms}


def hybrid(
    process: GaussianDiffusion,
    model_output: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    noise: Tensor,
    lambda_vlb: float = 0.001,
) -> dict[str, Tensor]:
    """L_hybrid = mse + lambda_vlb T vb, where vb trains the variance alone (IDDPM, eq. 16).

    T vb_t is an unbiased estimate of L_vlb under uniform t. The reference's RESCALED_MSE is lambda_vlb = 0.001; its
    MSE, which three of the published commands use, is lambda_vlb = 1 / T.
    """
    if not process.learns_variance:
        raise ValueError(f"objective 'hybrid' needs var_type learned or learned_range, got {process.var_type!r}")
    terms = training_terms(process, model_output, x_0, x_t, t, noise, learn_variance=True)
    return {"loss": terms["mse"] + lambda_vlb * process.num_timesteps * terms["vb"], **terms}


def vlb(
    process: GaussianDiffusion, model_output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor
) -> dict[str, Tensor]:
    """L_vlb = T vb: the bound itself, in bits/dim, for mean and variance alike (DDPM's L; IDDPM, eq. 4)."""
    terms = training_terms(process, model_output, x_0, x_t, t, noise, learn_variance=False)
    return {"loss": process.num_timesteps * terms["vb"], **terms}


def min_snr(
    process: GaussianDiffusion,
    model_output: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    noise: Tensor,
    gamma: float = 5.0,
) -> dict[str, Tensor]:
    """mse weighted so that x_0's error counts min(SNR, gamma), whatever is predicted (Hang et al. 2023, section 3.4).

    epsilon: min(SNR, gamma) / SNR;  v: min(SNR, gamma) / (SNR + 1);  x_0: min(SNR, gamma)
    """
    _refuse_learned_variance("min_snr", process)
    if not gamma > 0:
        raise ValueError(f"gamma must be greater than 0, got {gamma}")
    snr = process.extract("snr", t, x_t).flatten()  # [B]
    match process.mean_type:
        case "epsilon":
            unit = snr
        case "v":
            unit = snr + 1
        case "x_0":
            unit = torch.ones_like(snr)
        case _:
            raise ValueError(f"objective 'min_snr' needs mean_type epsilon, v or x_0; got {process.mean_type!r}")
    terms = _mse_terms(process, model_output, x_0, x_t, t, noise)
    return {"loss": snr.clamp(max=gamma) / unit * terms["mse"], **terms}


def _refuse_learned_variance(name: str, process: GaussianDiffusion) -> None:
    if process.learns_variance:
        raise ValueError(
            f"objective {name!r} never trains the variance: choose var_type fixed_small or fixed_large, "
            f"or objective hybrid or vlb; got {process.var_type!r}"
        )


OBJECTIVES: dict[str, Callable[..., dict[str, Tensor]]] = {
    "simple": simple,
    "hybrid": hybrid,
    "vlb": vlb,
    "min_snr": min_snr,
}
