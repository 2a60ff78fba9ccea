"""Rungs of a Python study by the commands that a user types: who was dropped is told by status and by MLflow."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ARMS = """
import harness

SPEC = {
    "data": "mog", "diffusion": {"num_timesteps": 30}, "model": {"name": "mlp", "width": 16, "depth": 1},
    "train": {"steps": 12, "batch_size": 16, "ema_rate": 0.8}, "resources": {"device": "cpu", "threads": 1},
}


def study():
    nll = {"name": "eval", "every": 4, "nll": {"num_images": 16, "evaluations_per_image": 4}}
    runs = [harness.run(arm=f"lr={lr}", spec=SPEC | {"optim": {"lr": lr}}, evaluate=[nll]) for lr in (1e-4, 1e-2)]
    return harness.python_study("climb", runs, rungs=[4, 12], reduction_factor=2, compare={"metric": "nll"})
"""


def harness(folder, *arguments):
    left_out = ("MLFLOW_TRACKING_URI", "HARNESS_RUNS")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "harness.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_arm_that_was_dropped_is_told_as_such_everywhere(tmp_path):
    (tmp_path / "arms.py").write_text(ARMS)
    assert "let on from a rung: 1 run" in harness(tmp_path, "submit", "arms.py", "--jobs", "2")
    shown = harness(tmp_path, "status", "climb")
    assert "1 pruned" in shown and "1 done" in shown and "paused" not in shown

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.kind = 'run'")
    states = Counter((run.info.status, run.data.tags["state"], run.data.tags.get("cause")) for run in runs)
    assert states == {("FINISHED", "done", None): 1, ("KILLED", "pruned", "rung"): 1}
    [dropped] = client.search_runs(experiments, "tags.kind = 'run' and tags.cause = 'rung'")
    assert "is not among the best" in dropped.data.tags["reason"]
