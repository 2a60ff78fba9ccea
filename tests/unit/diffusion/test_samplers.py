"""Samplers against the reference's steps and the closed forms of Gaussian data with the ideal denoiser.

On data N(0, STD^2) the ideal network is linear in x_t. A chain is then a linear map of its noise, and its standard
deviation comes out of unit impulses exactly, with nothing sampled.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.diffusion import (
    SAMPLERS,
    SCHEDULES,
    VAR_TYPES,
    GaussianDiffusion,
    ancestral_step,
    ddim_reverse_step,
    ddim_step,
    denoiser,
    encode,
    ensemble,
    guided,
    interpolate,
    skip_fraction,
    space_timesteps,
    tables,
)

GOLDEN = dict(np.load(Path(__file__).parents[2] / "golden" / "steps.npz"))
GOLDEN_SCHEDULES = sorted({name.split("/")[0] for name in GOLDEN if "/" in name})  # others have no vectors
# Chains that end without a trace of the data, as those assume that start at N(0, 1).
ENDS_IN_NOISE = [name for name in SCHEDULES if tables(SCHEDULES[name](1000)).alphas_cumprod[-1] < 1e-4]
MEAN = {"epsilon": "EPSILON", "x_0": "START_X", "previous_x": "PREVIOUS_X"}
STD = 0.5


def process_of(schedule="linear", var_type="fixed_small", num_timesteps=1000, mean_type="x_0", keep=None):
    process = GaussianDiffusion(SCHEDULES[schedule](num_timesteps), mean_type=mean_type, var_type=var_type)
    return process.respaced(space_timesteps(num_timesteps, keep)) if keep else process


def ideal_x_0(process, x_t, t):
    """E[x_0 | x_t]"""
    abar = process.extract("alphas_cumprod", t, x_t)
    return STD**2 * abar.sqrt() / (abar * STD**2 + 1 - abar) * x_t


def ideal_output(process, x_t, t):
    """E[x_0 | x_t], and with var_type learned the variance beta-tilde + coef1^2 Var(x_0 | x_t)."""
    x_0 = ideal_x_0(process, x_t, t)
    if process.var_type != "learned":
        return x_0
    abar = process.extract("alphas_cumprod", t, x_t)
    left_over = STD**2 * (1 - abar) / (abar * STD**2 + 1 - abar)
    variance = (
        process.extract("posterior_variance", t, x_t) + process.extract("posterior_mean_coef1", t, x_t) ** 2 * left_over
    )
    return torch.cat([x_0, variance.log().expand(x_t.shape)], dim=1)


def stds(process, step, std):
    """The standard deviations of x_{T-1}, ..., x_0 and of the sample, from that of x_{T-1}."""
    result = [std]
    for i in reversed(range(process.num_timesteps)):
        t = torch.tensor([i, i])
        of_x, of_noise = torch.eye(2, dtype=torch.float64).unsqueeze(-1)  # unit impulses, [2, 1] each
        gains = step(process, ideal_output(process, of_x, t), of_x, t, of_noise, clip=False).flatten()
        result.append(math.hypot(gains[0] * result[-1], gains[1]))
    return result


def ddim_by(eta):
    return lambda *args, **kw: ddim_step(*args, eta=eta, **kw)


def solve(name, full, kept, **kw):
    """The whole chain's gain on x_T; over the exact flow's this is the sampled standard deviation."""
    process = full.respaced(kept)
    denoise = denoiser(process, lambda x_t, t: ideal_x_0(full, x_t, t), clip=False)
    gain = SAMPLERS[name](denoise, torch.ones(1, 1, dtype=torch.float64), process, generator=torch.Generator(), **kw)
    abar = full.alphas_cumprod[-1]
    return float(gain) * math.sqrt(abar * STD**2 + 1 - abar)


# -- one step ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("var_type", VAR_TYPES)
@pytest.mark.parametrize("mean_type", MEAN)
@pytest.mark.parametrize("schedule", GOLDEN_SCHEDULES)
def test_single_steps_are_the_references(schedule, mean_type, var_type):
    process = process_of(schedule, var_type, mean_type=mean_type)
    prefix = f"{schedule}/{MEAN[mean_type]}/{var_type.upper()}"
    x_t, output, noise, t = (
        torch.from_numpy(GOLDEN[k]) for k in [f"{prefix}/x_t", "model_output", "sampling_noise", "t"]
    )
    if not process.learns_variance:
        output = output[:, :3]
    for name, ours in [
        ("p_sample", ancestral_step(process, output, x_t, t, noise)),
        ("ddim_eta0", ddim_step(process, output, x_t, t, noise)),
        ("ddim_eta0.5", ddim_step(process, output, x_t, t, noise, eta=0.5)),
    ]:
        reference = GOLDEN[f"{prefix}/{name}"]
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-6 * np.abs(reference).max())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("keep", [None, "25"])
def test_ddim_with_eta_1_is_the_ancestral_step_with_beta_tilde(schedule, keep):
    process = process_of(schedule, keep=keep)
    t = torch.arange(process.num_timesteps)
    nought = torch.zeros(len(t), 1, dtype=torch.float64)
    sigma = ddim_step(process, nought, nought, t, nought + 1, eta=1.0)
    np.testing.assert_allclose(sigma.flatten() ** 2, process.posterior_variance, rtol=0, atol=1e-15)
    x_t, x_0, noise = torch.randn(3, len(t), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        ddim_step(process, x_0, x_t, t, noise, eta=1.0), ancestral_step(process, x_0, x_t, t, noise), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_with_eta_1_stays_finite_in_float32_over_any_stride(schedule):
    full = process_of(schedule)
    for skipped in range(1, 1000):
        x = torch.ones(2, 1)
        assert ddim_step(full.respaced([0, skipped]), x, x, torch.tensor([0, 1]), x, eta=1.0).isfinite().all()


def test_no_noise_is_added_at_t_0():
    process, x = process_of(var_type="fixed_large"), torch.zeros(2, 3)
    t = torch.tensor([0, 1])
    for step in [ancestral_step, ddim_by(1.0)]:
        moved = step(process, x, x, t, torch.ones(2, 3)).abs().sum(1)
        assert moved[0] == 0 and moved[1] > 0


def test_a_reverse_step_undoes_a_ddim_step_of_the_same_prediction():
    process = process_of("cosine", num_timesteps=50)
    t = torch.arange(1, 50)
    x_0, x_t = torch.rand(2, 49, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_prev = ddim_step(process, x_0, x_t, t, torch.zeros_like(x_t))
    torch.testing.assert_close(ddim_reverse_step(process, x_0, x_prev, t - 1), x_t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_an_eta_that_leaves_no_variance_is_refused(eta):
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\]"):
        ddim_step(process_of(), x, x, torch.tensor([5]), x, eta=eta)


# -- Gaussian data, ideal denoiser -------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ENDS_IN_NOISE)
@pytest.mark.parametrize("keep", ["1", "2", "7", "25", "quad50", "ddim100", None])
def test_ancestral_sampling_with_the_optimal_variance_is_exact_at_any_number_of_steps(schedule, keep):
    process = process_of(schedule, "learned", keep=keep)
    marginals = np.sqrt(process.alphas_cumprod * STD**2 + 1 - process.alphas_cumprod)[::-1]
    ours = stds(process, ancestral_step, marginals[0])
    np.testing.assert_allclose(ours[:-1], marginals, rtol=1e-12)
    # The last step gives the mean of x_0, without the noise left in x at t = 0.
    np.testing.assert_allclose(ours[-1], STD**2 * process.sqrt_alphas_cumprod[0] / marginals[-1], rtol=1e-12)


@pytest.mark.parametrize(
    "var_type, step, expected",
    [
        ("fixed_small", ancestral_step, 0.404),
        ("fixed_large", ancestral_step, 0.537),
        ("fixed_small", ddim_step, 0.444),
    ],
)
def test_25_linear_steps_miss_the_true_0_5_by_the_known_amount(var_type, step, expected):
    assert stds(process_of("linear", var_type, keep="25"), step, 1.0)[-1] == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("var_type", ["fixed_small", "fixed_large"])
def test_a_thousand_steps_with_a_fixed_variance_come_within_two_percent(schedule, var_type):
    assert stds(process_of(schedule, var_type), ancestral_step, 1.0)[-1] == pytest.approx(STD, rel=0.02)


@pytest.mark.parametrize("schedule", ENDS_IN_NOISE)
def test_ddims_error_halves_when_the_steps_double(schedule):
    full = process_of(schedule, num_timesteps=4000)
    errors = [abs(solve("ddim", full, space_timesteps(4000, n)) - STD) for n in [10, 20, 40, 80, 160]]
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, rtol=0.03)


@pytest.mark.parametrize("schedule", ENDS_IN_NOISE)
def test_2ms_error_quarters_when_the_steps_double(schedule):
    full = process_of(schedule, num_timesteps=4000)
    errors = [abs(solve("dpmpp_2m", full, space_timesteps(4000, n)) - STD) for n in [40, 80, 160, 320]]
    ratios = np.divide(errors[:-1], errors[1:])
    assert ratios[0] > 3.5  # not yet in the limit
    np.testing.assert_allclose(ratios[1:], 4, rtol=0.07)


@pytest.mark.parametrize("schedule", ENDS_IN_NOISE)
@pytest.mark.parametrize("n", [10, 20, 40, 80])
def test_a_last_step_of_first_order_serves_2m_better_at_few_even_steps(schedule, n):
    full, kept = process_of(schedule, num_timesteps=4000), space_timesteps(4000, n)
    second, first, ddim = (
        abs(solve(name, full, kept, **kw) - STD)
        for name, kw in [("dpmpp_2m", {}), ("dpmpp_2m", {"lower_order_final": True}), ("ddim", {})]
    )
    assert first < 0.6 * second and first < 0.8 * ddim


def test_2m_without_a_step_to_extrapolate_is_ddim():
    full = process_of("cosine")
    assert solve("dpmpp_2m", full, [300, 999]) == pytest.approx(solve("ddim", full, [300, 999]), rel=1e-12)


@pytest.mark.parametrize("schedule", ENDS_IN_NOISE)
def test_encoding_finds_the_latent_that_ddim_decodes_with_an_error_that_halves(schedule):
    full = process_of(schedule, num_timesteps=4000)
    abar = full.alphas_cumprod[-1]
    x_0 = torch.tensor([[0.7, -0.2]], dtype=torch.float64)
    latent_of_x_0 = x_0 / STD * math.sqrt(abar * STD**2 + 1 - abar)  # the flow keeps every number at its quantile
    of_latent, of_x_0 = [], []
    for n in [50, 100, 200]:
        process = full.respaced(space_timesteps(4000, n))
        denoise = denoiser(process, lambda x_t, t: ideal_x_0(full, x_t, t), clip=False)
        latent = encode(denoise, x_0, process)
        decoded = SAMPLERS["ddim"](denoise, latent, process, generator=torch.Generator())
        of_latent.append((latent - latent_of_x_0).abs().max().item())
        of_x_0.append((decoded - x_0).abs().max().item())
    for errors in (of_latent, of_x_0):
        np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, rtol=0.03)


# -- whole chains ------------------------------------------------------------------------------------------------------


def gaussian_denoise(process):
    return denoiser(process, lambda x_t, t: ideal_output(process, x_t, t), clip=False)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_the_data_from_noise(name):
    process = process_of("cosine", "learned", num_timesteps=100)
    generator = torch.Generator().manual_seed(0)
    x_T = torch.randn(4, 5_000, generator=generator)
    x_0 = SAMPLERS[name](gaussian_denoise(process), x_T, process, generator=generator)
    assert x_0.shape == x_T.shape and x_0.dtype == torch.float32
    assert x_0.std().item() == pytest.approx(STD, rel=0.02)
    assert abs(x_0.mean().item()) < 4 * STD / math.sqrt(20_000)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("start", [None, 0, 7])
def test_every_sampler_walks_from_its_start_to_0_and_says_so(name, start):
    process, walked = process_of("cosine", num_timesteps=20), []
    x = torch.full((2, 3), 0.3)
    generator = torch.Generator().manual_seed(0)
    x_0 = SAMPLERS[name](
        gaussian_denoise(process), x, process, generator=generator, start=start, on_step=lambda *a: walked.append(a)
    )
    assert [t for t, _, _ in walked] == list(reversed(range(20 if start is None else start + 1)))
    assert torch.equal(walked[-1][1], x_0) and walked[-1][2].x_0.shape == x.shape


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("start", [-1, 20])
def test_a_start_outside_the_chain_is_refused(name, start):
    process = process_of("cosine", num_timesteps=20)
    with pytest.raises(ValueError, match=r"start must lie in 0 \.\. 19"):
        SAMPLERS[name](gaussian_denoise(process), torch.ones(1, 1), process, generator=torch.Generator(), start=start)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_survives_a_chain_of_one_step(name):
    full = process_of("cosine")
    process = full.respaced([999])
    denoise = denoiser(process, lambda x_t, t: ideal_x_0(full, x_t, t), clip=False)
    x_T = torch.ones(2, 3, dtype=torch.float64)
    x_0 = SAMPLERS[name](denoise, x_T, process, generator=torch.Generator())
    expected = ideal_x_0(full, x_T, torch.tensor([999, 999]))  # one step from noise: the mean of the data
    torch.testing.assert_close(x_0, expected, rtol=0, atol=1e-8)


def test_the_network_is_asked_about_steps_of_the_original_chain():
    process, asked = process_of("linear").respaced([10, 500, 999]), []
    denoise = denoiser(process, lambda x_t, t: asked.append(t.tolist()) or x_t)
    SAMPLERS["ddim"](denoise, torch.ones(2, 1), process, generator=torch.Generator())
    assert asked == [[999, 999], [500, 500], [10, 10]]


def test_only_samplers_with_noise_touch_the_generator():
    process = process_of("cosine", num_timesteps=10)
    x_T = torch.ones(2, 3)
    moved = {}
    for name, kw in [("ancestral", {}), ("ddim", {}), ("dpmpp_2m", {}), ("ddim", {"eta": 0.5})]:
        generator = torch.Generator().manual_seed(0)
        before = generator.get_state()
        SAMPLERS[name](gaussian_denoise(process), x_T, process, generator=generator, **kw)
        moved[name, *kw] = not torch.equal(before, generator.get_state())
    assert moved == {("ancestral",): True, ("ddim",): False, ("dpmpp_2m",): False, ("ddim", "eta"): True}


def test_sampling_leaves_no_graph_behind():
    process, weight = process_of("cosine", num_timesteps=5), torch.ones((), requires_grad=True)
    x_0 = SAMPLERS["ddim"](
        denoiser(process, lambda x_t, t: weight * x_t), torch.ones(1, 1), process, generator=torch.Generator()
    )
    assert not x_0.requires_grad


# -- what else a chain can do ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction, start", [(0.0, 999), (0.2, 799), (0.5, 499), (0.9999, 0)])
def test_skipping_a_fraction_starts_the_chain_later(fraction, start):
    assert skip_fraction(process_of(), fraction) == start


@pytest.mark.parametrize("fraction", [-0.1, 1.0, math.nan])
def test_a_fraction_that_leaves_no_chain_is_refused(fraction):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        skip_fraction(process_of(), fraction)


def test_interpolation_ends_at_its_two_images_and_is_straight_on_gaussian_data():
    process = process_of("cosine", num_timesteps=50)
    a, b = torch.full((3, 4), 0.8, dtype=torch.float64), torch.full((3, 4), -0.4, dtype=torch.float64)

    def mix(x, y, weights, t=25):
        return interpolate(
            gaussian_denoise(process), x, y, process, t=t, weights=weights, generator=torch.Generator().manual_seed(3)
        )

    path = mix(a, b, [0.0, 0.25, 1.0])
    assert path.shape == (3, 3, 4)
    # The whole chain is affine in x_0 here and all mixtures share their noise.
    torch.testing.assert_close(path[1], 0.75 * path[0] + 0.25 * path[2], rtol=0, atol=1e-12)
    torch.testing.assert_close(path[0], mix(a, a, [0.5])[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(path[2], mix(b, b, [0.5])[0], rtol=0, atol=1e-12)
    # The less is diffused, the more of the image stays.
    assert (mix(a, b, [0.0], t=1)[0] - a).abs().mean() < 0.1 * (path[0] - a).abs().mean()


def test_guidance_moves_eps_and_leaves_the_variance():
    def network(mean, variance):
        return lambda x_t, t: torch.cat([torch.full_like(x_t, mean), torch.full_like(x_t, variance)], dim=1)

    x, t = torch.zeros(2, 3, 4), torch.tensor([5, 5])
    for scale, eps in [(0.0, 1.0), (1.0, 3.0), (2.5, 6.0)]:
        output = guided(network(3.0, 0.1), network(1.0, 0.9), scale)(x, t)
        assert (output[:, :3] == eps).all() and (output[:, 3:] == torch.tensor(0.1)).all()


@pytest.mark.parametrize("mean_type", ["epsilon", "x_0", "previous_x", "v"])
def test_guiding_any_mean_is_guiding_eps(mean_type):
    process = process_of("cosine", mean_type=mean_type)
    generator = torch.Generator().manual_seed(0)
    x_0, other_x_0, x_t = torch.randn(3, 2, 3, dtype=torch.float64, generator=generator)
    t = torch.tensor([200, 700])

    def network(x_0):
        return lambda x_t, t: process.mean_target(x_0, x_t, t, process.predict_eps(x_0, x_t, t))

    eps = process.denoised(guided(network(x_0), network(other_x_0), 3.0)(x_t, t), x_t, t, clip=False).eps
    given, free = process.predict_eps(x_0, x_t, t), process.predict_eps(other_x_0, x_t, t)
    torch.testing.assert_close(eps, free + 3 * (given - free), rtol=1e-9, atol=1e-9)


def test_an_ensemble_asks_each_network_only_where_it_is_good():
    asked = {"ends": 0, "middle": 0}

    def network(name, value):
        def call(x_t, t):
            asked[name] += 1
            return torch.full_like(x_t, value)

        return call

    both = ensemble(network("ends", 1.0), network("middle", 2.0), low=100, high=3900)
    x = torch.zeros(4, 3)
    assert both(x, torch.tensor([0, 99, 3900, 3999])).unique().tolist() == [1.0] and asked["middle"] == 0
    assert both(x, torch.tensor([100, 500, 2000, 3899])).unique().tolist() == [2.0] and asked["ends"] == 1
    assert both(x, torch.tensor([99, 100, 3899, 3900]))[:, 0].tolist() == [1.0, 2.0, 2.0, 1.0]
