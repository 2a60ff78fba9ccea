"""Files in the layout of openai/improved-diffusion, in and out of runs."""

import numpy as np
import pytest
import torch

from harness.data.base import Split, build
from harness.errors import RecordError, SpecError
from harness.evaluation.context import EvaluationContext
from harness.evaluation.evaluator import evaluate
from harness.evaluation.sampling import SampleSettings, load_method, sample_run
from harness.interop.checkpoints import export_checkpoint, import_checkpoint
from harness.interop.improved_diffusion import build_published, save_published
from harness.job.job import run_job
from harness.records.directory import RunDirectory
from harness.registry import make_method
from harness.spec.evaluation import Ancestral, Evaluation, RateDistortion
from harness.spec.resources import Resources
from harness.spec.run import RunSpec
from harness.training.checkpoints import Checkpoints

SHA256 = "a" * 64


def an_upsampler(tmp_path):
    """A run of a small upsampler, 8 to 16 pixels, with random weights."""
    spec = RunSpec.model_validate(
        {
            "imported_sha256": SHA256,
            "data": {"name": "image_folder", "path": "x", "image_size": 16, "num_classes": 3},
            "model": {
                **{"name": "unet", "channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "num_heads": 1},
                **{"attention_resolutions": (), "class_cond": True, "low_res_size": 8},
            },
            "train": {"steps": 1},
        }
    )
    directory = RunDirectory(tmp_path / spec.run_key).create(spec.model_dump(mode="json"), 1)
    cpu = torch.device("cpu")
    method = make_method(spec, spec.data.facts, Resources(), cpu)
    for weight in method.ema.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    Checkpoints(directory.path / "checkpoints").save(1, method.state_dict())
    return directory.path


def test_an_upsampler_enlarges_the_images_that_it_is_given(tmp_path):
    folder, small = an_upsampler(tmp_path), tmp_path / "small.npz"
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.savez(small, arr_0=images)  # as the reference's scripts write them
    np.savez(tmp_path / "other.npz", arr_0=images[::-1].copy())
    enlarged = []
    for file in (small, tmp_path / "other.npz"):
        path = sample_run(folder, SampleSettings(Ancestral(), 3, 64, low_res=file))
        enlarged.append(np.load(path.with_suffix(".npz"))["samples"])
    assert enlarged[0].shape == (5, 3, 16, 16)
    assert not np.array_equal(*enlarged)


def test_an_upsampler_without_fitting_images_says_what_it_needs(tmp_path, tiny_run):
    folder = an_upsampler(tmp_path)
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((2, 16, 16, 3), np.uint8))
    (tmp_path / "text.npz").write_text("no")
    for low_res, message in [
        (None, "give it images of 8 pixels with --low-res"),
        (tmp_path / "large.npz", "3x8x8 are needed"),
        (tmp_path / "text.npz", "cannot be read"),
    ]:
        with pytest.raises(SpecError, match=message):
            sample_run(folder, SampleSettings(Ancestral(), 3, 2, low_res=low_res))
    with pytest.raises(SpecError, match="not an upsampler"):
        sample_run(tiny_run(), SampleSettings(Ancestral(), 3, 2, low_res=tmp_path / "large.npz"))


def distortion(directory) -> float:
    """Measure the imported weights on two random images, by the short chain that a test can afford."""
    spec = RunSpec.model_validate(directory.spec())
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    split = Split(images, np.zeros(2, np.int64))
    data, cpu = build("cifar10", spec.data.facts, split, split), torch.device("cpu")
    method, _ = load_method(directory.path, spec, data, device=cpu)
    wanted = Evaluation(rate_distortion=RateDistortion(num_images=1, num_steps=3)).resolve(spec, inception=False)
    return evaluate(EvaluationContext(method, spec, data, wanted, cpu)).metrics["eval/distortion_rmse"]


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
    picture = sample_run(directory.path, SampleSettings(Ancestral(), 2, 1))
    assert picture.exists()
    assert distortion(directory) > 0

    export_checkpoint(directory.path, tmp_path / "out.pt")
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(out) == list(network.state_dict())
    assert all(torch.equal(out[key], value) for key, value in network.state_dict().items())


def test_an_imported_run_without_its_file_says_what_to_do(tiny_run):
    folder = tiny_run("", f"imported_sha256={SHA256}")
    assert run_job(folder, sync=False, show_progress=False) == "failed"
    assert "import-checkpoint" in RunDirectory(folder).status().reason


def test_a_trained_run_goes_out_and_its_layout_is_the_published_one(tiny_run, tmp_path):
    folder = tiny_run()
    run_job(folder, sync=False, show_progress=False)
    assert export_checkpoint(folder, tmp_path / "run.pt", weights="raw") == 12
    assert "time_embed.0.weight" in torch.load(tmp_path / "run.pt", weights_only=True)


def test_a_run_without_a_checkpoint_cannot_go_out(tiny_run, tmp_path):
    with pytest.raises(RecordError, match="no checkpoint yet"):
        export_checkpoint(tiny_run(), tmp_path / "run.pt")
