"""Resampling by FIR against the published code's values and against its closed forms."""

import pytest
import torch

from harness.models.fir import conv_downsample, downsample, upsample


def test_resampling_is_that_of_the_published_code(vectors, assert_near):
    blocks = vectors("ddgan_blocks")
    assert_near(upsample(blocks["x"]), blocks["up"], scale=2e-6)
    assert_near(downsample(blocks["x"]), blocks["down"], scale=2e-6)
    assert_near(conv_downsample(blocks["x"], blocks["weight"]), blocks["conv_down"], scale=2e-6)


@pytest.mark.parametrize("resample", [upsample, downsample])
def test_a_constant_stays_itself_inside_and_darkens_at_the_border_of_zeros(resample):
    inner = resample(torch.full((1, 2, 8, 8), 3.0, dtype=torch.float64))
    assert (inner[:, :, 1:-1, 1:-1] == 3).all()
    torch.testing.assert_close(inner[0, 0, 0, 0].item(), 3 * (7 / 8 if resample is downsample else 3 / 4) ** 2)


def test_a_single_pixel_becomes_the_kernel():
    pixel = torch.zeros(1, 1, 5, 5)
    pixel[0, 0, 2, 2] = 16
    taps = torch.tensor([1.0, 3, 3, 1])
    expected = torch.zeros(10, 10)
    expected[3:7, 3:7] = torch.outer(taps, taps)
    assert torch.equal(upsample(pixel)[0, 0], expected)


def test_doubling_is_four_times_the_transpose_of_halving():
    large, small = torch.randn(2, 3, 8, 12, dtype=torch.float64), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(4 * (downsample(large) * small).sum(), (large * upsample(small)).sum())


def test_a_convolution_that_does_nothing_leaves_halving_alone():
    x, identity = torch.randn(2, 3, 8, 8), torch.eye(3)[:, :, None, None]
    bias = torch.tensor([1.0, 2, 3])
    torch.testing.assert_close(conv_downsample(x, identity, bias), downsample(x) + bias[:, None, None])
    same_in_the_middle = torch.zeros(3, 3, 3, 3)
    same_in_the_middle[:, :, 1:2, 1:2] = identity
    torch.testing.assert_close(conv_downsample(x, same_in_the_middle), downsample(x))


@pytest.mark.parametrize(("size", "half"), [(16, 8), (28, 14), (14, 7), (7, 3)])
def test_an_odd_size_is_halved_and_rounded_down(size, half):
    x = torch.randn(1, 2, size, size)
    assert downsample(x).shape == conv_downsample(x, torch.randn(2, 2, 3, 3)).shape == (1, 2, half, half)


def test_the_gradient_of_a_gradient_is_right():
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: downsample(torch.tanh(x)), x)
    assert torch.autograd.gradgradcheck(lambda x: upsample(torch.tanh(x)), x)
