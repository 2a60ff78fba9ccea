"""`harness score`: images from elsewhere are measured as a run's own samples are, or refused."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from harness.analysis.answers import results
from harness.analysis.runs import load_records
from harness.analysis.tables import tab_results
from harness.cli import cli
from harness.datasets import make_dataset
from harness.errors import DataError, SpecError
from harness.evaluation.scoring import read_images, read_labels, score
from harness.job.job import run_job
from harness.records.directory import RunDirectory
from harness.records.manifest import ask_for
from harness.spec.evaluation import Fidelity
from harness.spec.run import Cifar10, Digits, Mog
from harness.testing import tiny_study, write_run

FIDELITY = """
evaluate:
  - fidelity: {num_samples: 48, sampler: ddim, num_steps: 2, k: 4, reference: test,
               metrics: [fid, class_fid, precision, recall]}
"""


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
    [run] = tiny_study(tmp_path, FIDELITY, ["model.class_cond=true"])
    runs = tmp_path / "runs"
    directory = write_run(run, runs)
    ask_for(runs, "tiny", {run.run_key: run.membership()})
    assert run_job(directory.path, sync=False, show_progress=False) == "done"
    own = {
        row.key.removeprefix("eval/").removesuffix("_digitsnet_48_ddim2"): row.value
        for row in RunDirectory(directory.path).rows()
        if row.key.startswith("eval/") and "by_class" not in row.key
    }
    npz = tmp_path / "samples.npz"
    harness(runs, "sample", run.run_key, "--num-steps", 2, "--num-samples", 48, "--out", npz)
    images = np.load(npz)["arr_0"]
    of_file, _ = harness(runs, "score", npz, "--study", "tiny", "--as", "theirs")
    of_folder, without = harness(runs, "score", save(tmp_path / "png", images), "--study", "tiny", "--data", "digits")
    assert of_file["metrics"] == own == of_folder["metrics"] | {"class_fid": own["class_fid"]}
    assert "left out: class_fid: these images have no classes" in without and "class_fid" not in of_folder["metrics"]
    assert (
        "features of digitsnet, accuracy 99" in without and "48 images against 355 images of the test split" in without
    )
    assert of_file["images_sha256"] == of_folder["images_sha256"]
    protocol = json.loads(directory.evaluation_path(run.evaluations[0].key).read_text())
    assert {name: of_file[name] for name in ("extractor", "fidelity")} == {
        name: protocol[name] for name in ("extractor", "fidelity")
    }
    rows = tab_results.rows(results.data(load_records(runs, "tiny")))
    assert [(row["model"], row["arm"], row["fid"]) for row in rows] == [
        ("trained", "base", f"{own['fid']:.2f} (no interval)"),
        ("not ours", "theirs", f"{own['fid']:.2f} (no interval)"),
    ]
    _, messages = harness(runs, "score", save(tmp_path / "few", images[:32]), "--study", "tiny")
    assert "these are 32 images, and the study measures 48 samples" in messages
    no_protocol = r"no measurement by protocol laptop, .*: eval: num_samples 2000 against 48, .*num_steps 50 against 2"
    with pytest.raises(SpecError, match="Score 48 images, or leave out --as"):
        harness(runs, "score", tmp_path / "few", "--study", "tiny", "--as", "few")
    for arguments, error, message in (
        (("--protocol", "laptop", "--study", "tiny"), SpecError, no_protocol),
        (("--protocol", "lap", "--study", "tiny"), SpecError, "--protocol 'lap': did you mean 'laptop'?"),
        (("--protocol", "lap", "--data", "digits"), SpecError, "--protocol 'lap': did you mean 'laptop'?"),
        (("--protocol", "adm", "--data", "digits"), DataError, "nception"),
        (("--as", "base", "--study", "tiny"), SpecError, "has an arm of that name"),
        (("--data", "mog", "--study", "tiny"), SpecError, "study tiny is of digits"),
        (("--as", "x"), SpecError, "name it with --study"),
        ((), SpecError, "Give --data NAME, or --study STUDY"),
        (
            ("--data", "digit"),
            SpecError,
            r"data: unknown name 'digit'; did you mean 'digits'\? \(choices: digits, mnist",
        ),
        (
            ("--data", "{name: image_folder, path: /a, image_size: 8}"),
            SpecError,
            "line: data.path: '/a' leaves data_root",
        ),
    ):
        with pytest.raises(error, match=message):
            harness(runs, "score", npz, *arguments)


def test_a_flat_folder_without_labels_gives_a_number_by_random_features(tmp_path):
    random = np.random.default_rng(0)
    save(tmp_path / "flat", random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    theirs = save(tmp_path / "theirs", random.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8))
    data = "{name: image_folder, path: flat, image_size: 8}"
    document, messages = harness(tmp_path, "score", theirs, "--data", data, "--data-root", tmp_path)
    assert document["extractor"]["name"] == "random_features" and document["metrics"]["fid"] > 0
    assert messages.endswith("images of the train split of image_folder, features of random_features\n")


def test_a_metric_of_classes_alone_is_refused_where_there_are_none(digits):
    part = Fidelity(metrics=("class_fid",), extractor="random_features")
    with pytest.raises(DataError, match="class_fid: these images have no classes; an npz has them in arr_1"):
        score(np.zeros((16, 1, 8, 8), np.uint8), digits, part, torch.device("cpu"))


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


def test_classes_are_read_where_the_npz_has_one_for_each_image(tmp_path, digits):
    grey = np.zeros((16, 8, 8, 1), np.uint8)

    def npz(labels):
        np.savez(tmp_path / "labels.npz", arr_0=grey, **({} if labels is None else {"arr_1": labels}))
        return tmp_path / "labels.npz"

    assert read_labels(npz(None), digits, 16) is None and read_labels(tmp_path, digits, 16) is None
    assert read_labels(npz(np.arange(16, dtype=np.uint8) % 10), digits, 16).tolist() == [*range(10), *range(6)]
    for labels in (np.arange(16), np.arange(16) - 1, np.zeros(15, int), np.zeros(16), np.zeros((16, 10), int)):
        with pytest.raises(DataError, match="has to be the classes of the 16 images, integers from 0 to 9"):
            read_labels(npz(labels), digits, 16)


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
