"""Networks with a latent, their styles and what they refuse; and that without one nothing of a network has changed."""

import hashlib
from typing import Any

import pytest
import torch

from harness.models import MLP, Latent, NCSNpp, SuperResUNet, UNet
from harness.models.unet import AttentionBlock, ResBlock

LATENT = Latent(dim=6, style_dim=10, mapping_layers=2)
TINY: dict[str, Any] = dict(
    in_channels=3,
    model_channels=8,
    out_channels=6,
    num_res_blocks=1,
    attention_resolutions=(2,),
    channel_mult=(1, 2),
    num_heads=2,
)
GENERATORS = {
    "unet": lambda **options: UNet(**TINY | dict(out_channels=3, use_scale_shift_norm=True), latent=LATENT, **options),
    "mlp": lambda **options: MLP(3, 3, width=16, latent=LATENT, **options),
    "ncsnpp": lambda **options: NCSNpp(
        3, 3, 8, LATENT, channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), **options
    ),
}


def build(network, *args, **options):
    torch.manual_seed(0)
    return network(*args, **options)


def started_everywhere(network):
    """Move the layers that start at zero, or nearly, so that all of the network has a part in its output."""
    for parameter in network.parameters():
        if parameter.abs().max() < 1e-3:
            torch.nn.init.normal_(parameter, std=0.2)
    return network


def inputs_of(name, batch=4):
    side = 1 if name == "mlp" else 8
    return torch.randn(batch, 3, side, side), torch.arange(batch), torch.randn(batch, LATENT.dim)


@pytest.mark.parametrize("name", GENERATORS)
@torch.no_grad()
def test_an_image_depends_on_its_own_latent_class_and_timestep_and_on_those_of_no_other_example(name):
    generator = started_everywhere(build(GENERATORS[name], num_classes=5))
    x, t, z = inputs_of(name)
    inputs = {"x": x, "timesteps": t, "y": torch.arange(4), "z": z}
    output = generator(**inputs)
    assert output.shape == x.shape
    for key, value in inputs.items():
        changed = value.clone()
        changed[0] = (value[0] + 1) % 5 if key == "y" else 3 - value[0]
        differences = (generator(**inputs | {key: changed}) - output).abs().amax(dim=(1, 2, 3))
        assert differences[0] > 1e-3, key
        assert (differences[1:] < 1e-5).all(), key


@pytest.mark.parametrize("name", GENERATORS)
def test_a_gradient_reaches_every_parameter_from_the_image(name):
    generator = started_everywhere(build(GENERATORS[name], num_classes=4)).double()
    x, t, z = inputs_of(name)
    generator(x.double(), t, torch.arange(4), z.double()).square().sum().backward()
    without = {name for name, p in generator.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-12}
    assert {name for name in without if not name.endswith(".k.b")} == set()  # the softmax does not see a key's bias


@torch.no_grad()
def test_images_lie_between_minus_one_and_one_and_points_may_lie_beyond():
    largest = {}
    for name in GENERATORS:
        generator = build(GENERATORS[name])
        for parameter in generator.parameters():
            torch.nn.init.normal_(parameter)
        x, t, z = inputs_of(name)
        largest[name] = generator(x, t, z=z).abs().max().item()
    assert all(0.9 < largest[name] <= 1 for name in ("unet", "ncsnpp"))
    assert largest["mlp"] > 2


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize(
    ("z", "message"),
    [
        (None, "z is missing: this network generates from a latent of width 6"),
        (torch.zeros(1, 6), r"z must be \[4, 6\], one latent per example, not \[1, 6\]"),
        (torch.zeros(4, 5), r"z must be \[4, 6\], .* not \[4, 5\]"),
    ],
)
def test_a_latent_that_is_missing_or_does_not_fit_is_refused(name, z, message):
    x, t, _ = inputs_of(name)
    with pytest.raises(ValueError, match=message):
        GENERATORS[name]()(x, t, z=z)


@pytest.mark.parametrize(("network", "side"), [(lambda: UNet(**TINY), 8), (lambda: MLP(3, 3), 1)])
def test_a_network_without_a_latent_refuses_one(network, side):
    with pytest.raises(ValueError, match="z was given to a network without a latent"):
        network()(torch.zeros(2, 3, side, side), torch.zeros(2), z=torch.zeros(2, 6))


