"""verify-resume: equal where resume is exact, and a difference is named, with its key and step."""

import json

import pytest
import torch
from click.testing import CliRunner

from harness.cli import cli
from harness.errors import TrainingError
from harness.job.job import run_job
from harness.job.verify import verify_resume
from harness.records.directory import RunDirectory
from harness.spec.base import SCHEMA_VERSION
from harness.study.expand import load_study
from harness.testing import TINY_STUDY

EXTRA = """
evaluate:
  - {nll: {estimator: full, num_images: 4}, grid: 4}
arms:
  linear: {diffusion.schedule: {name: linear}}
replicates: 2
"""


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        TINY_STUDY.replace("steps: 12", "steps: 100000").replace("num_heads: 1", "num_heads: 1, dropout: 0.1") + EXTRA
    )
    return path


@pytest.mark.slow
def test_a_training_killed_and_resumed_is_certified_in_its_run_directory(study, tmp_path, capsys):
    run = load_study(study).runs[0]
    runs = tmp_path / "runs"
    directory = RunDirectory(runs / run.run_key).create(run.spec.model_dump(mode="json"), SCHEMA_VERSION)
    done = CliRunner().invoke(cli, f"verify-resume {study} --runs {runs} --kills 1 --steps 80".split())
    assert done.exit_code == 0, done.output
    assert f"{run.run_key} linear r0: equal bit for bit after 2 ends" in done.output
    assert "r1" not in done.output  # the first run of each arm
    (path,) = (directory.path / "certificates").glob("resume-*.json")
    found = json.loads(path.read_text())
    assert found["verdict"] == "equal" and found["steps"] == 80 and found["steps_of_the_run"] == 100_000
    assert sorted(end["signal"] for end in found["ends"]) == ["SIGKILL", "SIGTERM"]
    assert all(0 < end["after_the_row_of_step"] <= 80 for end in found["ends"])
    assert found["environment"]["torch"] == torch.__version__ and found["environment"]["threads"] == 1
    assert set(found["digests"]) == {
        "method.network",
        "method.ema",
        "method.optimizer",
        "timesteps",
        "window",
        "result_rows",
    }
    assert found["environment"]["code_version"] in path.name and list(runs.glob(".verify/*")) == []
    assert directory.attempts() == []  # the run itself was not touched


@pytest.mark.slow
def test_a_resume_that_forgets_something_is_found_and_named(study, tmp_path, monkeypatch):
    # A resume that loses the optimizer's moments: the kind of mistake that this is for.
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(
        "import sys\n"
        "if sys.argv[0] == '-m' and 'harness.job.verify' in sys.orig_argv:\n"
        "    from harness.methods.gaussian import GaussianMethod\n"
        "    def forgetful(self, state):\n"
        "        self.network.load_state_dict(state['method']['network'])\n"
        "        self.ema.load_state_dict(state['method']['ema'])\n"
        "    GaussianMethod.load_state_dict = forgetful\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    runs = tmp_path / "runs"
    done = CliRunner().invoke(cli, f"verify-resume {study} --runs {runs} --kills 1 --steps 80".split())
    assert done.exit_code == 1, done.output
    assert "linear r0: DIFFERENT: row train/" in done.output and "at step" in done.output
    (kept,) = (runs / ".verify").iterdir()  # for whoever looks for the cause
    assert {path.name for path in kept.iterdir()} == {"straight", "killed"}
    assert '"verdict": "different"' in done.output


@pytest.mark.slow
def test_a_run_that_continues_another_is_verified_from_there(study, tmp_path):
    runs = tmp_path / "runs"
    parent = load_study(study, sets=["train.steps=30", "evaluate=[]"]).runs[0]
    directory = RunDirectory(runs / parent.run_key)
    directory.register(parent)
    assert run_job(directory.path, sync=False, show_progress=False) == "done"
    run = load_study(study, sets=[f"continue_from={parent.run_key}"]).runs[0]
    found = verify_resume(run, runs, kills=1, steps=60)
    assert (found["verdict"], found["steps"]) == ("equal", 90)
    assert all(end["after_the_row_of_step"] > 30 for end in found["ends"])
    assert directory.attempts() == [1]  # the parent was only read


@pytest.mark.slow
def test_a_training_that_is_too_short_to_be_killed_is_said_so(study, tmp_path, monkeypatch):
    run = load_study(study, sets=["train.steps=1", "evaluate=[]"]).runs[0]
    with pytest.raises(TrainingError, match="training too short"):
        verify_resume(run, tmp_path / "runs", kills=1)
