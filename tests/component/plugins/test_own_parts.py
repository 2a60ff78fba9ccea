"""A user's own data sets, timestep sampler, sampler and metric in one study: trained, resumed, measured and drawn."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.data.base import Dataset
from harness.errors import DataError
from harness.evaluation.sampling import sample_run
from harness.job.job import run_job
from harness.job.verify import digests
from harness.launch import planning
from harness.records.directory import RunDirectory
from harness.records.plugins import plugins_of_run, read_spec
from harness.registry import make_dataset
from harness.spec.evaluation import Sampler
from harness.spec.metrics import outputs
from harness.spec.parts import active, choices
from harness.study.expand import load_study
from harness.training.checkpoints import Checkpoints

PARTS = Path(__file__).parent / "parts"
POINTS = """
study: points
plugins: [own_parts.py]
data: ring
diffusion: {num_timesteps: 30}
timestep_sampler: {name: halves, momentum: 0.5}
model: {name: mlp, width: 16, depth: 1, class_cond: true}
train: {steps: 12, batch_size: 32, ema_rate: 0.8}
records: {log_every: 3}
resources: {device: cpu, threads: 1}
arms:
  built-in: {timestep_sampler: uniform}
  own: {}
evaluate:
  - name: eval
    fidelity: {num_samples: 32, num_steps: 5, sampler: {name: euler, churn: 0.3}, prc_reference: 100}
    grid: 4
  - {name: eval_sweep, sweep: {num_samples: 32, num_steps: [2, 5], samplers: [ddim, euler]}}
  - {name: eval_own, metrics: [{name: spread, num_samples: 32}]}
"""
IMAGES = """
study: images
plugins: [own_parts.py]
data: {name: stripes, size: 4}
diffusion: {num_timesteps: 30}
timestep_sampler: halves
model: {channels: 8, channel_mult: [1], num_res_blocks: 1, attention_resolutions: [], num_heads: 1}
train: {steps: 4, batch_size: 16, ema_rate: 0.5}
resources: {device: cpu, threads: 1}
evaluate:
  - {name: eval, nll: {num_images: 8}, fidelity: {num_samples: 32, num_steps: 5, sampler: euler}, grid: 4}
