"""Objectives against the reference's four losses, and where their gradients go."""

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.diffusion import MEAN_TYPES, OBJECTIVES, SCHEDULES, VAR_TYPES, GaussianDiffusion, training_terms

GOLDEN = dict(np.load(Path(__file__).parents[2] / "golden" / "steps.npz"))
GOLDEN_SCHEDULES = sorted({name.split("/")[0] for name in GOLDEN if "/" in name})  # others have no vectors
MEAN = {"epsilon": "EPSILON", "x_0": "START_X", "previous_x": "PREVIOUS_X"}


def golden(name):
    return torch.from_numpy(GOLDEN[name])


def batch(process, dtype=torch.float32):
    """x_0, x_t, t, noise and a network's output, all from the golden inputs."""
    x_0, noise, t, output = golden("x_start"), golden("noise"), golden("t"), golden("model_output")
    x_0, noise, output = x_0.to(dtype), noise.to(dtype), output.to(dtype)
    if not process.learns_variance:
        output = output[:, :3]
    return output.clone().requires_grad_(), x_0, process.q_sample(x_0, t, noise), t, noise


def process_of(mean_type="epsilon", var_type="learned_range", schedule="cosine", num_timesteps=1000):
    return GaussianDiffusion(SCHEDULES[schedule](num_timesteps), mean_type=mean_type, var_type=var_type)


@pytest.mark.parametrize("schedule", GOLDEN_SCHEDULES)
@pytest.mark.parametrize("mean_type", MEAN)
@pytest.mark.parametrize("var_type", VAR_TYPES)
@pytest.mark.parametrize("loss", ["MSE", "RESCALED_MSE", "KL", "RESCALED_KL"])
def test_the_terms_add_up_to_the_references_losses(schedule, mean_type, var_type, loss):
    process = process_of(mean_type, var_type, schedule)
    terms = training_terms(process, *batch(process), learn_variance=process.learns_variance)
    T = process.num_timesteps
    prefix = f"{schedule}/{MEAN[mean_type]}/{var_type.upper()}/loss={loss}"
    reference = GOLDEN[f"{prefix}/loss"]
    if loss == "KL":
        _assert_vb(terms["vb"], reference)
    elif loss == "RESCALED_KL":
        _assert_vb(terms["vb"], reference / T)
    else:
        vb_weight = process.learns_variance * {"MSE": 1, "RESCALED_MSE": T / 1000}[loss]
        _assert_vb(terms["mse"] + vb_weight * terms["vb"], reference)
    if f"{prefix}/mse" in GOLDEN:
        np.testing.assert_allclose(terms["mse"].detach(), GOLDEN[f"{prefix}/mse"], rtol=1e-6)
    if f"{prefix}/vb" in GOLDEN:
        _assert_vb(terms["vb"], GOLDEN[f"{prefix}/vb"])


