import copy
from functools import partial
from typing import Any

import pytest
import torch

from harness.diffusion import OBJECTIVES, SCHEDULES, TIMESTEP_SAMPLERS, GaussianDiffusion
from harness.methods.averages import exponential
from harness.methods.base import Batch
from harness.methods.gaussian import GaussianMethod
from harness.models import UNet


def make_method(**options) -> GaussianMethod:
    torch.manual_seed(0)
    network = UNet(1, 8, 2, 1, [], channel_mult=(1,))
    for weight in network.parameters():  # zero-initialised layers would hide most gradients
        torch.nn.init.normal_(weight, std=0.05)
    process = GaussianDiffusion(SCHEDULES["cosine"](20), mean_type="epsilon", var_type="learned_range", levels=17)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=0)
    defaults: dict[str, Any] = {
        "learning_rate": lambda step: 1e-2,
        "averages": {"ema": exponential(0.9)},
        "timestep_scale": 50.0,
    }
    timesteps = TIMESTEP_SAMPLERS["uniform"](20)
    return GaussianMethod(network, process, partial(OBJECTIVES["hybrid"]), timesteps, optimizer, **(defaults | options))


def batch(size: int = 6):
    generator = torch.Generator().manual_seed(1)
    x_0 = torch.rand(size, 1, 8, 8, generator=generator) * 2 - 1
    t = torch.randint(0, 20, (size,), generator=generator)
    return Batch.whole(x_0), t, torch.ones(size), torch.randn(size, 1, 8, 8, generator=generator)


def test_a_step_lowers_the_loss_on_its_own_batch():
    method = make_method()
    losses = [float(method.update(step, *batch())[0]["loss"].mean()) for step in range(10)]
    assert losses[-1] < losses[0]


def test_microbatches_add_up_to_the_gradient_of_the_whole_batch():
    whole, parts = (
        make_method(learning_rate=lambda step: 0.0),
        make_method(learning_rate=lambda step: 0.0, microbatch=4),
    )
    (first, _), (second, _) = whole.update(0, *batch()), parts.update(0, *batch())
    assert torch.allclose(first["loss"], second["loss"], rtol=1e-5)
    assert second["loss"].shape == (6,)
    for one, other in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_the_ema_starts_as_a_copy_and_moves_by_its_rate():
    method = make_method()
    before = copy.deepcopy(method.network.state_dict())
    method.update(0, *batch())
    for name, value in method.ema.state_dict().items():
        assert torch.allclose(value, 0.9 * before[name] + 0.1 * method.network.state_dict()[name], atol=1e-6)


def test_loss_weights_scale_the_gradient_and_not_the_terms():
    method, doubled = (make_method(learning_rate=lambda step: 0.0) for _ in range(2))
    examples, t, weight, noise = batch()
    once, grad_norm = method.update(0, examples, t, weight, noise)
    twice, doubled_grad_norm = doubled.update(0, examples, t, 2 * weight, noise)
    assert torch.equal(once["loss"], twice["loss"])
    assert float(doubled_grad_norm) == pytest.approx(2 * float(grad_norm), rel=1e-5)


def test_clipping_bounds_the_gradient_and_reports_the_norm_before():
    method = make_method(grad_clip=0.01, learning_rate=lambda step: 0.0)
    reported = float(method.update(0, *batch())[1])
    clipped = torch.nn.utils.get_total_norm([w.grad for w in method.network.parameters() if w.grad is not None])
    assert reported > 0.011
    assert float(clipped) == pytest.approx(0.01, rel=1e-3)


def test_the_learning_rate_of_a_step_is_the_functions():
    method = make_method(learning_rate=lambda step: 0.5 / (step + 1))
    method.update(4, *batch())
    assert method.learning_rates() == {"lr": 0.1}


def test_the_network_sees_rescaled_timesteps():
    method, seen = make_method(), []
    method.ema.forward = lambda x, t, y: seen.append(t) or torch.zeros(len(x), 2, 8, 8)
    method.predict("ema")(torch.zeros(2, 1, 8, 8), torch.tensor([0, 19]))
    assert seen[0].tolist() == [0.0, 950.0]


def test_the_state_goes_on_where_it_was():
    method, other = make_method(), make_method()
    for step in range(3):
        method.update(step, *batch())
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    method.update(3, *batch())
    other.update(3, *batch())
    for one, two in zip(method.ema.parameters(), other.ema.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("begun_fused", [True, False])
def test_a_checkpoint_is_continued_by_the_optimizers_own_implementation_whatever_it_was_begun_with(begun_fused):
    def fused(value: bool | None) -> GaussianMethod:
        method = make_method()
        for group in method.optimizer.param_groups:
            group["fused"] = value
        return method

    begun, other, same = fused(begun_fused), fused(not begun_fused), fused(begun_fused)
    begun.update(0, *batch())
    for method in (other, same):
        method.load_state_dict(copy.deepcopy(begun.state_dict()))
    assert [group["fused"] for group in other.optimizer.param_groups] == [not begun_fused]
    for method in (begun, other, same):
        method.update(1, *batch())
    for weight, by_other, by_same in zip(*(m.network.parameters() for m in (begun, other, same)), strict=True):
        assert torch.equal(weight, by_same)
        torch.testing.assert_close(weight, by_other, rtol=1e-5, atol=1e-6)


def test_bf16_autocast_computes_the_loss_in_float32():
    terms, _ = make_method(autocast=torch.bfloat16).update(0, *batch())
    assert terms["loss"].dtype == torch.float32
    assert torch.isfinite(terms["loss"]).all()
