"""The U-Net against the reference's outputs and sizes, and what it refuses."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from harness.metrics.flops import training_step_compute
from harness.models import MODELS, SuperResUNet, UNet
from harness.models.attention import WeightedSum
from harness.models.unet import ResBlock, norm_groups, timestep_embedding, use_fused_kernels

GOLDEN = Path(__file__).parents[2] / "golden"
TINY = dict(
    in_channels=3, model_channels=32, out_channels=6, num_res_blocks=1, attention_resolutions=(2,), channel_mult=(1, 2)
)


def golden(name: str, **changes):
    """The reference's weights in our network, with its inputs and its output."""
    arrays = np.load(GOLDEN / f"unet_{name}.npz")
    unet = UNet(**json.loads((GOLDEN / f"unet_{name}.json").read_text()) | changes).eval()
    state = {key.removeprefix("state/"): torch.from_numpy(arrays[key]).float() for key in arrays if "state/" in key}
    unet.load_state_dict(state)
    inputs = [torch.from_numpy(arrays[key]) for key in ("x", "timesteps", "y") if key in arrays]
    return unet, inputs, torch.from_numpy(arrays["output"])


def relative_error(output: torch.Tensor, expected: torch.Tensor) -> float:
    return ((output - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name", ["uncond", "class_cond"])
@torch.no_grad()
def test_the_output_is_the_references(name):
    unet, inputs, expected = golden(name)
    assert relative_error(unet(*inputs), expected) < 2e-5


@torch.no_grad()
def test_autocast_changes_the_output_by_bfloat16_rounding_only_and_not_its_type():
    unet, inputs, expected = golden("uncond")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = unet(*inputs)
    assert output.dtype == torch.float32
    assert 1e-4 < relative_error(output, expected) < 3e-2


class SensitiveTypes(TorchDispatchMode):
    """Note the types in which GroupNorm's statistics and the softmax are computed."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.native_group_norm, torch.ops.aten._softmax):
            self.seen.add((func.overloadpacket.__name__, args[0].dtype))
        return func(*args, **kwargs or {})


@torch.no_grad()
def test_in_half_precision_normalisation_and_softmax_stay_in_float32():
    unet, inputs, expected = golden("uncond")
    with SensitiveTypes() as types:
        output = unet.to(torch.bfloat16)(*inputs)
    assert types.seen == {("native_group_norm", torch.float32), ("_softmax", torch.float32)}
    assert relative_error(output, expected) < 3e-2


@pytest.mark.parametrize(
    ("width", "channel_mult", "num_res_blocks", "attention", "heads", "changes", "parameters", "tensors"),
    [  # papers.md A.7, counted from the reference's code
        (64, (1, 2, 3, 4), 3, (4, 8), 4, {}, 30_303_494, 450),
        (96, (1, 2, 3, 4), 3, (4, 8), 4, {}, 68_126_598, 450),
        (128, (1, 2, 3, 4), 3, (4, 8), 4, {}, 121_063_942, 450),
        (192, (1, 2, 3, 4), 3, (4, 8), 4, {}, 272_281_350, 450),
        (128, (1, 2, 3, 4), 3, (4, 8), 4, {"out_channels": 3}, 121_060_483, 450),
        (128, (1, 2, 3, 4), 3, (4, 8), 4, {"num_classes": 1000}, 121_575_942, 451),
        (192, (1, 2, 3, 4), 3, (4, 8), 4, {"num_classes": 1000}, 273_049_350, 451),
        (128, (1, 2, 2, 2), 3, (2, 4), 4, {}, 52_546_438, 446),
        (128, (1, 1, 2, 2, 4, 4), 2, (16,), 1, {"use_scale_shift_norm": False}, 113_676_678, 426),
        (128, (1, 2, 3, 4), 2, (4, 8), 4, {"out_channels": 3}, 92_025_731, 338),
    ],
)
def test_parameters_and_tensors_are_as_many_as_the_references(
    width, channel_mult, num_res_blocks, attention, heads, changes, parameters, tensors
):
    arguments = {"out_channels": 6, "use_scale_shift_norm": True, "num_heads": heads} | changes
    with torch.device("meta"):
        unet = UNet(
            in_channels=3,
            model_channels=width,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention,
            channel_mult=channel_mult,
            **arguments,
        )
    assert sum(p.numel() for p in unet.parameters()) == parameters
    assert len(unet.state_dict()) == tensors


def test_the_time_embedding_has_its_cosines_first_and_a_zero_where_the_width_is_odd():
    embedding = timestep_embedding(torch.tensor([0.0, 2.5]), 5)
    frequencies = np.array([1.0, 10_000**-0.5])
    expected = [1, 1, 0, 0, 0], [*np.cos(2.5 * frequencies), *np.sin(2.5 * frequencies), 0]
    np.testing.assert_allclose(embedding, expected, atol=1e-6)


@torch.no_grad()
def test_without_scale_shift_the_embedding_is_added_before_the_normalisation():
    torch.manual_seed(0)
    block = ResBlock(32, 8, 64, dropout=0.0, scale_shift=False, use_checkpoint=False)
    torch.nn.init.normal_(block.out_layers[3].weight)
    x, emb = torch.randn(2, 32, 4, 4), torch.randn(2, 8)
    h = block.in_layers[2](F.silu(F.group_norm(x, 32))) + block.emb_layers[1](F.silu(emb))[:, :, None, None]
    expected = block.skip_connection(x) + block.out_layers[3](F.silu(F.group_norm(h, 32)))
    torch.testing.assert_close(block(x, emb), expected)


def test_a_new_network_predicts_nothing():
    unet = UNet(**TINY)
    assert unet(torch.randn(2, 3, 8, 8), torch.tensor([0, 9])).count_nonzero() == 0


@pytest.mark.parametrize(("width", "groups"), [(32, 32), (96, 32), (48, 24), (40, 20), (20, 20), (34, 17), (37, 1)])
def test_groups_are_32_or_the_largest_divisor_below(width, groups):
    assert norm_groups(width) == groups


def test_the_groups_in_use_can_be_recorded():
    assert UNet(**TINY).norm_groups == {32}
    assert UNet(**TINY | {"model_channels": 24}).norm_groups == {24, 32}  # widths 24, 48, 72 and 96


@torch.no_grad()
def test_dropout_acts_in_training_only():
    unet, inputs, expected = golden("uncond", dropout=0.5)
    assert relative_error(unet(*inputs), expected) < 2e-5
    unet.train()
    assert not torch.equal(unet(*inputs), unet(*inputs))


def test_activation_checkpointing_gives_the_same_output_and_gradients_with_dropout_too():
    results = []
    for use_checkpoint in (False, True):
        unet, inputs, _ = golden("class_cond", dropout=0.2, use_checkpoint=use_checkpoint)
        torch.manual_seed(3)
        output = unet.train()(*inputs)
        output.square().mean().backward()
        results.append([output] + [parameter.grad for parameter in unet.parameters()])
    assert all(torch.equal(plain, recomputed) for plain, recomputed in zip(*results, strict=True))


@pytest.mark.parametrize("num_pixels", [16, 64, 256])
def test_weighted_sums_have_the_bits_and_the_gradients_of_autograds_own_product(num_pixels):
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(8, 16, num_pixels, generator=generator)
    logits = torch.randn(8, num_pixels, num_pixels, generator=generator)
    gradient = torch.randn(8, 16, num_pixels, generator=generator)

    results = []
    for weighted_sum in (WeightedSum.apply, lambda v, weights: torch.bmm(v, weights.mT)):
        inputs = [tensor.clone().requires_grad_() for tensor in (v, logits)]
        output = weighted_sum(inputs[0], inputs[1].softmax(dim=-1))
        results.append((output, *torch.autograd.grad(output, inputs, gradient)))

    assert all(map(torch.equal, *results))


def test_weighted_sums_can_be_differentiated_twice():
    generator = torch.Generator().manual_seed(0)
    v, weights = (
        torch.rand(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3, 4), (2, 4, 4))
    )

    assert torch.autograd.gradgradcheck(WeightedSum.apply, (v, weights))


def test_fused_attention_gives_the_output_the_gradients_and_the_arithmetic_of_the_published_one():
    torch.manual_seed(0)
    published = UNet(3, 8, 6, 1, [1], num_heads=2, channel_mult=(1, 2))
    for weight in published.parameters():  # zero-initialised layers would hide most of it
        torch.nn.init.normal_(weight, std=0.1)
    fused = copy.deepcopy(published)
    use_fused_kernels(fused)
    assert not published.middle_block[1].fused and fused.middle_block[1].fused
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    outputs = [network(x, t) for network in (published, fused)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    for output in outputs:
        output.square().sum().backward()
    rounding = 1e-6 * max(float(weight.grad.abs().max()) for weight in published.parameters())
    for mine, theirs in zip(fused.parameters(), published.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=rounding)
    assert training_step_compute(fused, x, t) == training_step_compute(published, x, t)


def test_activation_checkpointing_stores_fewer_activations():
    stored = []
    for use_checkpoint in (False, True):
        unet, inputs, _ = golden("uncond", use_checkpoint=use_checkpoint)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: (sizes.append(x.nelement()), x)[1], lambda x: x
        ):
            unet(*inputs)
        stored.append(sum(sizes))
    assert stored[1] < stored[0] / 2


@torch.no_grad()
def test_heads_on_the_way_up_are_set_apart():
    unet, inputs, expected = golden("uncond", num_heads_upsample=2)
    assert relative_error(unet(*inputs), expected) < 2e-5
    unet, inputs, expected = golden("uncond", num_heads_upsample=1)
    assert relative_error(unet(*inputs), expected) > 1e-3


@torch.no_grad()
def test_the_image_need_not_be_square():
    unet, (x, timesteps), _ = golden("uncond")
    assert unet(x[:, :, :8, :], timesteps).shape == (3, 6, 8, 32)


@torch.no_grad()
def test_a_nan_stays_in_its_example():
    unet, (x, timesteps), expected = golden("uncond")
    x = x.clone()
    x[1, 0, 0, 0] = float("nan")
    output = unet(x, timesteps)
    assert output[1].isnan().any()
    assert relative_error(output[[0, 2]], expected[[0, 2]]) < 2e-5


@torch.no_grad()
def test_the_upsampler_sees_the_small_image_bilinearly_resized_as_further_channels():
    torch.manual_seed(0)
    upsampler = SuperResUNet(**TINY).eval()
    torch.nn.init.normal_(upsampler.out[-1].weight)
    unet = UNet(**TINY | {"in_channels": 6}).eval()
    unet.load_state_dict(upsampler.state_dict())
    x, low_res, timesteps = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 4, 4), torch.tensor([0, 9])
    resized = F.interpolate(low_res, (16, 16), mode="bilinear", align_corners=False)
    output = upsampler(x, timesteps, low_res=low_res)
    assert torch.equal(output, unet(torch.cat([x, resized], dim=1), timesteps))


@pytest.mark.parametrize(
    ("changes", "x", "timesteps", "y", "message"),
    [
        ({}, (2, 1, 8, 8), (2,), None, r"x must be \[B, 3, H, W\], not \[2, 1, 8, 8\]"),
        ({}, (3, 8, 8), (3,), None, r"x must be \[B, 3, H, W\], not \[3, 8, 8\]"),
        ({}, (2, 3, 8, 7), (2,), None, "8x7 pixels.* divisible by 2"),
        ({"channel_mult": (1, 2, 2)}, (2, 3, 10, 8), (2,), None, "10x8 pixels.* halves it 2 times.* divisible by 4"),
        ({}, (2, 3, 8, 8), (), None, r"timesteps must be \[2\], one per example, not \[\]"),
        ({}, (2, 3, 8, 8), (2,), (2,), "y was given to a network without classes"),
        ({"num_classes": 10}, (2, 3, 8, 8), (2,), None, "y is missing: .* one of 10 classes"),
        ({"num_classes": 10}, (2, 3, 8, 8), (2,), (1,), r"y must be \[2\], one class per example, not \[1\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(changes, x, timesteps, y, message):
    unet = UNet(**TINY | changes)
    with pytest.raises(ValueError, match=message):
        unet(torch.zeros(x), torch.zeros(timesteps), None if y is None else torch.zeros(y, dtype=torch.long))


def test_the_upsampler_refuses_a_small_image_that_does_not_fit():
    with pytest.raises(ValueError, match=r"low_res \[1, 3, 4, 4\] must have x's batch and channels"):
        SuperResUNet(**TINY)(torch.zeros(2, 3, 8, 8), torch.zeros(2), low_res=torch.zeros(1, 3, 4, 4))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="width 64 cannot be split into 3 heads"):
        UNet(**TINY, num_heads=3)


@pytest.mark.process
def test_the_package_loads_without_torch_and_names_its_networks():
    check = "import sys, harness.models; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
    assert MODELS["unet"] is UNet and set(MODELS) == {"unet", "mlp", "ncsnpp"}
