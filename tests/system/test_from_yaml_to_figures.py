"""The whole way, by the commands that a user types: YAML, runs, MLflow, figures; and a second time, for nothing."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

STUDY = """
study: whole-way
data: digits
diffusion: {num_timesteps: 30, schedule: cosine}
model: {channels: 8, channel_mult: [1], num_res_blocks: 1, attention_resolutions: [], num_heads: 1}
optim: {lr: 2.0e-3}
train: {steps: 20, batch_size: 16, ema_rate: 0.8}
resources: {device: cpu}
grid:
  diffusion.schedule: [linear, cosine]
  objective & diffusion.var_type: [[simple, fixed], [hybrid, learned_range]]
replicates: 2
evaluate:
  - {nll: {num_images: 16, evaluations_per_image: 8}, fidelity: {num_samples: 32, num_steps: 5}, grid: 16}
  - {arms: [cosine-hybrid], replicates: [0], sweep: {num_samples: 32, num_steps: [2, 5]}}
"""
METRICS = {
    "train/loss",
    "train/mse",
    "train/vb",
    "train/grad_norm_preclip",
    "perf/images_per_second",
    "eval/nll_bpd",
    "eval/L_t_bpd",
    "eval/fid_digitsnet_32_ancestral5",
    "eval/precision_digitsnet_32_ancestral5",
    "eval/recall_digitsnet_32_ancestral5",
    "compute/train_multiply_adds",
}


def command(folder: Path, *arguments: str) -> str:
    environment = {
        key: value for key, value in os.environ.items() if key not in ("MLFLOW_TRACKING_URI", "HARNESS_RUNS")
    }
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_study_goes_from_yaml_to_runs_to_mlflow_to_figures_and_the_second_time_costs_nothing(tmp_path):
    (tmp_path / "study.yaml").write_text(STUDY)
    harness = str(Path(sys.executable).with_name("harness"))
    said = command(tmp_path, harness, "submit", "study.yaml", "--jobs", "2")
    assert "8 of 8 runs done" in said

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("whole-way")
    kinds = Counter(run.data.tags["kind"] for run in client.search_runs([experiment.experiment_id]))
    assert (kinds["run"], kinds["study"]) == (8, 1) and kinds["arm"] > 0
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'run'")
    assert Counter(run.info.status for run in runs) == {"FINISHED": 8}
    assert len({run.data.tags["run_key"] for run in runs}) == 8
    for run in runs:
        assert set(run.data.metrics) >= METRICS
        assert run.data.params["model.channels"] == "8" and run.data.tags["state"] == "done"
        assert [point.step for point in client.get_metric_history(run.info.run_id, "eval/L_t_bpd")] == list(range(30))
    (swept,) = (run for run in runs if "sweep/fid_digitsnet_32_ddim" in run.data.metrics)
    assert swept.data.tags["arm"] == "cosine-hybrid" and swept.data.tags["replicate"] == "0"

    assert "nothing to submit" in command(tmp_path, harness, "submit", "study.yaml")
    assert "8 runs: 8 done" in command(tmp_path, harness, "status", "study.yaml")
    command(tmp_path, harness, "sync", "study.yaml", "--check")

    command(tmp_path, sys.executable, "-m", "harness.cli", "figures")
    page = (tmp_path / "figures/index.html").read_text()
    for run in runs:
        assert run.data.tags["run_key"] in page
    for figure in ("L_t", "learning_curves", "sampling_steps", "samples"):
        for kind in ("png", "pdf", "csv"):
            assert (tmp_path / f"figures/whole-way/{figure}.{kind}").stat().st_size > 100
