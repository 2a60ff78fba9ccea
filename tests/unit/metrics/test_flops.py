"""The arithmetic of networks against the papers' figures and against counts by hand."""

import pytest
import torch
from torch import nn

from harness.metrics.flops import Compute, forward_compute, training_step_compute
from harness.models import MLP, Latent, MLPDiscriminator, NCSNpp, SmallDiscriminator, UNet, UNetDiscriminator


def iddpm_unet(width: int, image_size: int, **changes) -> tuple[UNet, torch.Tensor, torch.Tensor]:
    """IDDPM's U-Net for ImageNet-64 or CIFAR-10, with an image and its timestep, all without values."""
    with torch.device("meta"):
        unet = UNet(
            in_channels=3,
            model_channels=width,
            out_channels=6,
            num_res_blocks=3,
            attention_resolutions=(image_size // 16, image_size // 8),
            channel_mult={64: (1, 2, 3, 4), 32: (1, 2, 2, 2)}[image_size],
            num_heads=4,
            use_scale_shift_norm=True,
            **changes,
        )
        return unet, torch.empty(1, 3, image_size, image_size), torch.empty(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "image_size", "giga_multiply_adds"),
    [(64, 64, "10.04"), (96, 64, "22.43"), (128, 64, "39.74"), (192, 64, "89.09"), (128, 32, "8.39")],
)
def test_a_forward_pass_costs_what_the_papers_networks_cost(width, image_size, giga_multiply_adds):
    compute = forward_compute(*iddpm_unet(width, image_size))
    assert f"{compute.multiply_adds / 1e9:.2f}" == giga_multiply_adds
    assert compute.flops == 2 * compute.multiply_adds


@pytest.mark.slow
def test_a_training_step_costs_three_forward_passes_less_the_gradient_of_the_data():
    unet, x, timesteps = iddpm_unet(128, 32)
    forward, step = forward_compute(unet, x, timesteps), training_step_compute(unet, x, timesteps)
    first_convolution = 32 * 32 * 3 * 128 * 9
    time_embedding = 128 * 512
    assert step.multiply_adds == 3 * forward.multiply_adds - first_convolution - time_embedding


def test_layers_are_counted_as_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    assert forward_compute(network, torch.zeros(2, 3, 4, 4)) == Compute(2 * (16 * 3 * 8 * 9 + 8 * 16 * 5))


@pytest.mark.slow
def test_the_work_done_again_under_activation_checkpointing_is_counted():
    plain = training_step_compute(*iddpm_unet(64, 32))
    recomputed = training_step_compute(*iddpm_unet(64, 32, use_checkpoint=True))
    assert 1.2 < recomputed.multiply_adds / plain.multiply_adds < 4 / 3


def test_counting_leaves_the_network_and_the_random_state_alone():
    torch.manual_seed(0)
    unet = UNet(1, 32, 2, 1, (2,), dropout=0.5, channel_mult=(1, 2), use_checkpoint=True)
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    state = torch.get_rng_state()
    training_step_compute(unet, torch.zeros(4, 1, 8, 8), torch.zeros(4))
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in unet.parameters())
    assert all(torch.equal(before[key], value) for key, value in unet.state_dict().items())


def test_a_frozen_part_costs_no_gradient():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    whole = training_step_compute(network, torch.zeros(1, 4))
    network[0].requires_grad_(False)
    assert whole.multiply_adds - training_step_compute(network, torch.zeros(1, 4)).multiply_adds == 2 * 16


def test_a_generator_is_counted_with_its_mapping_network():
    latent = Latent(dim=10, style_dim=6, mapping_layers=2)
    x, t, z = torch.zeros(1, 2, 1, 1), torch.zeros(1), torch.zeros(1, 10)
    plain, generator = MLP(width=8), MLP(width=8, latent=latent)
    added = forward_compute(generator, x, t, None, z).multiply_adds - forward_compute(plain, x, t).multiply_adds
    assert added == 10 * 6 + 6 * 6 + 6 * 8


def test_each_output_of_a_network_is_followed_back():
    x, t = torch.zeros(1, 2, 1, 1), torch.zeros(1)
    forward, step = (
        {
            heads: count(MLPDiscriminator(2, pair=False, heads=heads, width=8), x, t, None, None)
            for heads in (True, False)
        }
        for count in (forward_compute, training_step_compute)
    )
    assert forward[True].multiply_adds - forward[False].multiply_adds == 8 * 4
    # Every layer costs three passes, but the two that see the data.
    assert step[True].multiply_adds == 3 * forward[True].multiply_adds - (2 * 8 + 8 * 8)


def test_networks_of_adversarial_methods_are_counted_by_shapes_alone():
    sizes = dict(channels=8, channel_mult=(1,), num_res_blocks=1)
    with torch.device("meta"):
        x, t, y, z = torch.empty(1, 3, 8, 8), torch.empty(1), torch.empty(1, dtype=torch.long), torch.empty(1, 4)
        networks = {
            "ncsnpp": (NCSNpp(3, 3, 8, Latent(4, style_dim=8, mapping_layers=1), **sizes), (x, t, None, z)),
            "small": (SmallDiscriminator(3, pair=True, num_classes=4, channels=1), (x, t, x, y)),
            "unet": (UNetDiscriminator(3, pair=False, **sizes), (x, t, None, None)),
            "unet with heads": (UNetDiscriminator(3, pair=False, heads=True, **sizes), (x, t, None, None)),
        }
    steps = {
        name: training_step_compute(network, *inputs).multiply_adds for name, (network, inputs) in networks.items()
    }
    assert min(steps.values()) > 1e5
    assert steps["unet with heads"] > 1.5 * steps["unet"]
