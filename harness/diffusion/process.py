"""The Gaussian diffusion process: q forwards, p backwards, and the terms of the variational bound.

The process owns tables and formulas, never a network: it interprets a network's output. The tables are float64 NumPy;
a row is gathered in float64 and then rounded to x's own type (float32 at least), which is where the reference rounds
too. A process on float64 data therefore computes in float64 throughout.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from harness.diffusion.schedules import Tables, tables

MeanType = Literal["epsilon", "x_0", "previous_x", "v"]
VarType = Literal["fixed_small", "fixed_large", "learned", "learned_range"]
MEAN_TYPES: tuple[str, ...] = get_args(MeanType)
VAR_TYPES: tuple[str, ...] = get_args(VarType)


class Posterior(NamedTuple):
    """q(x_{t-1} | x_t, x_0): each of x_t's shape. The log is clipped: beta-tilde_1 stands in for beta-tilde_0 = 0."""

    mean: Tensor
    variance: Tensor
    log_variance: Tensor


class Prediction(NamedTuple):
    """p(x_{t-1} | x_t) and the clean data it was made from: each of x_t's shape."""

    mean: Tensor
    log_variance: Tensor
    x_0: Tensor


class Denoised(NamedTuple):
    """A model's prediction at (x_t, t) for samplers, each of x_t's shape; eps belongs to this x_0, clipped or not."""

    x_0: Tensor
    eps: Tensor
    mean: Tensor
    log_variance: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class GaussianDiffusion:
    """A noise schedule together with the interpretation of a network's output.

    The tables of `schedules.Tables` (alphas_cumprod, posterior_variance, ...) are attributes: [T], float64, read-only
    NumPy. Use `extract` for a torch value at t.

    Args:
        betas: [T], each in (0, 1).
        mean_type: what the network predicts: "epsilon" (DDPM, eq. 11), "x_0", "previous_x" (mu-tilde), or
            "v" = sqrt(abar) noise - sqrt(1 - abar) x_0 (Salimans and Ho 2022).
        var_type: "fixed_small" (beta-tilde), "fixed_large" (beta), "learned" (the network gives log variance), or
            "learned_range" (it interpolates between the two; IDDPM, eq. 15). The learned ones take 2C channels.
        levels: number of grey levels of the data in [-1, 1], for the decoder's bins of half width 1 / (levels - 1);
            None for continuous data, whose L_0 is a density.
        decoder: how a bin's mass is computed: "tanh", the approximation of all published numbers, or "exact" (erf).
        timestep_map: [T], the step of the original chain that each step is; the identity unless respaced.
        device: where the tables that torch reads lie. Tensors given to the methods must lie there too.
    """

    betas: np.ndarray
    _: KW_ONLY
    mean_type: MeanType
    var_type: VarType
    levels: int | None = 256
    decoder: Literal["tanh", "exact"] = "tanh"
    timestep_map: np.ndarray = None  # type: ignore[assignment]  # the identity, set below
    device: torch.device | str = "cpu"
    tables: Tables = field(init=False)
    _torch_tables: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        _choose("mean_type", self.mean_type, MEAN_TYPES)
        _choose("var_type", self.var_type, VAR_TYPES)
        _choose("decoder", self.decoder, tuple(_LOG_BIN_MASS))
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"levels must be at least 2, or None for continuous data; got {self.levels}")
        all_tables = tables(self.betas)
        steps = np.arange(len(all_tables.betas)) if self.timestep_map is None else np.array(self.timestep_map)
        steps.setflags(write=False)
        put = {name: torch.tensor(table, device=self.device) for name, table in all_tables._asdict().items()}
        put["timestep_map"] = torch.tensor(steps, device=self.device)
        for name, value in [
            ("betas", all_tables.betas),
            ("timestep_map", steps),
            ("tables", all_tables),
            ("_torch_tables", put),
        ]:
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name in Tables._fields:
            return getattr(self.tables, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"GaussianDiffusion(num_timesteps={self.num_timesteps}, {self.mean_type}, {self.var_type})"

    @property
    def num_timesteps(self) -> int:
        """T, the number of steps of this chain (not of the chain that it was respaced from)."""
        return len(self.betas)

    @property
    def learns_variance(self) -> bool:
        """Whether the network's output has a second half of channels for the variance."""
        return self.var_type in ("learned", "learned_range")

    def to(self, device: torch.device | str) -> "GaussianDiffusion":
        """Return this process with its tables on the device; call it once, before the loop."""
        return replace(self, device=device)

    def respaced(self, timesteps: Iterable[int]) -> "GaussianDiffusion":
        """Return the process on the kept steps only, with the same q(x_t | x_0) at each.

            beta'_i = 1 - abar_{S_i} / abar_{S_{i-1}}                                       (IDDPM, section 4)

        Args:
            timesteps: steps of this chain to keep, in any order; one is enough.

        Raises:
            ValueError: no step is kept, or one is not in the chain.
        """
        kept = sorted(set(timesteps))
        if not kept or kept[0] < 0 or kept[-1] >= self.num_timesteps:
            raise ValueError(
                f"keep at least one step, all of them in 0 .. {self.num_timesteps - 1}; got {kept[:1]} .. {kept[-1:]}"
            )
        abar = self.tables.alphas_cumprod[kept]
        betas = 1.0 - abar / np.append(1.0, abar[:-1])
        return replace(self, betas=betas, timestep_map=self.timestep_map[kept])

    def original_t(self, t: Tensor) -> Tensor:
        """Map steps of this chain, [B], to those of the original chain, which the network was trained on."""
        return self._torch_tables["timestep_map"].gather(0, t)

    def extract(self, name: str, t: Tensor, x: Tensor) -> Tensor:
        """Look up the table `name` at t, [B], shaped to broadcast over x, [B, ...], in x's type (float32 at least).

        Raises:
            ValueError: t has another batch size than x, or (on the CPU) lies outside 0 .. T-1.
        """
        if t.shape != x.shape[:1]:
            raise ValueError(f"t must have the shape [{x.shape[0]}], one step for each example; got {list(t.shape)}")
        # Reading the values would synchronise with a GPU, and on a CPU cost more than all else here. gather refuses
        # what is out of range (indexing would not: it accepts -1); on a GPU by an assertion that ends the process.
        try:
            row = self._torch_tables[name].gather(0, t.long())
        except (RuntimeError, IndexError):
            if t.device.type == "cpu" and t.numel() and not 0 <= int(t.min()) <= int(t.max()) < self.num_timesteps:
                raise ValueError(
                    f"t must lie in 0 .. {self.num_timesteps - 1}, got {int(t.min())} .. {int(t.max())}"
                ) from None
            raise
        return row.to(torch.promote_types(x.dtype, torch.float32)).view(-1, *[1] * (x.ndim - 1))

    # -- q, forwards ---------------------------------------------------------------------------------------------------

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Diffuse clean data to step t: draw from q(x_t | x_0).

            x_t = sqrt(alphas_cumprod[t]) x_0 + sqrt(1 - alphas_cumprod[t]) noise                      (DDPM, eq. 4)

        Args:
            x_0: [B, ...], in [-1, 1].
            t: [B], integers in [0, num_timesteps); 0 is one step of noise, not none.
            noise: like x_0, standard normal. Passed in, never drawn here, so that a call is a pure function.

        Raises:
            ValueError: t or noise do not fit x_0.
        """
        _same_shape("noise", noise, "x_0", x_0)
        return (
            self.extract("sqrt_alphas_cumprod", t, x_0) * x_0
            + self.extract("sqrt_one_minus_alphas_cumprod", t, x_0) * noise
        )

    def q_posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Posterior:
        """Compute the posterior of the previous step when x_0 is known: q(x_{t-1} | x_t, x_0).

            mu-tilde = posterior_mean_coef1[t] x_0 + posterior_mean_coef2[t] x_t                     (DDPM, eq. 6 and 7)

        Raises:
            ValueError: t or x_0 do not fit x_t.
        """
        _same_shape("x_0", x_0, "x_t", x_t)
        return Posterior(
            mean=self.extract("posterior_mean_coef1", t, x_t) * x_0
            + self.extract("posterior_mean_coef2", t, x_t) * x_t,
            variance=self.extract("posterior_variance", t, x_t).expand(x_t.shape),
            log_variance=self.extract("posterior_log_variance_clipped", t, x_t).expand(x_t.shape),
        )

    # -- p, backwards --------------------------------------------------------------------------------------------------

    def p_mean_variance(self, model_output: Tensor, x_t: Tensor, t: Tensor, clip: bool = True) -> Prediction:
        """Interpret the network's output as p(x_{t-1} | x_t) = N(mean, exp(log_variance)).

            mean = mu-tilde(x_0, x_t), x_0 from the output by mean_type                         (DDPM, eq. 11 and 15)
            log_variance = frac log beta_t + (1 - frac) log beta-tilde_t, frac = (v + 1) / 2        (IDDPM, eq. 15)

        Args:
            model_output: [B, C, ...], or [B, 2C, ...] with a learned variance.
            x_t: [B, C, ...].
            t: [B].
            clip: clamp the predicted x_0 to [-1, 1]; with mean_type "previous_x" the mean itself is not changed.

        Raises:
            ValueError: shapes that do not fit.
        """
        prediction, log_variance = self._split(model_output, x_t, t)
        x_0 = self._predict_x_0(prediction, x_t, t)
        if clip:
            x_0 = x_0.clamp(-1, 1)
        mean = prediction if self.mean_type == "previous_x" else self.q_posterior(x_0, x_t, t).mean
        return Prediction(mean, log_variance, x_0)

    def denoised(self, model_output: Tensor, x_t: Tensor, t: Tensor, clip: bool = True) -> Denoised:
        """Interpret the network's output for samplers; eps is derived again from the (clipped) x_0."""
        mean, log_variance, x_0 = self.p_mean_variance(model_output, x_t, t, clip)
        return Denoised(x_0, self.predict_eps(x_0, x_t, t), mean, log_variance)

    def predict_eps(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Solve q_sample for the noise: eps = (x_t / sqrt(abar) - x_0) / sqrt(1 / abar - 1)."""
        return (self.extract("sqrt_recip_alphas_cumprod", t, x_t) * x_t - x_0) / self.extract(
            "sqrt_recipm1_alphas_cumprod", t, x_t
        )

    def mean_target(self, x_0: Tensor, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return the network's regression target by mean_type: [B, C, ...]."""
        match self.mean_type:
            case "epsilon":
                return noise
            case "x_0":
                return x_0
            case "previous_x":
                return self.q_posterior(x_0, x_t, t).mean
            case "v":
                return (
                    self.extract("sqrt_alphas_cumprod", t, x_0) * noise
                    - self.extract("sqrt_one_minus_alphas_cumprod", t, x_0) * x_0
                )

    def _predict_x_0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        match self.mean_type:
            case "epsilon":
                return (
                    self.extract("sqrt_recip_alphas_cumprod", t, x_t) * x_t
                    - self.extract("sqrt_recipm1_alphas_cumprod", t, x_t) * prediction
                )
            case "x_0":
                return prediction
            case "previous_x":
                return (
                    self.extract("recip_posterior_mean_coef1", t, x_t) * prediction
                    - self.extract("posterior_mean_coef2_over_1", t, x_t) * x_t
                )
            case "v":
                return (
                    self.extract("sqrt_alphas_cumprod", t, x_t) * x_t
                    - self.extract("sqrt_one_minus_alphas_cumprod", t, x_t) * prediction
                )

    def _split(self, model_output: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Split the output into the mean's channels and their log variance, both [B, C, ...]."""
        channels = x_t.shape[1]
        expected = (x_t.shape[0], channels * (1 + self.learns_variance), *x_t.shape[2:])
        if model_output.shape != expected:
            raise ValueError(
                f"model_output must have the shape {list(expected)} for x_t {list(x_t.shape)} and "
                f"var_type {self.var_type!r}; got {list(model_output.shape)}"
            )
        small, large = "posterior_log_variance_clipped", "fixed_large_log_variance"
        match self.var_type:
            case "fixed_small":
                return model_output, self.extract(small, t, x_t).expand(x_t.shape)
            case "fixed_large":
                return model_output, self.extract(large, t, x_t).expand(x_t.shape)
            case "learned":
                return model_output[:, :channels], model_output[:, channels:]
            case "learned_range":
                frac = (model_output[:, channels:] + 1) / 2  # not clamped, as published
                log_variance = frac * self.extract("log_betas", t, x_t) + (1 - frac) * self.extract(small, t, x_t)
                return model_output[:, :channels], log_variance

    # -- the variational bound -----------------------------------------------------------------------------------------

    def vb_terms_bpd(self, model_output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, clip: bool = True) -> Tensor:
        """Return L_t, one term of the bound, in bits/dim: [B].

            L_t = KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 0,  L_0 = -log p(x_0 | x_1)      (DDPM, eq. 5)

        Training uses clip=False; the published evaluations use clip=True.
        """
        _same_shape("x_0", x_0, "x_t", x_t)
        true = self.q_posterior(x_0, x_t, t)
        mean, log_variance, _ = self.p_mean_variance(model_output, x_t, t, clip)
        kl = _kl_bpd(true.mean, true.log_variance, mean, log_variance)
        return torch.where(t == 0, self.decoder_bpd(x_0, mean, log_variance), kl)

    def decoder_bpd(self, x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Return -log p(x_0 | x_1) under N(mean, exp(log_variance)) in bits/dim: [B].

        The mass of the bin of half width 1 / (levels - 1) around x_0, where the outermost bins reach to infinity (DDPM,
        eq. 13); the density at x_0 if the data are continuous.
        """
        if self.levels is None:
            normalised = (x_0 - mean) ** 2 * torch.exp(-log_variance)
            nats = 0.5 * (math.log(2 * math.pi) + log_variance + normalised)
        else:
            half_width = 1 / (self.levels - 1)
            edge = 1 - min(0.001, half_width / 2)  # the reference's 0.999; closer only where bins are that narrow
            inverse_std = torch.exp(-0.5 * log_variance)
            log_below, log_between = _LOG_BIN_MASS[self.decoder]
            # A normal's bins mirror at its mean. So the middle bin is evaluated on the lower side, where two small
            # numbers are subtracted: above the mean float32 would subtract two numbers near 1.
            centre = -torch.abs(x_0 - mean)
            middle = log_between((centre - half_width) * inverse_std, (centre + half_width) * inverse_std)
            left = log_below((x_0 + half_width - mean) * inverse_std)
            right = log_below((mean - x_0 + half_width) * inverse_std)
            nats = -torch.where(x_0 < -edge, left, torch.where(x_0 > edge, right, middle))
        return _mean_over_dimensions(nats) / math.log(2)

    def prior_bpd(self, x_0: Tensor) -> Tensor:
        """Return L_T = KL(q(x_T | x_0) || N(0, I)) in bits/dim: [B]. It does not depend on the network."""
        last = torch.full(x_0.shape[:1], self.num_timesteps - 1, device=x_0.device)
        mean = self.extract("sqrt_alphas_cumprod", last, x_0) * x_0
        log_variance = self.extract("log_one_minus_alphas_cumprod", last, x_0)
        return _kl_bpd(mean, log_variance, torch.zeros_like(mean), torch.zeros_like(log_variance))


def _kl_bpd(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """Return KL(N_1 || N_2) of diagonal Gaussians, mean over dimensions, in bits: [B]."""
    nats = 0.5 * (
        -1.0
        + log_variance_2
        - log_variance_1
        + torch.exp(log_variance_1 - log_variance_2)
        + (mean_1 - mean_2) ** 2 * torch.exp(-log_variance_2)
    )
    return _mean_over_dimensions(nats) / math.log(2)


def _mean_over_dimensions(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)  # [B]


# The decoder: log mass of a standard normal below `upper`, and between `lower` and `upper` (both below 0 or around it).


def _tanh_cdf(u: Tensor) -> Tensor:
    # (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3))) / 2, written as a sigmoid, whose lower tail does not round to 0.
    return torch.sigmoid(2 * math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))


def _tanh_log_below(upper: Tensor) -> Tensor:
    return torch.log(_tanh_cdf(upper).clamp(min=1e-12))  # the clamp is part of the published decoder


def _tanh_log_between(lower: Tensor, upper: Tensor) -> Tensor:
    return torch.log((_tanh_cdf(upper) - _tanh_cdf(lower)).clamp(min=1e-12))


def _exact_log_between(lower: Tensor, upper: Tensor) -> Tensor:
    log_upper = torch.special.log_ndtr(upper)
    return log_upper + torch.log(-torch.expm1(torch.special.log_ndtr(lower) - log_upper))


_LOG_BIN_MASS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "tanh": (_tanh_log_below, _tanh_log_between),
    "exact": (torch.special.log_ndtr, _exact_log_between),
}


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def _same_shape(name: str, x: Tensor, like: str, y: Tensor) -> None:
    if x.shape != y.shape:
        raise ValueError(f"{name} must have the shape of {like}, {list(y.shape)}; got {list(x.shape)}")
