"""The process against the reference's vectors, closed forms of Gaussian data, and bad input."""

import copy
import math
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.diffusion import MEAN_TYPES, SCHEDULES, VAR_TYPES, GaussianDiffusion, tables
from harness.diffusion.schedules import Tables

GOLDEN = dict(np.load(Path(__file__).parents[2] / "golden" / "steps.npz"))
GOLDEN_SCHEDULES = sorted({name.split("/")[0] for name in GOLDEN if "/" in name})  # others have no vectors
MEAN = {"epsilon": "EPSILON", "x_0": "START_X", "previous_x": "PREVIOUS_X"}


def golden(name):
    return torch.from_numpy(GOLDEN[name])


def process_of(schedule="cosine", mean_type="epsilon", var_type="fixed_small", num_timesteps=1000, **kw):
    return GaussianDiffusion(SCHEDULES[schedule](num_timesteps), mean_type=mean_type, var_type=var_type, **kw)


def assert_to_float32(ours, reference):
    """1e-6 of the array's largest value, as issue 3 asks."""
    assert ours.dtype == torch.float32 and ours.shape == reference.shape
    np.testing.assert_allclose(ours.numpy(), reference, rtol=0, atol=1e-6 * np.abs(reference).max())


# -- the reference's vectors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("var_type", VAR_TYPES)
@pytest.mark.parametrize("mean_type", MEAN)
@pytest.mark.parametrize("schedule", GOLDEN_SCHEDULES)
def test_one_step_is_the_references(schedule, mean_type, var_type, clip):
    process = process_of(schedule, mean_type, var_type)
    prefix = f"{schedule}/{MEAN[mean_type]}/{var_type.upper()}"
    x_0, t, output = golden("x_start"), golden("t"), golden("model_output")
    if not process.learns_variance:
        output = output[:, :3]
    x_t = process.q_sample(x_0, t, golden("noise"))
    assert_to_float32(x_t, GOLDEN[f"{prefix}/x_t"])
    ours = process.p_mean_variance(output, x_t, t, clip=clip)
    for name, theirs in [("mean", "mean"), ("log_variance", "log_variance"), ("x_0", "pred_xstart")]:
        assert_to_float32(getattr(ours, name), GOLDEN[f"{prefix}/clip={clip}/{theirs}"])

    vb, reference = process.vb_terms_bpd(output, x_0, x_t, t, clip=clip).numpy(), GOLDEN[f"{prefix}/clip={clip}/vb_bpd"]
    decoder = GOLDEN["t"] == 0
    np.testing.assert_allclose(vb[~decoder], reference[~decoder], rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(vb[decoder], reference[decoder], rtol=1e-2)


@pytest.mark.parametrize("schedule", GOLDEN_SCHEDULES)
def test_the_prior_is_the_references(schedule):
    ours = process_of(schedule).prior_bpd(golden("x_start"))
    np.testing.assert_allclose(ours, GOLDEN[f"{schedule}/prior_bpd"], rtol=1e-4)


# -- closed forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean_type", MEAN_TYPES)
@given(t=st.integers(0, 999), x_0=st.floats(-1, 1), noise=st.floats(-4, 4))
def test_the_right_output_gives_back_the_data_and_the_noise(mean_type, t, x_0, noise):
    process = process_of("linear", mean_type)
    x_0, noise = torch.full((1, 1), x_0, dtype=torch.float64), torch.full((1, 1), noise, dtype=torch.float64)
    t = torch.tensor([t])
    x_t = process.q_sample(x_0, t, noise)
    denoised = process.denoised(process.mean_target(x_0, x_t, t, noise), x_t, t, clip=False)
    torch.testing.assert_close(denoised.x_0, x_0, rtol=0, atol=1e-9)
    torch.testing.assert_close(denoised.eps, noise, rtol=0, atol=1e-9)
    torch.testing.assert_close(denoised.mean, process.q_posterior(x_0, x_t, t).mean, rtol=0, atol=1e-9)


def test_clipping_bounds_x_0_and_derives_eps_from_it():
    process = process_of(mean_type="x_0")
    x_t, t = torch.zeros(2, 3, 4, 4, dtype=torch.float64), torch.tensor([10, 900])
    denoised = process.denoised(torch.full_like(x_t, 3.0), x_t, t, clip=True)
    assert (denoised.x_0 == 1).all()
    back = process.q_sample(denoised.x_0, t, denoised.eps)
    torch.testing.assert_close(back, x_t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("v, table", [(1.0, "log_betas"), (-1.0, "posterior_log_variance_clipped")])
def test_the_learned_range_spans_the_two_fixed_variances(v, table):
    process = process_of(var_type="learned_range")
    x_t, t = torch.zeros(3, 2, 4, dtype=torch.float64), torch.tensor([0, 500, 999])
    output = torch.cat([x_t, torch.full_like(x_t, v)], dim=1)
    log_variance = process.p_mean_variance(output, x_t, t).log_variance
    torch.testing.assert_close(log_variance, process.extract(table, t, x_t).expand(x_t.shape), rtol=0, atol=1e-12)


def test_the_bound_is_zero_where_the_prediction_is_the_posterior():
    process = process_of(mean_type="x_0")
    x_0 = torch.linspace(-1, 1, 96, dtype=torch.float64).view(2, 3, 16)
    t = torch.tensor([1, 999])
    vb = process.vb_terms_bpd(x_0, x_0, process.q_sample(x_0, t, torch.ones_like(x_0)), t)
    assert vb.abs().max() < 1e-12


@pytest.mark.parametrize("decoder", ["tanh", "exact"])
@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
@pytest.mark.parametrize("log_std", [-5.0, -2.0, 0.5])
def test_the_decoders_bins_share_out_all_the_mass(decoder, levels, log_std):
    process = process_of(levels=levels, decoder=decoder)
    grid = torch.linspace(-1, 1, levels, dtype=torch.float64).view(-1, 1)
    mean, log_variance = torch.full_like(grid, 0.3), torch.full_like(grid, 2 * log_std)
    mass = torch.exp2(-process.decoder_bpd(grid, mean, log_variance)).sum()
    assert mass == pytest.approx(1, abs=1e-7)  # the tanh decoder's clamp gives every empty bin 1e-12


def test_the_exact_decoder_is_the_normal_distribution_far_into_its_tail():
    process = process_of(levels=17, decoder="exact")
    x_0, std, half_width = torch.tensor([[0.5]], dtype=torch.float64), 0.02, 1 / 16
    bpd = process.decoder_bpd(x_0, torch.zeros_like(x_0), torch.full_like(x_0, 2 * math.log(std)))
    upper_tail = 0.5 * math.erfc((0.5 - half_width) / std / math.sqrt(2))  # 21.9 std; beyond the bin: 28 std, nothing
    assert bpd.item() == pytest.approx(-math.log2(upper_tail), rel=1e-12)


def test_float32_decoders_keep_the_precision_of_float64():
    x_0 = torch.linspace(-1, 1, 17).view(1, -1)
    mean, log_variance = x_0 * 0.9 + 0.02, torch.full_like(x_0, 2 * math.log(0.05))
    for decoder in ["tanh", "exact"]:
        process = process_of(levels=256, decoder=decoder)
        single = process.decoder_bpd(x_0, mean, log_variance)
        double = process.decoder_bpd(x_0.double(), mean.double(), log_variance.double())
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=0)


@pytest.mark.parametrize("decoder", ["tanh", "exact"])
def test_decoder_gradients_are_finite_and_right(decoder):
    process = process_of(levels=17, decoder=decoder)
    x_0 = torch.tensor([[-1.0, -0.5, 0.0, 0.5, 1.0]], dtype=torch.float64)
    mean = torch.tensor([[-0.9, 0.2, 0.01, 0.5, 1.5]], dtype=torch.float64, requires_grad=True)
    log_variance = torch.full_like(mean, 2 * math.log(0.2)).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda m, v: process.decoder_bpd(x_0, m, v), (mean, log_variance))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_timesteps", [25, 100])
