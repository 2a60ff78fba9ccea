"""Files in the layout of openai/improved-diffusion, in and out of runs."""

import pytest
import torch

from harness.errors import CheckpointError
from harness.evaluation import sample_run
from harness.job import work
from harness.models.openai_checkpoint import PUBLISHED, build_published, save_published
from harness.published import export_checkpoint, import_checkpoint, published_spec
from harness.records import RunDirectory
from harness.registry import make_network
from harness.spec import Ancestral

RUNS = [name for name, entry in PUBLISHED.items() if entry.low_res_size is None]


@pytest.mark.parametrize("name", RUNS)
def test_the_spec_of_a_published_checkpoint_builds_its_network(name):
    with torch.device("meta"):
        expected = {key: value.shape for key, value in build_published(name).state_dict().items()}
        found = make_network(published_spec(name), published_spec(name).data.facts).state_dict()
    assert {key: value.shape for key, value in found.items()} == expected


@pytest.mark.parametrize(
    "name, steps, objective, sampler, rescaled",
    [
        ("imagenet64_uncond", 1_500_000, ("hybrid", 0.001), "uniform", True),
        ("cifar10_uncond", 500_000, ("hybrid", 0.001), "uniform", True),
        ("imagenet64_cond", 250_000, ("hybrid", 1 / 4000), "uniform", False),
        ("lsun_uncond_bs128", 1_200_000, ("hybrid", 1 / 1000), "uniform", False),
        ("lsun_uncond_bs64", 2_400_000, ("hybrid", 1 / 1000), "uniform", False),
        ("imagenet64_uncond_vlb", 1_500_000, ("vlb", None), "loss_second_moment", True),
        ("cifar10_uncond_vlb", 500_000, ("vlb", None), "loss_second_moment", True),
    ],
)
def test_the_specs_say_what_the_readme_says(name, steps, objective, sampler, rescaled):
    spec = published_spec(name)
    assert spec.train.steps == steps
    assert (spec.objective.name, getattr(spec.objective, "lambda_vlb", None)) == objective
    assert spec.timestep_sampler.name == sampler
    assert spec.model.rescale_timesteps is rescaled


def test_the_upsampler_is_refused_with_the_way_to_load_it():
    with pytest.raises(CheckpointError, match=r"is an upsampler.*load_published"):
        published_spec("upsample_cond")


@pytest.mark.slow
def test_a_published_file_becomes_a_run_is_sampled_and_goes_out_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    network = build_published("cifar10_uncond")
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    file, runs = tmp_path / "cifar10_uncond_50M_500K.pt", tmp_path / "runs"
    save_published(network.state_dict(), file)

    directory = import_checkpoint(file, "cifar10_uncond", runs)
    assert directory.status().state == "done"
    assert import_checkpoint(file, "cifar10_uncond_50M_500K", runs).key == directory.key
    assert len(directory.attempts()) == 1
    picture = sample_run(directory.path, sampler=Ancestral(), num_steps=2, num_samples=1)
    assert picture.exists()

    export_checkpoint(directory.path, tmp_path / "out.pt")
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(out) == list(network.state_dict())
    assert all(torch.equal(out[key], value) for key, value in network.state_dict().items())


def test_an_imported_run_without_its_file_says_what_to_do(tiny_run):
    folder = tiny_run("", f"imported_sha256={'a' * 64}")
    assert work(folder, sync=False, show_progress=False) == "failed"
    assert "import-checkpoint" in RunDirectory(folder).status().reason


def test_a_trained_run_goes_out_and_its_layout_is_the_published_one(tiny_run, tmp_path):
    folder = tiny_run()
    work(folder, sync=False, show_progress=False)
    assert export_checkpoint(folder, tmp_path / "run.pt", weights="raw") == 12
    assert "time_embed.0.weight" in torch.load(tmp_path / "run.pt", weights_only=True)


def test_a_run_without_a_checkpoint_cannot_go_out(tiny_run, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        export_checkpoint(tiny_run(), tmp_path / "run.pt")
