"""The generator against the published code's values, names and sizes, and what it refuses."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from harness.models.layers import Latent, pixel_norm
from harness.models.ncsnpp import AdaptiveGroupNorm, Attention, NCSNpp, ResidualBlock, published_names

GOLDEN = Path(__file__).parents[2] / "golden"
TINY = dict(
    in_channels=3,
    out_channels=3,
    image_size=8,
    latent=Latent(dim=5, style_dim=6, mapping_layers=2),
    channels=8,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
)
CELEBA_HQ_256 = dict(
    image_size=256,
    num_channels=3,
    num_channels_dae=64,
    ch_mult=[1, 1, 2, 2, 4, 4],
    num_res_blocks=2,
    attn_resolutions=[16],
    nz=100,
    z_emb_dim=256,
    n_mlp=3,
)


@torch.no_grad()
def test_the_output_and_the_style_are_those_of_the_published_code(vectors, published, assert_near):
    golden = vectors("ddgan_generator")
    generator = published.generator(golden.args, golden.state)
    assert_near(generator(golden["x"], golden["t"], golden["z"]), golden["output"], scale=1e-5)
    assert_near(generator.mapping(golden["z"]), golden["z_emb"], scale=1e-5)


@torch.no_grad()
def test_autocast_changes_the_output_by_bfloat16_rounding_only_and_not_its_type(vectors, published, dtype):
    golden = vectors("ddgan_generator")
    generator = published.generator(golden.args, golden.state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = generator(golden["x"], golden["t"], golden["z"])
    assert output.dtype == dtype
    error = (output - golden["output"]).abs().max()
    assert error < 6e-2
    assert dtype == torch.float64 or error > 1e-3  # autocast leaves float64 as it is


def test_the_latents_are_normalised_as_in_the_published_code(vectors, assert_near):
    blocks = vectors("ddgan_blocks")
    assert_near(pixel_norm(blocks["z"]), blocks["pixel_norm"], scale=2e-6)
    square = pixel_norm(torch.randn(6, 9, dtype=torch.float64)).square().mean(dim=1)
    torch.testing.assert_close(square, torch.ones_like(square), rtol=1e-6, atol=0)


def test_names_and_shapes_are_those_of_the_published_checkpoint(published):
    checkpoint = json.loads((GOLDEN / "ddgan_checkpoint_cifar10.json").read_text())
    shapes = {name: list(shape) for name, shape in published.checkpoint_shapes(checkpoint["args"]).items()}
    assert shapes == checkpoint["keys"]
    assert sum(math.prod(shape) for shape in shapes.values()) == checkpoint["generator_parameters"] == 48_432_515


def test_a_generator_of_256_pixels_has_as_many_parameters_as_the_published_one_and_runs(published):
    with torch.device("meta"):
        generator = published.build_generator(CELEBA_HQ_256)
        x = torch.empty(2, 3, 256, 256)
        assert generator(x, torch.zeros(2), torch.empty(2, 100)).shape == x.shape
    assert sum(parameter.numel() for parameter in generator.parameters()) == 39_726_979


def test_every_parameter_has_a_published_name_of_its_own():
    generator = NCSNpp(**TINY)
    names = published_names(generator)
    assert names.keys() == generator.state_dict().keys()
    assert len(set(names.values())) == len(names)


def test_a_class_conditional_generator_has_one_parameter_more_which_was_never_published():
    generator = NCSNpp(**TINY, num_classes=4)
    assert generator.state_dict().keys() - published_names(generator).keys() == {"label_emb.weight"}
    assert generator.label_emb.weight.shape == (4, 32)


@pytest.mark.parametrize(
    ("pixels", "channel_mult"), [(16, (1, 2)), (28, (1, 2, 2)), (32, (1, 1, 2, 2)), (64, (1, 1, 2, 2)), (8, (1,))]
)
@torch.no_grad()
def test_an_image_of_its_input_s_size_lies_between_minus_one_and_one(pixels, channel_mult):
    generator = NCSNpp(**TINY | dict(image_size=pixels, channel_mult=channel_mult))
    torch.nn.init.normal_(generator.conv_out.weight)
    x = generator(torch.randn(2, 3, pixels, pixels), torch.tensor([0, 3]), z=torch.randn(2, 5))
    assert x.shape == (2, 3, pixels, pixels)
    assert 0.1 < x.abs().max() <= 1


@pytest.mark.parametrize(
    ("x", "t", "z", "message"),
    [
        ((4, 3, 9, 8), (4,), (4, 5), "image of 9x8 pixels: this generator halves it 1 times, .* divisible by 2"),
        ((4, 1, 8, 8), (4,), (4, 5), r"x must be \[B, 3, H, W\]"),
        ((4, 3, 8, 8), (1,), (4, 5), r"timesteps must be \[4\]"),
        ((4, 3, 8, 8), (4,), (1, 5), r"z must be \[4, 5\], one latent per example, not \[1, 5\]"),
        ((4, 3, 8, 8), (4,), (4, 6), r"z must be \[4, 5\]"),
        ((4, 3, 8, 8), (4,), None, "z is missing: this network generates from a latent of width 5"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x, t, z, message):
    with pytest.raises(ValueError, match=message):
        NCSNpp(**TINY)(torch.zeros(x), torch.zeros(t), z=None if z is None else torch.zeros(z))


@torch.no_grad()
def test_an_image_depends_on_its_own_noise_timestep_and_latent_and_on_no_other_example(vectors, published):
    golden = vectors("ddgan_generator")
    generator = published.generator(golden.args, golden.state)
    inputs = [golden["x"], golden["t"], golden["z"]]
    output = generator(*inputs)
    for i, value in enumerate(inputs):
        changed = [*inputs]
        changed[i] = value.clone()
        changed[i][0] = 3 - value[0]
        differences = (generator(*changed) - output).abs().amax(dim=(1, 2, 3))
        assert differences[0] > 1e-3
        assert (differences[1:] < 1e-5).all()


def test_a_gradient_reaches_every_parameter_of_a_network_that_has_just_started_but_the_keys_bias():
    generator = NCSNpp(**TINY).double()
    x, z = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    generator(x, torch.arange(4), z=z).square().sum().backward()
    without = {name for name, p in generator.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-30}
    # It adds the same to all scores of a query, which the softmax does not see.
    assert without == {name for name, _ in generator.named_parameters() if name.endswith(".k.b")}


def test_weights_start_uniform_and_last_layers_near_zero():
    generator = NCSNpp(**TINY | dict(channels=16, latent=Latent(8, 32, 2)))
    block, attention = generator.down[1].block, generator.middle[1]
    bounds = {  # sqrt(3 gain / fan)
        generator.mapping[1].weight: math.sqrt(3 / 32),  # the outputs
        block.norm1.style.weight: math.sqrt(3 / 32),
        generator.time_embed[0].weight: math.sqrt(3 / ((16 + 64) / 2)),  # the mean of inputs and outputs
        generator.conv_in.weight: math.sqrt(3 / ((3 + 16) * 9 / 2)),
        block.conv1.weight: math.sqrt(3 / (16 * 9)),
        block.conv2.weight: math.sqrt(3e-10 / (16 * 9)),
        attention.q.W: math.sqrt(0.3 / 32),
        attention.out.W: math.sqrt(3e-10 / 32),
        generator.conv_out.weight: math.sqrt(3e-10 / ((3 + 16) * 9 / 2)),
    }
    for weight, bound in bounds.items():
        assert 0.9 * bound < weight.abs().max() <= bound


@torch.no_grad()
def test_a_style_of_zero_leaves_a_plain_group_normalisation():
    norm = AdaptiveGroupNorm(channels=12, style_dim=4)
    x = 3 + 2 * torch.randn(2, 12, 5, 5)
    torch.testing.assert_close(norm(x, torch.zeros(2, 4)), F.group_norm(x, num_groups=3, eps=1e-6))


@torch.no_grad()
def test_residual_blocks_and_attention_start_as_their_input_over_the_root_of_two():
    x, emb, style = torch.randn(2, 16, 6, 6), torch.randn(2, 7), torch.randn(2, 4)
    block = ResidualBlock(channels=16, out_channels=16, time_dim=7, style_dim=4)
    for output in (block(x, emb, style), Attention(16)(x)):
        torch.testing.assert_close(output, x / math.sqrt(2), rtol=0, atol=1e-3)
        assert not torch.equal(output, x / math.sqrt(2))


@torch.no_grad()
def test_equal_keys_make_every_pixel_attend_to_the_mean():
    attention = Attention(8)
    for weight in (attention.q.W, attention.k.W):
        torch.nn.init.zeros_(weight)
    for weight in (attention.v.W, attention.out.W):
        torch.nn.init.eye_(weight)
    x = torch.randn(2, 8, 3, 3)
    mean = attention.norm(x).mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(attention(x), (x + mean) / math.sqrt(2))