def test_the_bound_of_the_ideal_gaussian_model_is_the_entropy_plus_the_mismatch_at_the_end(schedule, num_timesteps):
    """With mean E and variance beta-tilde + coef1^2 Var(x_0 | x_t), -log p(x_0) has no slack but L_T's.

    Expectations over x_0 ~ N(0, std^2) and the noise are exact: every term is quadratic in the two, so that Gauss and
    Hermite's rule of three points a dimension has no error.
    """
    std = 0.5
    process = process_of(schedule, "x_0", "learned", num_timesteps, levels=None)
    points, weights = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(3))
    weights = torch.outer(weights, weights).flatten() / (2 * math.pi)
    x_0, noise = (a.reshape(-1, 1) for a in torch.meshgrid(std * points, points, indexing="ij"))

    total = (weights * process.prior_bpd(x_0)).sum()
    for i in range(num_timesteps):
        t = torch.full((9,), i)
        x_t = process.q_sample(x_0, t, noise)
        abar = process.alphas_cumprod[i]
        marginal = abar * std**2 + 1 - abar
        ideal_x_0 = std**2 * math.sqrt(abar) / marginal * x_t
        left_over = std**2 * (1 - abar) / marginal  # Var(x_0 | x_t)
        variance = process.posterior_variance[i] + process.posterior_mean_coef1[i] ** 2 * left_over
        output = torch.cat([ideal_x_0, torch.full_like(x_t, math.log(variance))], dim=1)
        total += (weights * process.vb_terms_bpd(output, x_0, x_t, t, clip=False)).sum()

    entropy = 0.5 * math.log2(2 * math.pi * math.e * std**2)
    end = process.alphas_cumprod[-1] * std**2 + 1 - process.alphas_cumprod[-1]  # Var(x_T)
    mismatch = 0.5 * (end - 1 - math.log(end)) / math.log(2)
    assert total.item() == pytest.approx(entropy + mismatch, abs=1e-11)


