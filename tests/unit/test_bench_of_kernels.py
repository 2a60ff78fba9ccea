"""How the bench of kernels counts the operations of a step's convolutions; nothing is timed here."""

import pytest
import torch
from torch import nn

from benchmarks.kernels import Convolution
from harness.models.resampling import Upsample


def upsample(*, fused: bool) -> Upsample:
    layer = Upsample(4)
    layer.fused = fused
    return layer


IMAGES = torch.Size([2, 4, 8, 8])
ONE_PASS = 2 * 2 * 4 * 4 * 9 * 8 * 8  # two operations for each image, output and input channel, tap and pixel


@pytest.mark.parametrize(
    ("layer", "differentiates_input", "flops"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), True, 3 * ONE_PASS),
        (nn.Conv2d(4, 4, 3, padding=1), False, 2 * ONE_PASS),
        (upsample(fused=False), True, 3 * 4 * ONE_PASS),
        (upsample(fused=True), True, 3 * ONE_PASS * 4 * 4 / 9 * 9**2 / 8**2),  # four 2x2 kernels on 9x9 pixels
    ],
    ids=["convolution", "first", "upsampling", "upsampling, fused"],
)
def test_operations_are_those_of_the_forward_and_backward_pass(layer, differentiates_input, flops):
    assert Convolution(layer, IMAGES, differentiates_input).flops() == pytest.approx(flops)
