"""Rungs by the commands that a user types: who was dropped is told by status, by the figures and by MLflow."""

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
SEARCH = """
study: hunt
data: mog
diffusion: {num_timesteps: 30}
model: {name: mlp, width: 16, depth: 1}
train: {steps: 12, batch_size: 16, ema_rate: 0.8}
resources: {device: cpu, threads: 1}
evaluate:
  - {name: eval, every: 4, nll: {num_images: 16, evaluations_per_image: 4}}
search:
  space: {optim.lr: {float: [1.0e-4, 1.0e-2], log: true}}
  metrics: [{eval/nll_bpd: minimize}]
  trials: 2
  parallel: 2
  rungs: [4, 12]
  reduction_factor: 2
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
def test_arms_in_python_and_trials_that_were_dropped_are_told_as_such_everywhere(tmp_path):
    (tmp_path / "arms.py").write_text(ARMS)
    (tmp_path / "search.yaml").write_text(SEARCH)
    assert "let on from a rung: 1 run" in harness(tmp_path, "submit", "arms.py", "--jobs", "2")
    shown = harness(tmp_path, "status", "climb")
    assert "1 pruned" in shown and "1 done" in shown and "paused" not in shown
    said = harness(tmp_path, "search", "search.yaml")
    assert "1 complete, 1 pruned; 0 of 2 left" in said and "is not among the best 1 of 2" in said
    assert (tmp_path / "runs" / ".search" / "hunt" / "figures" / "search_rungs.png").exists()

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.kind = 'run'")
    states = Counter((run.info.status, run.data.tags["state"], run.data.tags.get("cause")) for run in runs)
    assert states == {("FINISHED", "done", None): 2, ("KILLED", "pruned", "rung"): 2}
    dropped = client.search_runs(experiments, "tags.kind = 'run' and tags.cause = 'rung'")
    assert len(dropped) == 2 and all("is not among the best" in run.data.tags["reason"] for run in dropped)