# -- one step, other types, other shapes -------------------------------------------------------------------------------


@pytest.mark.parametrize("mean_type", MEAN_TYPES)
@pytest.mark.parametrize("var_type", VAR_TYPES)
@pytest.mark.parametrize("one_step", ["T = 1", "respaced to the first", "respaced to the last"])
def test_a_chain_of_one_step_works(mean_type, var_type, one_step):
    if one_step == "T = 1":
        process = process_of("cosine", mean_type, var_type, num_timesteps=1)
    else:
        full = process_of("linear", mean_type, var_type)
        process = full.respaced([0 if "first" in one_step else 999])
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.rand(4, 2, 3, generator=generator) * 2 - 1
    t, noise = torch.zeros(4, dtype=torch.int64), torch.randn(4, 2, 3, generator=generator)
    x_t = process.q_sample(x_0, t, noise)
    output = process.mean_target(x_0, x_t, t, noise)
    if process.learns_variance:
        output = torch.cat([output, torch.zeros_like(output)], dim=1)
    mean, log_variance, predicted = process.p_mean_variance(output, x_t, t, clip=False)
    torch.testing.assert_close(predicted, x_0, rtol=0, atol=1e-4)
    torch.testing.assert_close(mean, x_0, rtol=0, atol=1e-4)
    assert log_variance.isfinite().all()
    assert process.vb_terms_bpd(output, x_0, x_t, t).isfinite().all() and process.prior_bpd(x_0).isfinite().all()


@pytest.mark.parametrize("shape", [(5, 2), (5, 3, 4), (5, 1, 4, 4), (0, 3, 4, 4)])
def test_data_of_any_shape_go_through(shape):
    process = process_of(var_type="fixed_large", levels=None)
    x, t = torch.zeros(shape), torch.arange(shape[0])
    assert all(part.shape == x.shape for part in process.denoised(x, process.q_sample(x, t, x), t))
    assert process.vb_terms_bpd(x, x, x, t).shape == process.prior_bpd(x).shape == shape[:1]