def test_a_latent_is_refused_where_it_would_only_be_added_before_a_normalisation():
    with pytest.raises(ValueError, match="a latent needs use_scale_shift_norm"):
        UNet(**TINY, latent=LATENT)


@pytest.mark.parametrize("name", GENERATORS)
def test_classes_are_asked_for_and_refused_as_by_every_network(name):
    x, t, z = inputs_of(name)
    with pytest.raises(ValueError, match="y is missing: this network is conditioned on one of 5 classes"):
        GENERATORS[name](num_classes=5)(x, t, z=z)
    with pytest.raises(ValueError, match="y was given to a network without classes"):
        GENERATORS[name]()(x, t, torch.arange(4), z)


@torch.no_grad()
def test_only_the_direction_of_a_latent_counts():
    generator = started_everywhere(build(GENERATORS["unet"]))
    x, t, z = inputs_of("unet")
    torch.testing.assert_close(generator(x, t, z=3 * z), generator(x, t, z=z))


@pytest.mark.parametrize("name", ["unet", "mlp"])
def test_a_latent_adds_its_mapping_and_changes_no_other_parameter_s_name_or_shape(name):
    generator = GENERATORS[name]()
    plain = UNet(**TINY | dict(out_channels=3, use_scale_shift_norm=True)) if name == "unet" else MLP(3, 3, width=16)
    shapes = {key: value.shape for key, value in generator.state_dict().items()}
    assert {key: value.shape for key, value in plain.state_dict().items()}.items() < shapes.items()
    added = {key.split(".")[0] for key in shapes.keys() - plain.state_dict().keys()}
    assert added == {"mapping", "style_emb"}


# The initial weights of a seed are part of what a run_key promises. If one of these fails, trainings begin elsewhere.
INITIAL_WEIGHTS = {
    "bc21ab85157fefa8": lambda: UNet(**TINY),
    "6f5823f2561c8998": lambda: UNet(**TINY, num_classes=10, use_scale_shift_norm=True),
    "fa2872f60782118a": lambda: SuperResUNet(**TINY),
    "bac1d8cea40a4eb8": lambda: MLP(width=16),
    "69374d88bcf5fff8": lambda: MLP(width=16, num_classes=3),
}


@pytest.mark.parametrize("digest", INITIAL_WEIGHTS)
def test_a_network_without_a_latent_starts_with_the_bits_that_it_always_had(digest):
    content = hashlib.sha256()
    for name, value in build(INITIAL_WEIGHTS[digest]).state_dict().items():
        content.update(name.encode())
        content.update(value.numpy().tobytes())
    assert content.hexdigest()[:16] == digest


# -- Imagen's order


def sizes(network, kind, pixels):
    """Return the sizes of the feature maps that the blocks of a kind work on."""
    seen = set()
    hooks = [
        module.register_forward_hook(lambda _, inputs, __: seen.add(inputs[0].shape[-1]))
        for module in network.modules()
        if isinstance(module, kind)
    ]
    network(torch.zeros(1, network.in_channels, pixels, pixels), torch.zeros(1))
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def test_when_resampling_comes_first_no_block_works_at_the_image_s_own_size():
    last, first = UNet(**TINY), UNet(**TINY, resample_first=True)
    assert sizes(last, ResBlock, 16) == {16, 8}
    assert sizes(first, ResBlock, 16) == {8, 4}
    assert sizes(first, AttentionBlock, 16) == {8, 4}  # at the factor 2 asked for, and in the middle
    assert first(torch.zeros(2, 3, 16, 16), torch.zeros(2)).shape == (2, 6, 16, 16)


def test_when_resampling_comes_first_the_first_level_halves_the_image_too():
    unet = UNet(**TINY, resample_first=True)
    assert unet.downsampling == 4
    with pytest.raises(ValueError, match=r"10x8 pixels: this U-Net halves it 2 times, .* divisible by 4"):
        unet(torch.zeros(1, 3, 10, 8), torch.zeros(1))


def test_when_resampling_comes_first_a_gradient_reaches_every_parameter():
    unet = started_everywhere(build(UNet, **TINY, resample_first=True)).double()
    unet(torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.arange(2)).square().sum().backward()
    assert [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-12] == []