"""


def write(folder: Path, text: str) -> Path:
    """Write a study with its plugin beside it."""
    folder.mkdir(exist_ok=True)
    for path in PARTS.glob("*.py"):
        shutil.copy(path, folder)
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"


def register(runs_folder: Path, run) -> RunDirectory:
    directory = RunDirectory(runs_folder / run.run_key)
    directory.register(run)
    return directory


def work_on(directory: RunDirectory, **options) -> str:
    return run_job(directory.path, sync=False, show_progress=False, **options)


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """Return the study of points and its runs' directories by arm, trained and evaluated without the plugin's file."""
    folder = tmp_path_factory.mktemp("points")
    study = load_study(write(folder / "study", POINTS))
    directories = {run.arm: register(folder / "runs", run) for run in study.runs}
    shutil.rmtree(folder / "study")
    for directory in directories.values():
        assert work_on(directory) == "done", directory.status().reason
    return study, directories


def test_every_number_that_the_study_asks_for_is_recorded_and_finite(points):
    study, directories = points
    for run in study.runs:
        values = {row.key: row.value for row in directories[run.arm].rows()}
        for evaluation in run.evaluations:
            names = outputs(evaluation, run.spec)
            assert names.metrics or names.curves
            for name in (*names.metrics, *names.curves):
                assert math.isfinite(values[name]), name
        assert "eval/fid_coordinates_32_euler5" in values
        # On a circle of radius 1/2 around the mean.
        assert values["eval_own/spread_of_data"] == pytest.approx(0.5, abs=0.05)


def test_the_timestep_sampler_learns_and_changes_what_is_drawn(points):
    _, directories = points
    state = Checkpoints(directories["own"].checkpoints_folder).latest()[1]
    loss = state["timesteps"]["loss"]
    assert loss.shape == (2,) and not (loss == 1).all()
    curves = [directory.history("train/mse")[1] for directory in directories.values()]
    assert curves[0] != curves[1]


def test_it_is_sampled_later_by_its_own_sampler(points):
    _, directories = points
    directory = directories["own"]
    with active(plugins_of_run(directory)):
        euler = choices(Sampler)["euler"](churn=0.5)
    path = sample_run(directory.path, sampler=euler, num_steps=3, num_samples=6)
    with np.load(path) as file:
        assert file["samples"].shape == (6, 2, 1, 1) and np.isfinite(file["samples"]).all()


def test_the_command_line_samples_by_it_and_lists_it_among_the_choices(points):
    _, directories = points
    directory = directories["own"]
    arguments = ["sample", directory.key, "--runs", str(directory.path.parent), "--num-samples", "4"]
    done = CliRunner().invoke(cli, [*arguments, "--sampler", "euler", "--json"])
    assert done.exit_code == 0, done.output
    assert Path(json.loads(done.stdout)["file"]).is_file()
    refused = CliRunner().invoke(cli, [*arguments, "--sampler", "eulre"])
    assert "did you mean 'euler'?" in str(refused.exception)


def test_the_figures_show_its_sampler_in_the_sweep_and_its_metric_in_the_table(points, tmp_path):
    study, directories = points
    runs_folder = directories["own"].path.parent
    done = CliRunner().invoke(cli, ["figures", study.name, "--runs", str(runs_folder), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "points" / "sampling_steps.png").is_file()
    with (tmp_path / "points" / "sampling_steps.csv").open() as file:
        drawn = {(row["arm"], row["sampler"]) for row in csv.DictReader(line for line in file if line[0] != "#")}
    assert drawn == {(arm, sampler) for arm in directories for sampler in ("ddim", "euler")}
    header, _, *rows = (tmp_path / "points" / "results.md").read_text().splitlines()
    assert header.endswith("| spread | spread_of_data |")
    measured = directories["own"].history("eval_own/spread")[1][0]
    assert [row for row in rows if row.startswith("| own · eval_own ") and f"| {measured:.3f} |" in row]


def test_images_of_its_own_train_a_unet_and_the_extractor_that_compares_them(tmp_path):
    (run,) = load_study(write(tmp_path / "study", IMAGES)).runs
    directory = register(tmp_path / "runs", run)
    assert work_on(directory) == "done", directory.status().reason
    values = {row.key: row.value for row in directory.rows()}
    assert math.isfinite(values["eval/fid_stripesnet_32_euler5"]) and math.isfinite(values["eval/nll_bpd"])
    assert (directory.samples_folder / "eval_samples.png").is_file()


def test_a_run_that_was_interrupted_resumes_with_the_frozen_plugin_in_the_bits_of_an_unbroken_one(tmp_path):
    path = write(tmp_path / "study", POINTS)
    run = load_study(path).runs[1]
    unbroken, broken = (register(tmp_path / folder, run) for folder in ("unbroken", "broken"))
    assert work_on(unbroken) == "done"
    assert work_on(broken, stop_after_steps=5) == "interrupted"
    torch_parts = path.parent / "own_torch_parts.py"
    torch_parts.write_text(torch_parts.read_text().replace("return self._loss[late.long()]", "raise RuntimeError"))
    assert work_on(broken) == "done", broken.status().reason
    states = [Checkpoints(directory.checkpoints_folder).latest()[1] for directory in (unbroken, broken)]
    assert digests(states[0]) == digests(states[1])
    # The edited study asks for runs of its own: those are new, and say so before anything is queued.
    edited = planning.plan(load_study(path), tmp_path / "broken")
    assert [planned.state for planned in edited.runs] == ["new", "new"]
    assert run.run_key not in {planned.run_key for planned in edited.runs}


def test_a_sampler_that_was_edited_asks_for_another_measurement_of_the_same_weights(tmp_path):
    path = write(tmp_path / "study", POINTS)
    run = load_study(path, sets=["data=mog", "train.steps=2"]).runs[0]
    directory = register(tmp_path / "runs", run)
    assert work_on(directory) == "done", directory.status().reason
    before = directory.history("eval/fid_coordinates_32_euler5")[1]
    torch_parts = path.parent / "own_torch_parts.py"
    torch_parts.write_text(torch_parts.read_text().replace("churn * noise", "churn * noise / 2"))
    edited = load_study(path, sets=["data=mog", "train.steps=2"])
    planned = planning.plan(edited, tmp_path / "runs").runs[0]
    assert (planned.run_key, planned.state) == (run.run_key, "evaluate")
    directory.register(planned.run)
    assert work_on(directory) == "done", directory.status().reason
    assert len({row.value for row in directory.rows() if "fid_coordinates_32_euler5" in row.key}) == 2
    assert before[0] in {row.value for row in directory.rows()}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (('build("stripes"', 'build("strips"'), "stripes: the spec says name stripes, the files have strips"),
        (("DatasetFacts(size, 1, 16,", "DatasetFacts(size, 1, 17,"), "the spec says levels 16, the files have 17"),
        (("1, 16, num_classes)", "1, 16, 2)"), "the spec says num_classes 1, the files have 2"),
    ],
)
def test_a_data_set_that_is_not_what_its_parameters_say_is_refused(tmp_path, fault, message):
    path = write(tmp_path, IMAGES)
    torch_parts = path.parent / "own_torch_parts.py"
    torch_parts.write_text(torch_parts.read_text().replace(*fault))
    (run,) = load_study(path, sets=["data.num_classes=1", "evaluate=[]"]).runs
    with pytest.raises(DataError, match=message):
        make_dataset(run.spec.data)


def test_the_parameters_of_a_data_set_reach_its_function(tmp_path):
    path = write(tmp_path, IMAGES)
    (run,) = load_study(path, sets=["data.num_classes=1", "data.size=6", "evaluate=[]"]).runs
    dataset = make_dataset(run.spec.data)
    assert isinstance(dataset, Dataset)
    assert (dataset.image_size, dataset.num_classes, len(dataset.train)) == (6, 1, 200)


def test_the_spec_of_a_run_is_read_from_its_directory_alone(points):
    study, directories = points
    for run in study.runs:
        directory = directories[run.arm]
        assert read_spec(directory.path, directory.spec()) == run.spec
