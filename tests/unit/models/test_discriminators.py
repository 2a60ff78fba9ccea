"""The discriminators of pairs against the published code's values, their sizes, and what an output depends on."""

import math

import pytest
import torch

from harness.models.discriminators import LargeDiscriminator, SmallDiscriminator, minibatch_stddev, published_name
from harness.models.layers import time_embedding

SIZES = ("small", "large")


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_the_output_is_that_of_the_published_code(size, vectors, published, assert_near):
    golden = vectors(f"ddgan_discriminator_{size}")
    discriminator = published.discriminator(golden.args, golden.state)
    output = discriminator(golden["x"], golden["t"], golden["x_t"])
    assert_near(output, golden["output"], scale=5e-6)
    # What differs between examples is small beside what they have in common, and is held by itself.
    assert_near(output - output.mean(), golden["output"] - golden["output"].mean(), scale=3e-5)
    alone = [discriminator(golden["x"][[i]], golden["t"][[i]], golden["x_t"][[i]]) for i in range(2)]
    assert_near(torch.cat(alone), golden["output_alone"], scale=5e-6)


@torch.no_grad()
def test_autocast_changes_the_output_by_bfloat16_rounding_only_and_not_its_type(vectors, published, dtype):
    golden = vectors("ddgan_discriminator_small")
    discriminator = published.discriminator(golden.args, golden.state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = discriminator(golden["x"], golden["t"], golden["x_t"])
    assert output.dtype == dtype
    error = (output - golden["output"]).abs().max() / golden["output"].abs().max()
    assert error < 3e-2
    assert dtype == torch.float64 or error > 1e-4  # autocast leaves float64 as it is


@pytest.mark.parametrize("size", SIZES)
def test_the_gradients_on_both_images_are_those_of_the_published_code(size, vectors, published):
    golden = vectors(f"ddgan_discriminator_{size}")
    discriminator = published.discriminator(golden.args, golden.state)
    x_t, x_next = golden["x"].requires_grad_(), golden["x_t"].requires_grad_()
    gradients = torch.autograd.grad(discriminator(x_t, golden["t"], x_next).sum(), [x_t, x_next])
    for gradient, expected in zip(gradients, (golden["grad_x"], golden["grad_x_t"]), strict=True):
        assert (gradient - expected).norm() < 1e-4 * expected.norm()


def test_the_time_embedding_and_the_minibatch_deviation_are_those_of_the_published_code(vectors, assert_near):
    blocks = vectors("ddgan_blocks")
    embedding = time_embedding(blocks["t"], blocks["time_embedding"].shape[1])
    assert_near(embedding.to(blocks["time_embedding"].dtype), blocks["time_embedding"], scale=2e-6)
    assert_near(minibatch_stddev(blocks["stddev_features"]), blocks["stddev"], scale=2e-6)


def test_an_embedding_without_two_frequencies_is_refused_and_an_odd_width_ends_in_zero():
    with pytest.raises(ValueError, match=r"a time embedding of width 3: .* at least 4"):
        time_embedding(torch.arange(2), 3)
    t = torch.arange(4)
    odd = time_embedding(t, 9)
    assert torch.equal(odd[:, :8], time_embedding(t, 8))
    assert not odd[:, 8].any()


@pytest.mark.parametrize("size", SIZES)
def test_parameters_come_in_the_order_and_under_the_names_of_the_published_code(size, vectors, published):
    golden = vectors(f"ddgan_discriminator_{size}")
    names = [published_name(name) for name, _ in published.build_discriminator(golden.args).named_parameters()]
    assert names == list(golden.state)


def test_a_name_that_no_parameter_has_is_refused():
    with pytest.raises(ValueError, match=r"blocks\.0\.conv3\.weight is no parameter of a discriminator"):
        published_name("blocks.0.conv3.weight")


@pytest.mark.parametrize(
    ("network", "pixels", "parameters"), [(SmallDiscriminator, 32, 12_741_633), (LargeDiscriminator, 256, 27_737_217)]
)
def test_parameters_are_as_many_as_the_published_ones(network, pixels, parameters):
    with torch.device("meta"):
        discriminator = network(in_channels=3, pair=True)
        x = torch.empty(4, 3, pixels, pixels)
        assert discriminator(x, torch.zeros(4), x).logits.shape == (4, 1)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == parameters


@pytest.mark.parametrize(
    ("network", "pixels"),
    [*((SmallDiscriminator, pixels) for pixels in (8, 16, 28, 32, 64)), (LargeDiscriminator, 64)],
)
@pytest.mark.parametrize(("channels", "batch"), [(1, 3), (3, 8)])
@torch.no_grad()
def test_each_image_gets_one_logit(network, pixels, channels, batch):
    discriminator = network(channels, pair=True, channels=2, time_dim=8)
    x_t, x_next = torch.randn(2, batch, channels, pixels, pixels)
    output = discriminator(x_t, torch.arange(batch), x_next).logits
    assert output.shape == (batch, 1)
    assert output.isfinite().all()


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (SmallDiscriminator, (4, 3, 7, 8), "image of 7x8 pixels: SmallDiscriminator halves it 3 times, .* at least 8"),
        (
            LargeDiscriminator,
            (4, 3, 32, 32),
            "image of 32x32 pixels: LargeDiscriminator halves it 6 times, .* least 64",
        ),
        (SmallDiscriminator, (4, 1, 8, 8), r"x must be \[B, 3, H, W\]"),
        (SmallDiscriminator, (5, 3, 8, 8), r"timesteps must be \[5\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(network, shape, message):
    with pytest.raises(ValueError, match=message):
        network(3, pair=True, channels=2, time_dim=8)(torch.zeros(shape), torch.zeros(4), torch.zeros(shape))


def test_a_pair_of_two_shapes_is_refused():
    with pytest.raises(ValueError, match=r"x_next \[1, 3, 8, 8\] must have the shape of x_t, \[4, 3, 8, 8\]"):
        SmallDiscriminator(3, pair=True, channels=2)(torch.zeros(4, 3, 8, 8), torch.zeros(4), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("batch", [5, 6, 7, 9])
def test_a_batch_that_makes_no_groups_of_four_is_refused(batch):
    with pytest.raises(ValueError, match=f"batch of {batch} examples: .* a multiple of 4"):
        minibatch_stddev(torch.zeros(batch, 1, 2, 2))


def test_the_minibatch_deviation_is_the_mean_standard_deviation_of_a_strided_group():
    features = torch.randn(12, 5, 2, 3, dtype=torch.float64)
    deviation = minibatch_stddev(features)
    for i in range(3):
        group = features[i::3]
        expected = (group.var(dim=0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(deviation[i::3], expected.expand(4, 1, 2, 3))


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_up_to_four_examples_are_one_group_and_equal_ones_have_the_smallest_deviation(batch):
    deviation = minibatch_stddev(torch.randn(batch, 3, 4, 4, dtype=torch.float64))
    assert (deviation == deviation[0, 0, 0, 0]).all()
    equal = minibatch_stddev(torch.ones(batch, 3, 4, 4, dtype=torch.float64))
    torch.testing.assert_close(equal, torch.full_like(equal, 1e-4))


@torch.no_grad()
def test_an_output_depends_on_the_examples_of_its_group_and_on_no_others(vectors, published):
    golden = vectors("ddgan_discriminator_small")
    discriminator = published.discriminator(golden.args, golden.state)
    x_t, t, x_next = golden["x"], golden["t"], golden["x_t"]
    before = discriminator(x_t, t, x_next)
    x_t[0] = -x_t[0]
    changed = (discriminator(x_t, t, x_next) - before).abs().flatten() > 1e-6 * before.abs().max()
    assert changed.tolist() == [True, False] * 4  # of 8 examples, every second is in the group of the first


@pytest.mark.parametrize(("network", "pixels"), [(SmallDiscriminator, 16), (LargeDiscriminator, 64)])
def test_a_gradient_reaches_every_parameter_of_a_network_that_has_just_started(network, pixels):
    discriminator = network(3, pair=True, channels=2, time_dim=8).double()
    x_t, x_next = torch.randn(2, 4, 3, pixels, pixels, dtype=torch.float64)
    discriminator(x_t, torch.arange(4), x_next).logits.square().sum().backward()
    without = [name for name, p in discriminator.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


def test_weights_start_uniform_with_the_variance_of_their_outputs_and_last_layers_near_zero():
    small, large = (network(3, True, channels=8, time_dim=64) for network in (SmallDiscriminator, LargeDiscriminator))
    bounds = {  # sqrt(3 gain / outputs)
        small.blocks[0].conv1.weight: math.sqrt(3 / (16 * 9)),
        small.blocks[0].skip.weight: math.sqrt(3 / 16),
        small.blocks[0].conv2.weight: math.sqrt(3e-10 / (16 * 9)),
        small.out.weight: math.sqrt(3),
        small.conv_out.weight: math.sqrt(3e-10 / (64 * 9)),
        large.conv_out.weight: math.sqrt(3 / (64 * 9)),
    }
    for weight, bound in bounds.items():
        assert 0.9 * bound < weight.abs().max() <= bound
    assert all((p == 0).all() for name, p in small.named_parameters() if name.endswith("bias"))
