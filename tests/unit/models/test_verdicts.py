"""All discriminators are called in one way and return a verdict: logits, and what heads predict."""

import pytest
import torch

from harness.diffusion.adversarial import r1_penalty
from harness.models import (
    LargeDiscriminator,
    MLPDiscriminator,
    SmallDiscriminator,
    UNetDiscriminator,
)

CLASSES = {
    "small": (SmallDiscriminator, dict(channels=2, time_dim=8), 8),
    "large": (LargeDiscriminator, dict(channels=2, time_dim=8), 64),
    "unet": (UNetDiscriminator, dict(channels=8, channel_mult=(1, 2), num_res_blocks=1), 8),
    "mlp": (MLPDiscriminator, dict(width=16), 1),
}
WITH_HEADS = ("unet", "mlp")


def build(name, **options):
    torch.manual_seed(0)
    network, sizes, _ = CLASSES[name]
    return network(3, **{"pair": True} | options, **sizes)


def started_everywhere(network):
    """Move the layers that start at zero, or nearly, so that all of the network has a part in its output."""
    for parameter in network.parameters():
        if parameter.abs().max() < 1e-3:
            torch.nn.init.normal_(parameter, std=0.2)
    return network


def images(name, count=1, batch=4):
    side = CLASSES[name][2]
    return torch.randn(count, batch, 3, side, side).unbind()


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("pair", [True, False])
@torch.no_grad()
def test_the_logit_depends_on_every_input(name, pair):
    discriminator = started_everywhere(build(name, pair=pair, num_classes=4))
    x_t, x_next = images(name, 2)
    inputs = {"x_t": x_t, "t": torch.arange(4), "y": torch.arange(4)} | ({"x_next": x_next} if pair else {})
    verdict = discriminator(**inputs)
    assert verdict.logits.shape == (4, 1)
    assert (verdict.x_0, verdict.x_next) == (None, None)
    for key, value in inputs.items():
        changed = value.clone()
        changed[0] = 3 - value[0]
        difference = (discriminator(**inputs | {key: changed}).logits - verdict.logits).abs()
        assert difference[0] > 1e-6, key


@pytest.mark.parametrize("name", WITH_HEADS)
@torch.no_grad()
def test_heads_predict_the_clean_image_and_the_next_one_unless_that_is_given(name):
    x_t, x_next = images(name, 2)
    alone = started_everywhere(build(name, pair=False, heads=True))(x_t, torch.arange(4))
    assert alone.logits.shape == (4, 1)
    assert alone.x_0.shape == alone.x_next.shape == x_t.shape
    assert not torch.allclose(alone.x_0, alone.x_next)
    pair = started_everywhere(build(name, pair=True, heads=True))(x_t, torch.arange(4), x_next)
    assert pair.x_0.shape == x_t.shape
    assert pair.x_next is None


@pytest.mark.parametrize("name", WITH_HEADS)
@torch.no_grad()
def test_what_heads_predict_is_not_bounded(name):
    discriminator = build(name, pair=False, heads=True)
    for parameter in discriminator.parameters():
        torch.nn.init.normal_(parameter)
    verdict = discriminator(*images(name), torch.arange(4))
    assert verdict.x_0.abs().max() > 2
    assert verdict.x_next.abs().max() > 2