def _assert_vb(ours, reference):
    ours, decoder = ours.detach().numpy(), GOLDEN["t"] == 0
    np.testing.assert_allclose(ours[~decoder], reference[~decoder], rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(ours[decoder], reference[decoder], rtol=1e-2)


def test_named_objectives_are_the_sums_that_the_papers_write():
    fixed, learned = process_of(var_type="fixed_small"), process_of()
    plain = training_terms(learned, *batch(learned), learn_variance=True)
    torch.testing.assert_close(OBJECTIVES["simple"](fixed, *batch(fixed))["loss"], plain["mse"])
    hybrid = OBJECTIVES["hybrid"](learned, *batch(learned), lambda_vlb=0.002)
    torch.testing.assert_close(hybrid["loss"], plain["mse"] + 0.002 * 1000 * plain["vb"])
    torch.testing.assert_close(OBJECTIVES["vlb"](learned, *batch(learned))["loss"], 1000 * plain["vb"])


def test_the_scale_of_the_bound_is_the_chains_own_length():
    process = process_of(num_timesteps=4000)
    terms = OBJECTIVES["hybrid"](process, *batch(process))
    torch.testing.assert_close(terms["loss"], terms["mse"] + 4 * terms["vb"])  # 0.001 * 4000


@pytest.mark.parametrize("mean_type", MEAN_TYPES)
@pytest.mark.parametrize("var_type", ["learned", "learned_range"])
def test_the_bound_in_l_hybrid_trains_the_variance_alone(mean_type, var_type):
    process = process_of(mean_type, var_type)
    output, *rest = batch(process, torch.float64)
    terms = OBJECTIVES["hybrid"](process, output, *rest)
    (of_loss,) = torch.autograd.grad(terms["loss"].sum(), output, retain_graph=True)
    (of_mse,) = torch.autograd.grad(terms["mse"].sum(), output, retain_graph=True)
    (of_vb,) = torch.autograd.grad(terms["vb"].sum(), output)
    assert torch.equal(of_loss[:, :3], of_mse[:, :3]) and of_mse[:, :3].abs().min() > 0
    assert (of_vb[:, :3] == 0).all() and (of_mse[:, 3:] == 0).all()
    torch.testing.assert_close(of_loss[:, 3:], of_vb[:, 3:])  # lambda T = 1
    assert of_vb[2:, 3:].abs().min() > 0  # t = 0 may sit in the decoder's clamp


def test_l_vlb_trains_mean_and_variance():
    process = process_of()
    output, *rest = batch(process)
    (gradient,) = torch.autograd.grad(OBJECTIVES["vlb"](process, output, *rest)["loss"].sum(), output)
    assert gradient[2:].abs().min() > 0 and gradient.isfinite().all()


@pytest.mark.parametrize("var_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("mean_type", MEAN_TYPES)
def test_mse_is_zero_for_the_network_that_predicts_its_target(mean_type, var_type):
    process = process_of(mean_type, var_type)
    _, x_0, x_t, t, noise = batch(process, torch.float64)
    perfect = process.mean_target(x_0, x_t, t, noise)
    prediction = process.p_mean_variance(perfect, x_t, t, clip=False)
    torch.testing.assert_close(prediction.x_0, x_0, rtol=0, atol=1e-6)  # previous_x divides by coef1 = 2e-3 and less
    assert (OBJECTIVES["simple"](process, perfect, x_0, x_t, t, noise)["loss"] == 0).all()


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_one_loss_on_x_0_whatever_is_predicted(gamma):
    x_0_error = torch.linspace(-1, 1, 8 * 3 * 8 * 8, dtype=torch.float64).view(8, 3, 8, 8)
    losses = {}
    for mean_type in ["epsilon", "v", "x_0"]:
        process = process_of(mean_type, "fixed_small")
        _, x_0, x_t, t, noise = batch(process, torch.float64)
        wrong_x_0 = x_0 + x_0_error
        output = process.mean_target(wrong_x_0, x_t, t, process.predict_eps(wrong_x_0, x_t, t))
        losses[mean_type] = OBJECTIVES["min_snr"](process, output, x_0, x_t, t, noise, gamma=gamma)["loss"]
    snr = torch.tensor(process.snr)[t]
    torch.testing.assert_close(losses["x_0"], snr.clamp(max=gamma) * x_0_error.square().mean((1, 2, 3)))
    torch.testing.assert_close(losses["epsilon"], losses["x_0"])
    torch.testing.assert_close(losses["v"], losses["x_0"])


@pytest.mark.parametrize(
    "name, kw, complaint",
    [
        ("simple", {"var_type": "learned_range"}, "'simple' never trains the variance"),
        ("min_snr", {"var_type": "learned"}, "'min_snr' never trains the variance"),
        ("hybrid", {"var_type": "fixed_large"}, "needs var_type learned or learned_range, got 'fixed_large'"),
        ("min_snr", {"mean_type": "previous_x", "var_type": "fixed_small"}, "needs mean_type epsilon, v or x_0"),
    ],
)
def test_objectives_refuse_a_process_that_they_cannot_train(name, kw, complaint):
    process = process_of(**kw)
    with pytest.raises(ValueError, match=complaint):
        OBJECTIVES[name](process, *batch(process))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_gives_its_terms_by_example(name):
    process = process_of(var_type="learned_range" if name in ("hybrid", "vlb") else "fixed_small")
    terms = OBJECTIVES[name](process, *batch(process))
    assert list(terms) == ["loss", "mse", "vb"]
    assert all(term.shape == (8,) and term.isfinite().all() for term in terms.values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_nan_spoils_the_loss_of_its_own_example_only(name):
    process = process_of(var_type="learned_range" if name in ("hybrid", "vlb") else "fixed_small")
    output, *rest = batch(process)
    spoilt = output.detach().clone()
    spoilt[[0, 5], :, 1, 1] = torch.nan  # one at the decoder, one at a KL
    loss = OBJECTIVES[name](process, spoilt, *rest)["loss"]
    assert loss.isnan().nonzero().flatten().tolist() == [0, 5]


@pytest.mark.parametrize("name", ["simple", "min_snr"])
def test_a_bound_that_is_only_logged_has_its_value_and_no_graph(name):
    process = process_of(var_type="fixed_large")
    terms, plain = (
        OBJECTIVES[name](process, *batch(process)),
        training_terms(process, *batch(process), learn_variance=False),
    )
    assert torch.equal(terms["vb"], plain["vb"]) and torch.equal(terms["mse"], plain["mse"])
    assert plain["vb"].requires_grad and not terms["vb"].requires_grad and terms["loss"].requires_grad
