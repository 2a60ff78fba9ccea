"""`harness score`: images from elsewhere are measured as a run's own samples are, or refused."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from harness.analysis import tab_results
from harness.analysis.runs import load_records
from harness.cli import cli
from harness.errors import DataError, SpecError
from harness.evaluation.scoring import read_images
from harness.job.job import run_job
from harness.records.directory import RunDirectory
from harness.records.manifest import ask_for
from harness.registry import make_dataset
from harness.spec.run import Cifar10, Digits, Mog
from harness.testing import tiny_study, write_run

FIDELITY = "evaluate: [{fidelity: {num_samples: 48, sampler: ddim, num_steps: 2, k: 4, reference: test}}]\n"


@pytest.fixture(scope="module")
def digits():
    return make_dataset(Digits())


def harness(runs, *arguments):
    result = CliRunner().invoke(cli, [*map(str, arguments), "--runs", str(runs), "--json"])
    if result.exception:
        raise result.exception
    return json.loads(result.stdout), result.stderr


def save(folder, images, **options):
    """Write [N, H, W, C] as one PNG each."""
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / f"{index:04d}.png", **options)
    return folder


def test_a_run_s_own_samples_have_the_numbers_that_they_had_inside_the_run_as_a_file_and_as_a_folder(tmp_path):
    [run] = tiny_study(tmp_path, FIDELITY)
    runs = tmp_path / "runs"
    directory = write_run(run, runs)
    ask_for(runs, "tiny", {run.run_key: run.membership()})
    assert run_job(directory.path, sync=False, show_progress=False) == "done"
    own = {
        row.key.removeprefix("eval/").removesuffix("_digitsnet_48_ddim2"): row.value
        for row in RunDirectory(directory.path).rows()
        if row.key.startswith("eval/")
    }
    npz = tmp_path / "samples.npz"
    harness(runs, "sample", run.run_key, "--num-steps", 2, "--num-samples", 48, "--out", npz)
    images = np.load(npz)["arr_0"]
    of_file, _ = harness(runs, "score", npz, "--study", "tiny", "--as", "theirs")
    of_folder, _ = harness(runs, "score", save(tmp_path / "png", images), "--study", "tiny", "--data", "digits")
    assert of_file["metrics"] == own == of_folder["metrics"]
    assert of_file["images_sha256"] == of_folder["images_sha256"]
    protocol = json.loads(directory.evaluation_path(run.evaluations[0].key).read_text())
    assert {name: of_file[name] for name in ("extractor", "fidelity")} == {
        name: protocol[name] for name in ("extractor", "fidelity")
    }
    rows = tab_results.rows(tab_results.data(load_records(runs, "tiny")))
    assert [(row["model"], row["arm"], row["fid"]) for row in rows] == [
        ("trained", "base", f"{own['fid']:.2f}"),
        ("not ours", "theirs", f"{own['fid']:.2f}"),
    ]
    _, messages = harness(runs, "score", save(tmp_path / "few", images[:32]), "--study", "tiny")
    assert "these are 32 images, and the study measures 48 samples" in messages
    for arguments, error, message in (
        (("--as", "base", "--study", "tiny"), SpecError, "has an arm of that name"),
        (("--data", "mog", "--study", "tiny"), SpecError, "study tiny is of digits"),
        (("--as", "x"), SpecError, "name it with --study"),
        ((), SpecError, "Give --data NAME, or --study STUDY"),
        (("--data", "digit"), SpecError, "choices: digits, mnist"),
    ):
        with pytest.raises(error, match=message):
            harness(runs, "score", npz, *arguments)


def test_images_of_another_size_kind_or_number_are_refused_by_name(tmp_path, digits):
    random = np.random.default_rng(0)
    grey = random.integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)

    def npz(name, **arrays):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    assert read_images(npz("right.npz", arr_0=grey, arr_1=np.arange(16)), digits).shape == (16, 1, 8, 8)
    colours = save(tmp_path / "colours", random.integers(0, 256, (16, 8, 8, 3), dtype=np.uint8))
    damaged = save(tmp_path / "damaged", grey)
    (damaged / "0003.png").write_bytes(b"no picture")
    for path, message in (
        (npz("few.npz", arr_0=grey[:15]), "has 15 images, but at least 16 are needed"),
        (npz("float.npz", arr_0=grey / 255), r"arr_0 is float64 \[16, 8, 8, 1\]; .* uint8 \[N, 8, 8, 1\]"),
        (npz("nchw.npz", arr_0=grey.transpose(0, 3, 1, 2)), r"\[16, 1, 8, 8\]"),
        (npz("named.npz", images=grey), "has no arr_0, which holds the images; it has images"),
        (tmp_path / "nowhere", "no folder or npz"),
        (colours, r"0000\.png: has colours, but the images of digits are grey"),
        (
            save(tmp_path / "large", np.repeat(np.repeat(grey, 2, 1), 2, 2)),
            "has 16x16 pixels; those of digits have 8x8",
        ),
        (damaged, r"0003\.png: not a readable image"),
    ):
        with pytest.raises(DataError, match=message):
            read_images(path, digits)
    with pytest.raises(DataError, match="mog is continuous"):
        read_images(colours, make_dataset(Mog()))


def test_grey_and_jpeg_files_are_images_of_colour_data_too(tmp_path, digits):
    class Colour:
        name, image_size, channels, levels = "cifar10", 8, 3, 256

    assert Cifar10().facts.channels == Colour.channels
    images = np.full((16, 8, 8, 3), 77, dtype=np.uint8)
    folder = save(tmp_path / "mixed", images)
    Image.fromarray(images[0]).save(folder / "0000.jpg", quality=95)
    Image.fromarray(images[0, :, :, 0]).save(folder / "grey.png")
    (folder / "readme.txt").write_text("no image")
    read = read_images(folder, Colour())
    assert read.shape == (18, 3, 8, 8) and abs(read.astype(int) - 77).max() <= 1
