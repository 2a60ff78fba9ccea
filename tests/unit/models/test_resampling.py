"""Doubling the size before a convolution, in one step and in two."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.metrics.flops import training_step_compute
from harness.models.resampling import Upsample, doubled_and_convolved


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 2, 1, 5), (3, 1, 2, 1)])
def test_a_convolution_of_the_doubled_image_is_computed_from_the_small_one(shape):
    torch.manual_seed(0)
    inputs = [drawn(*shape), drawn(5, shape[1], 3, 3), drawn(5)]
    x, weight, bias = inputs
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)
    computed = doubled_and_convolved(x, weight, bias)
    torch.testing.assert_close(computed, expected, rtol=1e-13, atol=1e-13)
    upstream = torch.randn_like(expected)
    gradients = [torch.autograd.grad(output, inputs, upstream) for output in (computed, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_it_can_be_differentiated_twice():
    torch.manual_seed(0)
    assert torch.autograd.gradgradcheck(doubled_and_convolved, (drawn(1, 2, 2, 2), drawn(2, 2, 3, 3), drawn(2)))


def test_a_fused_layer_has_the_same_weights_and_the_multiplications_are_counted_as_published():
    torch.manual_seed(0)
    layer, x = Upsample(4), torch.randn(2, 4, 3, 3)
    published, names, compute = layer(x), list(layer.state_dict()), training_step_compute(layer, x)
    layer.fused = True
    assert not torch.equal(layer(x), published)  # another order of the sums: the last bits differ
    torch.testing.assert_close(layer(x), published)
    assert (list(layer.state_dict()), training_step_compute(layer, x)) == (names, compute)


def test_a_channels_last_image_gives_the_same_pixels():
    torch.manual_seed(0)
    layer, x = Upsample(4), torch.randn(2, 4, 3, 3)
    layer.fused = True
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), layer(x))
