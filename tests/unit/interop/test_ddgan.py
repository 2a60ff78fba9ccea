"""DDGAN's published generators: their specs, and files in their layout going in and out."""

import json
from pathlib import Path

import pytest
import torch

from harness.errors import CheckpointError
from harness.interop.checkpoints import published
from harness.interop.ddgan import PREFIX, PUBLISHED, load_published, published_spec, save_published
from harness.models.layers import Latent
from harness.models.ncsnpp import NCSNpp, published_names
from harness.registry import make_discriminator, make_network

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "ddgan_checkpoint_cifar10.json").read_text())
SHA256 = "a" * 64


def a_generator(name):
    """Build a published generator without memory, from its spec."""
    spec = published_spec(name, SHA256)
    with torch.device("meta"):
        return make_network(spec, spec.data.facts, latent=Latent(100, 256, spec.method.mapping_layers))


def layout(name):
    """A published state dict whose entries each store one number, so that its file is small."""
    network = a_generator(name)
    state = network.state_dict()
    return {
        f"{PREFIX}{theirs}": torch.zeros(()).expand(state[ours].shape)
        for ours, theirs in published_names(network).items()
    }


def test_the_layout_of_the_cifar10_file_is_the_published_one():
    assert {key: list(value.shape) for key, value in layout("ddgan_cifar10").items()} == GOLDEN["keys"]
    assert sum(value.numel() for value in a_generator("ddgan_cifar10").parameters()) == GOLDEN["generator_parameters"]


def test_both_networks_have_their_published_sizes():
    sizes = {}
    for name in PUBLISHED:
        spec = published_spec(name, SHA256)
        with torch.device("meta"):
            discriminator = make_discriminator(spec, spec.data.facts, pair=True)
        sizes[name] = [sum(p.numel() for p in network.parameters()) for network in (a_generator(name), discriminator)]
    assert sizes == {
        "ddgan_cifar10": [48_432_515, 12_741_633],
        "ddgan_celebahq256": [39_726_979, 27_737_217],
    }


def test_the_specs_say_what_the_commands_say():
    cifar10, celebahq = (published_spec(name, SHA256) for name in PUBLISHED)
    for spec in (cifar10, celebahq):
        assert (spec.method.name, spec.method.latent_dim, spec.method.style_dim) == ("ddgan", 100, 256)
        assert (spec.model.name, spec.model.num_res_blocks, spec.model.attention_resolutions) == ("ncsnpp", 2, (16,))
        assert (spec.diffusion.schedule.name, spec.model.rescale_timesteps) == ("vp", False)
        assert (spec.optim.betas, spec.optim.decay, spec.optim.final_lr) == ((0.5, 0.9), "cosine", 1e-5)
        assert (spec.train.ema_rate, spec.data.horizontal_flip) == (0.9999, True)
    assert [
        (s.diffusion.num_timesteps, s.method.mapping_layers, s.optim.lr, s.method.lr_discriminator, s.train.batch_size)
        for s in (cifar10, celebahq)
    ] == [(4, 5, 1.6e-4, 1.25e-4, 256), (2, 4, 2e-4, 1e-4, 32)]
    assert [(s.method.discriminator.name, s.method.r1_gamma, s.method.r1_every) for s in (cifar10, celebahq)] == [
        ("small", 0.02, 15),
        ("large", 2, 10),
    ]


def test_a_file_has_the_steps_of_its_epochs_and_a_new_training_those_of_the_command():
    assert published_spec("ddgan_cifar10", SHA256).train.steps == 1201 * (50_000 // 4 // 64)
    assert published_spec("ddgan_cifar10").train.steps == 1801 * (50_000 // 4 // 64)
    assert published_spec("ddgan_celebahq256", SHA256).train.steps == 551 * (27_000 // 8 // 4)


def test_the_names_of_the_files_are_known_beside_those_of_improved_diffusion():
    for name in ("ddgan_cifar10", "netG_1200", "netG_1200.pth"):
        assert published(name)[1] == "ddgan_cifar10"
    assert published("netG_550.pth")[1] == "ddgan_celebahq256"
    assert published("cifar10_uncond_50M_500K.pt")[1] == "cifar10_uncond"
    with pytest.raises(CheckpointError, match=r"did you mean 'ddgan_cifar10'.* choices: imagenet64_uncond.* ddgan_"):
        published("ddgan_cifar")


@pytest.mark.slow
def test_a_file_of_the_published_shapes_is_taken_and_another_networks_is_refused_by_name(tmp_path):
    path = tmp_path / "netG_1200.pth"
    torch.save(layout("ddgan_cifar10"), path)
    assert load_published(path, "ddgan_cifar10").keys() == a_generator("ddgan_cifar10").state_dict().keys()
    with pytest.raises(CheckpointError) as error:
        load_published(path, "ddgan_celebahq256")
    message = str(error.value)
    assert message.startswith(f"{path}: is not ddgan_celebahq256, ")
    assert " is missing" in message
    assert message.endswith("It fits ddgan_cifar10")


def a_small_state(**changes):
    """A published state dict of one entry too many, too few or of another shape."""
    return {key: value for key, value in (layout("ddgan_cifar10") | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"module.z_transform.9.bias": None}, r"z_transform\.9\.bias \[256\] is missing"),
        ({"module.extra": torch.zeros(2)}, r"extra \[2\] is not in this network"),
        (
            {"module.all_modules.39.bias": torch.zeros(4)},
            r"all_modules\.39\.bias is \[4\] instead of \[3\]",
        ),
        ({"module.all_modules.39.bias": torch.full((3,), torch.nan)}, r"3 of the 3 values of all_modules\.39\.bias"),
    ],
    ids=["missing", "unknown", "reshaped", "not finite"],
)
def test_what_does_not_fit_is_named_by_the_names_in_the_file(changes, message, tmp_path):
    torch.save(a_small_state(**changes), tmp_path / "netG_1200.pth")
    with pytest.raises(CheckpointError, match=message):
        load_published(tmp_path / "netG_1200.pth", "ddgan_cifar10")


def test_a_class_conditional_generator_is_not_exported(tmp_path):
    network = NCSNpp(1, 1, 8, Latent(4, 8, 1), 8, (1,), 1, (), num_classes=10)
    with pytest.raises(CheckpointError, match="no published one has labels"):
        save_published(network, tmp_path / "netG.pth")
    assert list(tmp_path.iterdir()) == []
