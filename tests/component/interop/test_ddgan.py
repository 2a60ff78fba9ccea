"""A generator in DDGAN's published layout becomes a run, is sampled and goes out again.

The published sizes are held in tests/unit/interop; here the table has a small generator more.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from harness.analysis.runs import load_records
from harness.cli import cli
from harness.data.digits import digits
from harness.evaluation.sampling import SampleSettings, sample_run
from harness.interop import ddgan
from harness.interop.checkpoints import export_checkpoint, import_checkpoint
from harness.metrics.features import load_extractor
from harness.metrics.fidelity import frechet_distance, reference_features
from harness.models.layers import Latent
from harness.models.ncsnpp import NCSNpp, published_names
from harness.spec.evaluation import Ancestral
from harness.training.checkpoints import Checkpoints


@pytest.fixture
def small(monkeypatch):
    """Add a generator of 8x8 digits to the published ones; return its network with random weights."""
    cifar10 = ddgan.PUBLISHED["ddgan_cifar10"]
    settings = {
        **cifar10.settings,
        "data": {"name": "digits"},
        "model": {
            **{"name": "ncsnpp", "channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1},
            "attention_resolutions": (4,),
        },
        "method": cifar10.settings["method"] | {"latent_dim": 4, "style_dim": 8, "mapping_layers": 2},
    }
    entry = replace(cifar10, arm="small", file="netG_7", epochs=8, batches_per_epoch=7, settings=settings)
    monkeypatch.setitem(ddgan.PUBLISHED, "small", entry)
    torch.manual_seed(0)
    network = NCSNpp(1, 1, 8, Latent(4, 8, 2), 8, (1, 2), 1, (4,))
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return network


def save_as_published(network, path):
    """Write a file as DDGAN's code does: the state dict of DistributedDataParallel."""
    state = network.state_dict()
    torch.save({f"module.{theirs}": state[ours] for ours, theirs in published_names(network).items()}, path)


def test_a_published_generator_becomes_a_run_is_sampled_and_goes_out_bit_for_bit(small, tmp_path):
    file, runs = tmp_path / "netG_7.pth", tmp_path / "runs"
    save_as_published(small, file)
    directory = import_checkpoint(file, "netG_7", runs)
    assert directory.status().state == "done" and directory.status().step == 56
    assert import_checkpoint(file, "small", runs).key == directory.key
    assert len(directory.attempts()) == 1

    state = Checkpoints(directory.checkpoints_folder).load(56)["method"]
    for weights in ("generator", "ema"):
        assert all(torch.equal(state[weights][key], value) for key, value in small.state_dict().items()), weights
    assert sample_run(directory.path, SampleSettings(Ancestral(), 4, 2)).exists()

    export_checkpoint(directory.path, tmp_path / "out.pth")
    before, after = (torch.load(path, weights_only=True) for path in (file, tmp_path / "out.pth"))
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.slow
def test_a_published_generator_is_scored_by_the_study_of_the_guide_and_no_step_is_trained(small, tmp_path, monkeypatch):
    save_as_published(small, tmp_path / "netG_7.pth")
    directory = import_checkpoint(tmp_path / "netG_7.pth", "small", tmp_path / "runs")
    before = {path: path.read_bytes() for path in directory.checkpoints_folder.rglob("*") if path.is_file()}
    (tmp_path / "score.yaml").write_text(f"""
study: ddgan-scored
extends: runs/{directory.key}/study.yaml
evaluate:
  - {{name: eval, fidelity: {{num_samples: 32, num_steps: 4}}, grid: 4}}
""")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["submit", "score.yaml", "--cluster", "debug", "--no-sync"])
    assert result.exit_code == 0, result.output
    assert {path: path.read_bytes() for path in before} == before
    (record,) = load_records(tmp_path / "runs", study="ddgan-scored")
    (measurement,) = record.measured("fidelity")
    fid = record.fidelity(measurement, "fid")

    samples = directory.samples_folder / "ancestral4_seed0_ema.npz"
    sample_run(directory.path, SampleSettings(Ancestral(), 4, 32))
    data = digits()
    extractor = load_extractor("digitsnet", data)
    reference = reference_features(extractor, data, split="train")
    drawn = np.load(samples)["samples"]
    assert fid == pytest.approx(frechet_distance(reference, extractor.features(drawn)), rel=1e-6)


def test_the_verb_says_that_the_discriminator_has_its_initial_weights(small, tmp_path):
    save_as_published(small, tmp_path / "netG_7.pth")
    arguments = ["import-checkpoint", str(tmp_path / "netG_7.pth"), "--as", "small", "--runs", str(tmp_path / "runs")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert "its discriminator is not in the file: it has its initial weights" in result.output
    (folder,) = [path for path in (tmp_path / "runs").iterdir() if (path / "spec.json").exists()]
    (journal,) = folder.glob("journal-*.jsonl")
    (imported,) = [line for line in journal.read_text().splitlines() if '"event": "imported"' in line]
    assert '"left_initial": ["discriminator"]' in imported