@pytest.mark.parametrize("name", WITH_HEADS)
@torch.no_grad()
def test_without_a_minibatch_deviation_an_example_depends_on_no_other_and_any_batch_will_do(name):
    discriminator = started_everywhere(build(name, pair=False, heads=True))
    (x_t,) = images(name, batch=5)
    together = discriminator(x_t, torch.arange(5))
    for i in range(5):
        alone = discriminator(x_t[[i]], torch.tensor([i]))
        for value, expected in zip(alone, together, strict=True):
            torch.testing.assert_close(value, expected[[i]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "heads"), [*((name, False) for name in CLASSES), *((name, True) for name in WITH_HEADS)]
)
def test_a_gradient_reaches_every_parameter(name, heads):
    discriminator = started_everywhere(build(name, pair=False, heads=heads, num_classes=4)).double()
    verdict = discriminator(images(name)[0].double(), torch.arange(4), y=torch.arange(4))
    sum(output.square().sum() for output in verdict if output is not None).backward()
    assert [name for name, p in discriminator.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize("name", WITH_HEADS)
def test_the_heads_share_all_layers_but_their_last_with_the_logit(name):
    discriminator = started_everywhere(build(name, pair=False, heads=True))
    verdict = discriminator(*images(name), torch.arange(4))
    names = [name for name, _ in discriminator.named_parameters()]
    reached = {}
    for key, output in verdict._asdict().items():
        gradients = torch.autograd.grad(
            output.sum(), discriminator.parameters(), retain_graph=True, materialize_grads=True
        )
        reached[key] = {name for name, gradient in zip(names, gradients, strict=True) if gradient.abs().max() > 0}
    assert reached["x_0"] == reached["x_next"]
    shared = {"trunk.time_embed.0.weight", "trunk.inp.weight" if name == "mlp" else "trunk.input_blocks.0.0.weight"}
    assert shared <= reached["logits"] & reached["x_0"]
    assert len(reached["logits"] & reached["x_0"]) > len(names) / 3


@pytest.mark.parametrize("name", CLASSES)
def test_the_gradient_of_an_r1_penalty_is_its_slope(name):
    discriminator = started_everywhere(build(name, pair=False)).double()
    x_t = images(name)[0].double().requires_grad_()
    parameters = list(discriminator.parameters())

    def penalty():
        return r1_penalty(discriminator(x_t, torch.arange(4)).logits, x_t, gamma=1.0).mean()

    gradients = torch.autograd.grad(penalty(), parameters, materialize_grads=True)
    length = sum(gradient.square().sum() for gradient in gradients).sqrt()
    assert length > 0
    step = 1e-3 if name in WITH_HEADS else 1e-6  # the U-Net normalises in float32; leaky ReLUs have kinks nearby
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter += (1 if sign == 1 else -2) * step * gradient / length
        values.append(penalty())
    torch.testing.assert_close((values[0] - values[1]) / (2 * step), length, rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", CLASSES)
def test_autocast_leaves_logits_in_their_own_type(name):
    discriminator = started_everywhere(build(name))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert discriminator(*images(name), torch.arange(4), *images(name)).logits.dtype == torch.float32


@pytest.mark.parametrize("name", CLASSES)
def test_the_next_image_is_asked_for_by_pairs_and_refused_otherwise(name):
    (x,) = images(name)
    with pytest.raises(ValueError, match=r"x_next is missing: this discriminator judges pairs \(x_t, x_next\)"):
        build(name, pair=True)(x, torch.arange(4))
    with pytest.raises(ValueError, match=r"x_next was given to a discriminator of x_t alone \(pair is False\)"):
        build(name, pair=False)(x, torch.arange(4), x)
    with pytest.raises(ValueError, match=r"x_next \[1, 3, .* must have the shape of x_t, \[4, 3, "):
        build(name, pair=True)(x, torch.arange(4), x[:1])


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_asked_for_and_refused_as_by_every_network(name):
    (x,) = images(name)
    with pytest.raises(ValueError, match="y is missing: this network is conditioned on one of 5 classes"):
        build(name, num_classes=5)(x, torch.arange(4), x)
    with pytest.raises(ValueError, match="y was given to a network without classes"):
        build(name)(x, torch.arange(4), x, torch.arange(4))
    with pytest.raises(ValueError, match=r"x must be \[B, 3, H, W\], not \[4, 2, "):
        build(name, pair=False)(x[:, :2], torch.arange(4))


@pytest.mark.parametrize("name", ["small", "large"])
def test_the_published_ones_have_no_heads(name):
    with pytest.raises(ValueError, match="Discriminator has no heads that predict images; UNetDiscriminator has"):
        build(name, heads=True)


def test_an_image_that_cannot_be_halved_and_points_of_many_pixels_are_refused():
    with pytest.raises(ValueError, match=r"image of 9x8 pixels: .* divisible by 2"):
        build("unet")(torch.zeros(2, 3, 9, 8), torch.zeros(2), torch.zeros(2, 3, 9, 8))
    with pytest.raises(ValueError, match="x must be points"):
        build("mlp")(torch.zeros(2, 3, 8, 8), torch.zeros(2), torch.zeros(2, 3, 8, 8))


@torch.no_grad()
def test_the_discriminator_of_points_can_enlarge_them():
    torch.manual_seed(0)
    plain = started_everywhere(MLPDiscriminator(2, pair=True, width=16))
    enlarging = MLPDiscriminator(2, pair=True, width=16, input_scale=16.0)
    enlarging.load_state_dict(plain.state_dict())
    x_t, x_next = torch.randn(2, 4, 2, 1, 1)
    logits = enlarging(x_t, torch.arange(4), x_next).logits
    assert torch.equal(logits, plain(16 * x_t, torch.arange(4), 16 * x_next).logits)


def test_the_discriminator_of_points_has_three_hidden_layers_of_512_units():
    hidden = [tuple(layer.weight.shape) for layer in MLPDiscriminator(2, pair=True).trunk.hidden]
    assert hidden == [(512, 512)] * 3