@pytest.mark.parametrize("x_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("out_dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_networks_are_read_in_float32(x_dtype, out_dtype):
    process = process_of(var_type="learned_range")
    x_t, output, t = torch.zeros(2, 3, dtype=x_dtype), torch.zeros(2, 6, dtype=out_dtype), torch.tensor([0, 9])
    assert {part.dtype for part in process.p_mean_variance(output, x_t, t)} == {torch.float32}


def test_nan_is_passed_on_to_its_own_example_only():
    process = process_of(var_type="learned_range")
    x = torch.zeros(3, 2, 4)
    output = torch.zeros(3, 4, 4)
    output[1, :, 2] = torch.nan
    for clip in [False, True]:
        t = torch.tensor([0, 0, 5])
        assert process.vb_terms_bpd(output, x, x, t, clip=clip).isnan().tolist() == [False, True, False]
        assert process.p_mean_variance(output, x, t, clip).mean.isnan().sum() == 2


X = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    "call, complaint",
    [
        (lambda p: p.q_sample(X, torch.tensor([0]), X), r"t must have the shape \[2\].*got \[1\]"),
        (lambda p: p.q_sample(X, torch.tensor(3), X), r"t must have the shape \[2\].*got \[\]"),
        (lambda p: p.q_sample(X, torch.tensor([0, 100]), X), r"t must lie in 0 \.\. 99, got 0 \.\. 100"),
        (lambda p: p.q_sample(X, torch.tensor([-1, 5]), X), r"t must lie in 0 \.\. 99, got -1 \.\. 5"),
        (lambda p: p.q_sample(X, torch.tensor([0, 1]), X[:, :1]), r"noise must have the shape of x_0"),
        (lambda p: p.q_posterior(X[:1], X, torch.tensor([0, 1])), r"x_0 must have the shape of x_t"),
        (lambda p: p.vb_terms_bpd(X, X[..., :1], X, torch.tensor([0, 1])), r"x_0 must have the shape of x_t"),
        (lambda p: p.p_mean_variance(torch.zeros(2, 6, 4), X, torch.tensor([0, 1])), r"\[2, 3, 4\].*'fixed_small'"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call(process_of(num_timesteps=100))


def test_a_learned_variance_needs_twice_the_channels():
    with pytest.raises(ValueError, match=r"\[2, 6, 4\].*'learned_range'; got \[2, 3, 4\]"):
        process_of(var_type="learned_range").p_mean_variance(X, X, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "kw, complaint",
    [
        ({"mean_type": "eps"}, "mean_type must be one of epsilon, x_0, previous_x, v; got 'eps'"),
        ({"var_type": "FIXED"}, "var_type must be one of fixed_small, .*; got 'FIXED'"),
        ({"decoder": "erf"}, "decoder must be one of tanh, exact; got 'erf'"),
        ({"levels": 1}, "levels must be at least 2"),
    ],
)
def test_unknown_choices_are_refused_with_the_known_ones(kw, complaint):
    with pytest.raises(ValueError, match=complaint):
        process_of(**kw)


# -- the object --------------------------------------------------------------------------------------------------------


def test_every_table_is_a_frozen_float64_attribute():
    process, expected = process_of(), tables(SCHEDULES["cosine"](1000))
    for name in Tables._fields:
        table = getattr(process, name)
        np.testing.assert_array_equal(table, getattr(expected, name))
        assert table.dtype == np.float64 and not table.flags.writeable
    with pytest.raises(FrozenInstanceError):
        process.betas = expected.betas
    with pytest.raises(AttributeError, match="alphas_cumprd"):
        _ = process.alphas_cumprd


def test_tables_are_gathered_in_float64_and_rounded_once():
    process, t = process_of(), torch.tensor([0, 999])
    assert process.extract("alphas_cumprod", t, torch.zeros(2, 3)).tolist() == [
        [np.float32(process.alphas_cumprod[0])],
        [np.float32(process.alphas_cumprod[999])],
    ]
    assert (
        process.extract("alphas_cumprod", t, torch.zeros(2, 3, dtype=torch.float64))[1, 0]
        == process.alphas_cumprod[999]
    )


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p)), lambda p: p.to("cpu")])
def test_copies_compute_the_same(copied):
    process = process_of().respaced([3, 700])
    other, t = copied(process), torch.tensor([0, 1])
    x = torch.ones(2, 3)
    assert torch.equal(other.q_sample(x, t, x), process.q_sample(x, t, x))
    assert other.timestep_map.tolist() == [3, 700]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_same_numbers_come_out():
    process = process_of(var_type="learned_range")
    x_0, noise, t, output = (golden(name) for name in ["x_start", "noise", "t", "model_output"])
    x_t = process.q_sample(x_0, t, noise)
    here = process.vb_terms_bpd(output, x_0, x_t, t)
    there = process.to("cuda").vb_terms_bpd(output.cuda(), x_0.cuda(), x_t.cuda(), t.cuda())
    torch.testing.assert_close(there.cpu(), here, rtol=2e-4, atol=1e-5)
