"""The gradient noise scale on a linear model, whose gradients' mean and covariance are chosen."""

import math

import pytest
import torch

from harness.metrics.noise_scale import GradientNoiseScale, measure_noise_scale

MEAN = torch.tensor([1.0, -2.0, 0.5, 0.0])
STD = torch.tensor([3.0, 1.0, 2.0, 4.0])
SIGNAL, NOISE = float(MEAN.square().sum()), float(STD.square().sum())  # |G|^2 = 5.25, tr(Sigma) = 30


def expected_squared_norm(batch_size: int) -> float:
    return SIGNAL + NOISE / batch_size


def test_expected_norms_give_the_noise_scale_exactly():
    scale = GradientNoiseScale(small_batch=8, big_batch=64, decay=0.9)
    for _ in range(3):
        scale.update(expected_squared_norm(8), expected_squared_norm(64))
        assert scale.value == pytest.approx(NOISE / SIGNAL, rel=1e-12)


@pytest.mark.slow
def test_measured_on_a_linear_model_it_is_the_trace_over_the_squared_mean():
    # The loss is x . w for x ~ N(MEAN, STD^2): each example's gradient is x itself.
    generator = torch.Generator().manual_seed(0)
    weights = [
        torch.zeros(3, requires_grad=True),
        torch.zeros(1, requires_grad=True),
        torch.zeros(2, requires_grad=True),
    ]

    def losses():
        for _ in range(8 * 1000 + 3):  # the last 3 fill no big batch
            x = MEAN + STD * torch.randn(4, 4, generator=generator)
            yield (x @ torch.cat(weights[:2])).mean()  # the third has no part in it

    measured = measure_noise_scale(weights, losses(), batch_size=4, small_per_big=8)
    assert measured == pytest.approx(NOISE / SIGNAL, rel=0.03)
    assert all(w.grad is None for w in weights)


def test_averages_are_of_numerator_and_denominator_not_of_quotients():
    scale = GradientNoiseScale(small_batch=1, big_batch=2, decay=0.5)
    scale.update(10.0, 6.0)  # |G|^2 = 2, tr = 8
    scale.update(9.0, 8.0)  # |G|^2 = 7, tr = 2
    assert scale.value == pytest.approx((0.5 * 8 + 2) / (0.5 * 2 + 7))


def test_without_decay_all_updates_weigh_the_same():
    scale = GradientNoiseScale(small_batch=1, big_batch=2, decay=1.0)
    scale.update(10.0, 6.0)
    scale.update(9.0, 8.0)
    assert scale.value == pytest.approx((8 + 2) / (2 + 7))


def test_there_is_no_value_before_a_signal_is_seen():
    scale = GradientNoiseScale(small_batch=1, big_batch=2)
    assert math.isnan(scale.value)
    scale.update(10.0, 4.0)  # |G|^2 estimated as -2
    assert math.isnan(scale.value)


@pytest.mark.parametrize(("wrong", "said"), [((8, 8, 0.9), "small_batch < big_batch"), ((1, 8, 0.0), "decay")])
def test_impossible_settings_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        GradientNoiseScale(*wrong)
