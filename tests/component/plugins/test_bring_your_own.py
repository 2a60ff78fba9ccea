"""The how-to's plugins in use: submit, likelihood, FID, a metric of one's own, samples, figures and a search."""

import shutil
from pathlib import Path

import pytest

from harness.evaluation.sampling import SampleSettings, sample_run
from harness.job.job import run_job
from harness.launch import planning
from harness.launch.submit import submit
from harness.records.directory import RunDirectory
from harness.search.loading import load_search
from harness.search.trials import TrialRecord, best_study
from harness.spec.evaluation import Ancestral
from harness.study.expand import load_study
from harness.testing import check_parts

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "bring_your_own"
SEARCH = """
study: search-own
plugins: [my_parts.py]
data: digits
diffusion: {num_timesteps: 50, schedule: sigmoid}
objective: p2
model: {name: dit, width: 16, depth: 1, num_heads: 2, patch_size: 4}
train: {steps: 2, batch_size: 8, ema_rate: 0.0}
evaluate: [{name: eval, metrics: [{name: contrast, num_samples: 8, num_steps: 2}]}]
search:
  space: {diffusion.schedule.tau: {float: [0.5, 2.0]}, objective.gamma: {float: [0.0, 1.0]}}
  metrics: [{eval/contrast: maximize}]
  trials: 2
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(EXAMPLE, folder / "study")
    sets = [
        *("train.steps=2", "train.batch_size=8", "records.log_every=1"),
        *("evaluate.0.nll.num_images=8", "evaluate.0.fidelity.num_samples=16", "evaluate.0.fidelity.num_steps=2"),
        *("evaluate.0.fidelity.prc_reference=16", "evaluate.0.grid=4"),
        *("evaluate.1.metrics=[{name: contrast, num_samples: 8, num_steps: 2}]",),
    ]
    study = load_study(folder / "study" / "my_study.yaml", sets=sets)
    submission = submit(planning.plan(study, folder / "runs"), cluster="debug", sync=False)
    # The runs are worked on with the frozen files alone.
    shutil.rmtree(folder / "study")
    assert submission.wait(lambda: None)
    return study, folder / "runs"


def test_every_arm_is_trained_and_measured_by_likelihood_fid_and_its_own_metric(done):
    study, runs_folder = done
    for run in study.runs:
        directory = RunDirectory(runs_folder / run.run_key)
        assert directory.status().state == "done", directory.status().reason
        values = {row.key: row.value for row in directory.rows()}
        assert {"eval/nll_bpd", "eval_contrast/contrast", "eval_contrast/contrast_of_data"} <= set(values)
        assert any(key.startswith("eval/fid_") for key in values)


def test_the_parts_pass_the_checks_for_plugins(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "study")
    runs = load_study(tmp_path / "study" / "my_study.yaml").runs
    assert {run.spec.model.name for run in runs} >= {"dit"}
    for run in runs:
        check_parts(run)


def test_a_run_is_sampled_later_by_its_directory_alone(done):
    study, runs_folder = done
    run = next(run for run in study.runs if run.arm == "dit")
    path = sample_run(runs_folder / run.run_key, SampleSettings(Ancestral(), 2, 4))
    assert path.is_file()


def test_the_figures_find_the_runs_and_their_measurements(done):
    from harness.analysis.figures import fig_learning_curves
    from harness.analysis.runs import load_records

    study, runs_folder = done
    records = load_records(runs_folder, study.name)
    assert [record.arm for record in records if record.arm == "dit"] == ["dit"]
    assert set(fig_learning_curves.data(records)["arm"]) == {run.arm for run in study.runs}


def test_parameters_of_plugins_are_searched_and_their_metric_is_the_objective(tmp_path):
    for path in EXAMPLE.glob("*.py"):
        shutil.copy(path, tmp_path)
    (tmp_path / "search.yaml").write_text(SEARCH)
    search = load_search(tmp_path / "search.yaml")
    run = search.trial(0, {"diffusion.schedule.tau": 0.7, "objective.gamma": 0.5}).runs[0]
    assert run.spec.diffusion.schedule.tau == 0.7 and run.spec.plugins
    directory = RunDirectory(tmp_path / "runs" / run.run_key)
    directory.register(run)
    assert run_job(directory.path, sync=False, show_progress=False) == "done"
    assert search.metrics[0].name in {row.key for row in directory.rows()}


def test_the_winner_of_a_search_is_a_study_that_names_the_plugins(tmp_path):
    for path in EXAMPLE.glob("*.py"):
        shutil.copy(path, tmp_path)
    (tmp_path / "search.yaml").write_text(SEARCH)
    search = load_search(tmp_path / "search.yaml")
    trial = TrialRecord(0, {"diffusion.schedule.tau": 0.7, "objective.gamma": 0.5}, [])
    (tmp_path / "best.yaml").write_text(best_study(search, trial))
    (run,) = load_study(tmp_path / "best.yaml").runs
    assert run.run_key == search.trial(0, trial.point).runs[0].run_key
