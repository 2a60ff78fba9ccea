"""`harness sample --out`: the layout of guided-diffusion, a description, and a kill that costs one batch."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.errors import RecordError, SpecError
from harness.evaluation.sampling import SampleSettings, sample_run, write_samples
from harness.job.job import run_job
from harness.spec.evaluation import Ddim
from harness.testing import tiny_study, write_run

CONDITIONAL = ("model.class_cond=true", "model.label_dropout=0.1", "train.steps=2", "train.batch_size=4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    directory = write_run(tiny_study(folder, "", CONDITIONAL)[0], folder / "runs")
    assert run_job(directory.path, sync=False, show_progress=False) == "done"
    return directory.path


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "runs" / trained.name)


def harness(run, *arguments):
    result = CliRunner().invoke(cli, ["sample", run.name[:8], *arguments, "--runs", str(run.parent), "--json"])
    if result.exception:
        raise result.exception
    return json.loads(result.stdout)


def test_the_file_has_images_and_classes_as_guided_diffusion_writes_them_and_a_description(run, tmp_path):
    out = tmp_path / "given" / "samples.npz"
    result = harness(run, "--num-steps", "2", "--num-samples", "12", "--out", str(out))
    assert result == {"run_key": run.name, "manifest": str(out.with_suffix(".json")), "file": str(out)}
    arrays = np.load(out)
    assert arrays.files == ["arr_0", "arr_1"]
    assert (arrays["arr_0"].shape, arrays["arr_0"].dtype) == ((12, 8, 8, 1), np.uint8)
    assert arrays["arr_1"].tolist() == [*range(10), 0, 1]
    grid = sample_run(run, SampleSettings(Ddim(), 2, 12))
    assert np.array_equal(np.load(grid.with_suffix(".npz"))["samples"], arrays["arr_0"].transpose(0, 3, 1, 2))
    described = json.loads(out.with_suffix(".json").read_text())
    assert described.keys() >= {"weights_sha256", "harness", "batch_size", "device"}
    stated = ("run_key", "step", "weights", "num_samples", "num_steps", "seed", "guidance", "class")
    assert [described[key] for key in stated] == [run.name, 2, "ema", 12, 2, 0, 1.0, None]
    assert described["sampler"]["name"] == "ddim"
    assert sorted(path.name for path in out.parent.iterdir()) == ["samples.json", "samples.npz"]


def test_a_class_and_a_guidance_are_those_that_are_asked_for(run, tmp_path):
    common = ("--num-steps", "2", "--num-samples", "4")
    harness(run, *common, "--class", "3", "--out", str(tmp_path / "three.npz"))
    harness(run, *common, "--class", "3", "--guidance", "1000", "--out", str(tmp_path / "guided.npz"))
    three, guided = (np.load(tmp_path / f"{name}.npz") for name in ("three", "guided"))
    assert three["arr_1"].tolist() == guided["arr_1"].tolist() == [3] * 4
    assert not np.array_equal(three["arr_0"], guided["arr_0"])
    assert harness(run, *common, "--class", "3", "--guidance", "1000")["file"].endswith("_ema_class3_guidance1000.png")
    with pytest.raises(SpecError, match="--class 10: the classes are 0 to 9"):
        harness(run, *common, "--class", "10")


def test_an_interrupted_file_is_gone_on_with_and_a_complete_one_is_left_as_it_is(run, tmp_path):
    settings, out, drawn = SampleSettings(Ddim(), 2, 600), tmp_path / "out.npz", []

    def write(settings=settings, kill_after=None):
        def on_progress(task, done, total):
            drawn.append(done)
            if len(drawn) == kill_after:
                raise KeyboardInterrupt

        return write_samples(run, settings, out, code_version="1", on_progress=on_progress)

    expected = np.load(sample_run(run, settings).with_suffix(".npz"))["samples"].transpose(0, 2, 3, 1)
    with pytest.raises(KeyboardInterrupt):
        write(kill_after=4)  # in the second of three batches of two steps each
    assert not out.exists()
    drawn.clear()
    write()
    assert len(drawn) == 4 and np.array_equal(np.load(out)["arr_0"], expected)
    drawn.clear()
    write()
    assert not drawn
    with pytest.raises(RecordError, match="is there already, and not of these samples"):
        write(SampleSettings(Ddim(), 2, 601))
    with pytest.raises(SpecError, match=r"ends in \.npz"):
        write_samples(run, settings, tmp_path / "out.png", code_version="1")


def test_a_network_without_classes_is_asked_for_none(tiny_run):
    for options, message in ((("--class", "3"), "takes no classes"), (("--guidance", "2"), "label_dropout")):
        with pytest.raises(SpecError, match=message):
            harness(tiny_run(), *options)
