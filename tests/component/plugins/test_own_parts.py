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
from harness.datasets import make_dataset
from harness.errors import DataError, SpecError
from harness.evaluation.sampling import SampleSettings, sample_run
from harness.job.job import run_job
from harness.job.verify import digests
from harness.launch import planning
from harness.records.directory import RunDirectory
from harness.records.lineage import parent_of
from harness.records.plugins import plugins_of_run, read_spec
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
LOSS = """
from typing import Literal
from harness.plugins import ObjectiveModel

class Huber(ObjectiveModel):
    name: Literal["huber"] = "huber"
    terms = ("loss", "largest")

def huber(process, model_output, x_0, x_t, t, noise):
    from torch.nn.functional import huber_loss
    target = process.mean_target(x_0, x_t, t, noise)
    error = huber_loss(model_output, target, reduction="none").flatten(1)
    return {"loss": error.mean(1), "largest": error.max(1).values}

OBJECTIVES = {"huber": (Huber, huber)}
"""
NETWORK = """
from typing import Literal
from harness.plugins import NetworkModel

class Fourier(NetworkModel):
    name: Literal["fourier"] = "fourier"

def fourier(in_channels, out_channels, image_size, num_classes):
    import torch
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.frequencies = torch.arange(8.0)  # no buffer
            self.linear = torch.nn.Linear(in_channels + 8, out_channels)
        def forward(self, x, t, y=None):
            h = torch.cat([x.flatten(1), (t[:, None] * self.frequencies).cos()], 1)
            return self.linear(h).reshape(len(x), -1, 1, 1)
    return Network()

MODELS = {"fourier": (Fourier, fourier)}
"""
SEARCH = """
study: search-own
plugins: [own_parts.py]
data: ring
diffusion: {num_timesteps: 30}
model: {name: mlp, width: 8, depth: 1}
train: {steps: 4, batch_size: 16, ema_rate: 0.5}
resources: {device: cpu, threads: 1}
evaluate: [{name: eval, metrics: [{name: spread, num_samples: 16, num_steps: 2}]}]
search:
  space:
    timestep_sampler: {choices: [uniform, halves]}
    timestep_sampler.momentum: {float: [0.1, 0.9], when: {timestep_sampler: halves}}
    data.radius: {float: [0.2, 0.8]}
  metrics: [{eval/spread: maximize}]
  sampler: random
  trials: 3
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
    path = sample_run(directory.path, SampleSettings(euler, 3, 6))
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


def test_a_network_whose_arithmetic_cannot_be_counted_trains_all_the_same(tmp_path):
    (tmp_path / "net.py").write_text(NETWORK)
    path = write(tmp_path, POINTS.replace("[own_parts.py]", "[own_parts.py, net.py]"))
    run = load_study(path, sets=["model=fourier", "data=ring"]).runs[1]
    directory = register(tmp_path / "runs", run)
    assert work_on(directory) == "done", directory.status().reason
    keys = {row.key for row in directory.rows()}
    assert "compute/parameters" in keys and "compute/train_flops" not in keys
    (event,) = directory.events("compute_not_counted")
    assert "cannot be counted by shapes alone" in event.fields["reason"]


@pytest.mark.slow
def test_a_search_over_its_parameters_runs_by_its_metric_and_is_drawn(tmp_path):
    path = write(tmp_path / "study", SEARCH)
    runs = ["--runs", str(tmp_path / "runs")]
    done = CliRunner().invoke(cli, ["search", str(path), *runs, "--jobs", "2", "--no-sync", "--json"])
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert [trial["state"] for trial in answer["trials"]] == ["complete"] * 3
    keys = {key for trial in answer["trials"] for key in trial["run_keys"]}
    assert len(keys) == 3
    for key in keys:
        (value,) = RunDirectory(tmp_path / "runs" / key).history("eval/spread")[1]
        assert value in [trial["values"]["eval/spread"] for trial in answer["trials"]]
    assert list((tmp_path / "runs" / ".search" / "search-own").rglob("search_history.png"))
    again = CliRunner().invoke(cli, ["search", str(path), *runs, "--no-sync"])
    assert again.exit_code == 0 and len(list((tmp_path / "runs").glob("[0-9a-f]*/spec.json"))) == 3
    torch_parts = path.parent / "own_torch_parts.py"
    torch_parts.write_text(torch_parts.read_text() + "# edited\n")
    refused = CliRunner().invoke(cli, ["search", str(path), *runs, "--no-sync"])
    assert "search search-own was started differently" in str(refused.exception)


def test_a_run_is_continued_with_an_objective_of_its_own_and_with_no_other_version_of_the_rest(tmp_path):
    path = write(tmp_path, POINTS)
    parent = register(tmp_path / "runs", load_study(path, sets=["evaluate=[]", "data=mog"]).runs[1])
    assert work_on(parent) == "done"
    further = ["evaluate=[]", "data=mog", f"continue_from={parent.key}", "train.steps=16"]
    (tmp_path / "loss.py").write_text(LOSS)
    path.write_text(
        POINTS.replace("[own_parts.py]", "[own_parts.py, loss.py]").replace("own: {}", "own: {objective: huber}")
    )
    child = register(tmp_path / "runs", load_study(path, sets=further).runs[1])
    assert work_on(child) == "done", child.status().reason
    recorded = {row.key for row in child.rows()}
    assert {"train/loss", "train/loss_q0", "train/largest", "train/largest_q3"} <= recorded
    assert not {"train/mse", "train/vb"} & recorded
    torch_parts = tmp_path / "own_torch_parts.py"
    torch_parts.write_text(torch_parts.read_text() + "# edited\n")
    edited = load_study(path, sets=further).runs[1]
    with pytest.raises(SpecError, match=r"of another kind:\n  plugins\.own_parts\.py: "):
        parent_of(edited.spec, tmp_path / "runs")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (('"largest": ', '"smallest": '), "the objective gives ['loss', 'smallest'], but declares ['largest', 'loss']"),
        (("error.mean(1)", "error.mean()"), "the objective gives terms of shape {'loss': [], 'largest': [32]}"),
    ],
)
def test_an_objective_that_gives_other_terms_than_it_declares_fails_with_the_reason(tmp_path, fault, message):
    (tmp_path / "loss.py").write_text(LOSS.replace(*fault))
    text = POINTS.replace("[own_parts.py]", "[own_parts.py, loss.py]").replace("own: {}", "own: {objective: huber}")
    run = load_study(write(tmp_path, text), sets=["evaluate=[]"]).runs[1]
    directory = register(tmp_path / "runs", run)
    assert work_on(directory) == "failed"
    assert message in directory.status().reason


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
