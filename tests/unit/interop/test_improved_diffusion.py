"""The published checkpoints: their sizes, and files in their layout going in and out."""

import pytest
import torch

from harness.errors import CheckpointError
from harness.interop.improved_diffusion import PUBLISHED, build_published, load_published, published, save_published
from harness.models import SuperResUNet, UNet


def layout(name: str) -> dict[str, torch.Tensor]:
    """A state dict of the published shapes whose entries each store one number, so that its file is small."""
    with torch.device("meta"):
        state = build_published(name).state_dict()
    return {key: torch.zeros(()).expand(value.shape) for key, value in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [
        ("imagenet64_uncond", 121_063_942, 450),
        ("cifar10_uncond", 52_546_438, 446),
        ("imagenet64_cond", 273_049_350, 451),
        ("upsample_cond", 279_792_390, 457),
        ("lsun_uncond_bs128", 113_676_678, 426),
        ("lsun_uncond_bs64", 113_676_678, 426),
        ("imagenet64_uncond_vlb", 121_063_942, 450),
        ("cifar10_uncond_vlb", 52_546_438, 446),
    ],
)
def test_each_published_network_has_its_published_size_and_runs(name, parameters, tensors):
    entry = published(name)
    with torch.device("meta"):
        network = build_published(name)
        x = torch.empty(2, 3, entry.image_size, entry.image_size)
        conditions = {"y": torch.empty(2, dtype=torch.long)} if entry.network["num_classes"] else {}
        if entry.low_res_size:
            conditions["low_res"] = torch.empty(2, 3, entry.low_res_size, entry.low_res_size)
        output = network(x, torch.empty(2), **conditions)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert len(network.state_dict()) == tensors
    assert output.shape == (2, 6, entry.image_size, entry.image_size)
    assert isinstance(network, SuperResUNet) == (name == "upsample_cond")


def test_the_flags_that_set_the_published_runs_apart():
    unscaled = {name for name, entry in PUBLISHED.items() if not entry.diffusion["rescale_timesteps"]}
    assert unscaled == {"imagenet64_cond", "upsample_cond", "lsun_uncond_bs128", "lsun_uncond_bs64"}
    assert unscaled == {name for name, entry in PUBLISHED.items() if not entry.diffusion["rescale_learned_sigmas"]}
    by_kl = {name for name, entry in PUBLISHED.items() if entry.diffusion["use_kl"]}
    assert by_kl == {"imagenet64_uncond_vlb", "cifar10_uncond_vlb"}
    assert by_kl == {n for n, e in PUBLISHED.items() if e.training["schedule_sampler"] == "loss-second-moment"}
    linear = {
        name: e.diffusion["num_timesteps"] for name, e in PUBLISHED.items() if e.diffusion["schedule"] == "linear"
    }
    assert linear == {"upsample_cond": 4000, "lsun_uncond_bs128": 1000, "lsun_uncond_bs64": 1000}


@pytest.mark.slow
def test_a_random_checkpoint_goes_in_and_out_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    network = build_published("cifar10_uncond")
    save_published(network.state_dict(), tmp_path / "in.pt")
    with torch.device("meta"):
        imported = build_published("cifar10_uncond")
    imported.load_state_dict(load_published(tmp_path / "in.pt", "cifar10_uncond"), assign=True)
    save_published(imported.state_dict(), tmp_path / "out.pt")
    there_and_back = load_published(tmp_path / "out.pt", "cifar10_uncond_50M_500K")
    original = network.state_dict()
    assert list(there_and_back) == list(original)
    assert all(torch.equal(there_and_back[key], original[key]) for key in original)
    assert {path.name for path in tmp_path.iterdir()} == {"in.pt", "out.pt"}  # no partial file is left


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_each_layout_is_taken_under_its_name(name, tmp_path):
    state = layout(name)
    torch.save(state, tmp_path / "model.pt")
    assert load_published(tmp_path / "model.pt", name).keys() == state.keys()


def test_the_names_of_the_published_files_are_known_too():
    for entry in PUBLISHED.values():
        assert published(entry.file) is published(f"{entry.file}.pt") is entry


@pytest.mark.slow
def test_another_networks_file_is_refused_with_the_configuration_that_fits(tmp_path):
    torch.save(layout("imagenet64_cond"), tmp_path / "model.pt")
    with pytest.raises(CheckpointError) as error:
        load_published(tmp_path / "model.pt", "imagenet64_uncond")
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'model.pt'}: is not imagenet64_uncond, 450 entries differ: ")
    assert "label_emb.weight [1000, 768] is not in this network" in message
    assert "time_embed.0.weight is [768, 192] instead of [512, 128]" in message
    assert message.endswith("It fits imagenet64_cond")


def test_missing_and_unknown_entries_are_named_with_the_nearest_configuration(tmp_path):
    state = layout("cifar10_uncond")
    state["out.3.weight"] = state.pop("out.2.weight")
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError) as error:
        load_published(tmp_path / "model.pt", "cifar10_uncond")
    message = str(error.value)
    assert "2 entries differ" in message
    assert "out.2.weight [6, 128, 3, 3] is missing" in message
    assert "out.3.weight [6, 128, 3, 3] is not in this network" in message
    assert message.endswith("nearest: cifar10_uncond or cifar10_uncond_vlb (2 entries differ)")


class Foreign:
    """What a file of pickled code would smuggle in."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a file of weights: the file is empty"),
        (b"not a checkpoint", "not a file of weights: it starts with"),
        (b"<html>404</html>", "not a file of weights: a web page"),
        (Foreign(), "not a file of weights: damaged, or it holds more than tensors"),
        ({"model": {}, "step": 3}, "holds not only tensors by name; its entries are model, step"),
        ([torch.zeros(1)], "holds a list, not tensors by name"),
    ],
)
def test_what_is_no_state_dict_is_refused(content, message, tmp_path):
    path = tmp_path / "model.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"{path}: {message}"):
        load_published(path, "cifar10_uncond")


def test_a_torn_file_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(layout("cifar10_uncond"), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short or damaged"):
        load_published(path, "cifar10_uncond")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = layout("cifar10_uncond")
    state["out.2.bias"] = torch.full_like(state["out.2.bias"], torch.nan)
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"6 of the 6 values of out\.2\.bias are not finite numbers"):
        load_published(tmp_path / "model.pt", "cifar10_uncond")


def test_the_prefix_of_distributed_training_is_understood(tmp_path):
    state = layout("cifar10_uncond")
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "model.pt")
    assert list(load_published(tmp_path / "model.pt", "cifar10_uncond")) == list(state)


def test_a_missing_file_and_an_unknown_name_are_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: there is no such file"):
        load_published(tmp_path / "nowhere.pt", "cifar10_uncond")
    with pytest.raises(
        CheckpointError, match=r"'cifar10_uncnd' .* did you mean 'cifar10_uncond'.* choices: imagenet64_unc"
    ):
        load_published(tmp_path / "nowhere.pt", "cifar10_uncnd")


def test_a_file_that_cannot_be_written_is_said_and_leaves_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be written: No such file or directory"):
        save_published({"a": torch.zeros(1)}, tmp_path / "nowhere" / "model.pt")
    assert list(tmp_path.iterdir()) == []


def test_export_stores_the_values_alone_not_the_memory_around_them(tmp_path):
    network = UNet(1, 32, 1, 1, (), channel_mult=(1,)).to(memory_format=torch.channels_last)
    save_published(network.state_dict() | {"view": torch.zeros(10_000_000)[:2]}, tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(value.is_contiguous() for value in state.values())
    assert (tmp_path / "model.pt").stat().st_size < 4_000_000
