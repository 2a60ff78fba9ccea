"""Records with known numbers, written through the same classes that a job writes with; nothing is trained here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.records.directory import RunDirectory
from harness.records.status import Status
from harness.spec.evaluation import Evaluation
from harness.study.expand import load_study
from harness.study.model import Run

STUDY = """
study: small
data: digits
diffusion: {num_timesteps: 50}
model: {channels: 8, channel_mult: [1], num_res_blocks: 1, attention_resolutions: [], num_heads: 1}
train: {steps: 100, batch_size: 4, ema_rate: 0.9}
"""

Numbers = Callable[[Run], dict[str, float]]


def record(directory: RunDirectory, run: Run, evaluation: Evaluation, numbers: dict[str, float]) -> None:
    """Leave what a finished evaluation leaves: arrays, protocol, rows, and the event that says it is whole."""
    name, T = evaluation.name, run.spec.diffusion.num_timesteps
    (directory.path / "arrays").mkdir(exist_ok=True)
    (directory.path / "evaluations").mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    metrics: dict[str, float] = {}
    curves: dict[str, dict[int, float]] = {}
    protocol = {"evaluation": evaluation.model_dump(mode="json")}
    if evaluation.nll:
        metrics[f"{name}/nll_bpd"] = numbers["nll"]
        metrics[f"{name}/gaussian_baseline_bpd"] = 2.5
        protocol["likelihood"] = {"num_images": evaluation.nll.num_images or 355}
        L_t = numbers["nll"] * 0.5 ** np.arange(1, T + 1)
        np.savez(directory.path / "arrays" / f"{name}_likelihood.npz", L_t_bpd=L_t)
    if part := evaluation.fidelity:
        how = f"digitsnet_{part.num_samples}_{part.sampler.name}{part.num_steps}"
        metrics |= {f"{name}/{metric}_{how}": numbers[metric] for metric in ("fid", "precision", "recall")}
    if sweep := evaluation.sweep:
        prefix = "sweep" if name == "eval" else f"sweep_{name.removeprefix('eval_')}"
        for sampler in sweep.samplers:
            key = f"{prefix}/fid_digitsnet_{sweep.num_samples}_{sampler.name}"
            curves[key] = {steps: numbers[sampler.name] + 100 / steps for steps in sweep.num_steps}
    if evaluation.grid:
        samples = random.integers(0, 256, (evaluation.grid, 1, 8, 8), dtype=np.uint8)
        np.savez(directory.path / "arrays" / f"{name}_samples.npz", samples=samples)
    (directory.path / "evaluations" / f"{evaluation.key}.json").write_text(json.dumps(protocol))
    parts = [part for part in ("nll", "fidelity", "sweep", "grid") if getattr(evaluation, part)]
    steps = run.spec.train.steps
    with directory.lock(), directory.open_journal(resumed_from_step=steps) as journal:
        journal.metrics(steps, metrics)
        for key, curve in curves.items():
            for at, value in curve.items():
                journal.metrics(at, {key: value}, at=steps)
        journal.event("evaluation", key=evaluation.key, evaluation=name, prefix=name, parts=parts)


class StudyRuns:
    """Writes a study's runs with given numbers into a folder."""

    def __init__(self, home: Path):
        self.home = home

    def __call__(self, extra: str, numbers: Numbers, folder: str = "runs") -> Path:
        """Return the folder of the runs.

        `numbers(run)` may give nll, fid, precision, recall, ancestral, ddim, compute, and a state; a run that is not
        done is left without measurements.
        """
        path = self.home / "study.yaml"
        path.write_text(STUDY + extra)
        for run in load_study(path).runs:
            found = {"nll": 3.0, "fid": 10.0, "precision": 0.5, "recall": 0.4, "ancestral": 5.0, "ddim": 4.0}
            found |= {"compute": 1e9, "state": "done"} | numbers(run)
            directory = RunDirectory(self.home / folder / run.run_key)
            directory.register(run)
            directory.write_environment(1, {"harness": "1.2.3", "threads": 1})
            with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
                for step in range(10, 101, 10):
                    journal.metrics(step, {"train/mse": 10 / step, "train/vb": 1 / step, "train/loss": 10 / step})
                journal.metrics(100, {"compute/train_multiply_adds": found["compute"]})
                journal.event("checkpoint", step=100)
            directory.set_status(Status(state=found["state"], step=100, num_steps=100))
            for evaluation in run.evaluations if found["state"] == "done" else ():
                record(directory, run, evaluation, found | ({"nll": 5.0} if evaluation.weights == "untrained" else {}))
        return self.home / folder


@pytest.fixture
def study_runs(tmp_path: Path) -> StudyRuns:
    return StudyRuns(tmp_path)


@pytest.fixture(scope="module")
def study_runs_of_module(tmp_path_factory: pytest.TempPathFactory) -> StudyRuns:
    return StudyRuns(tmp_path_factory.mktemp("study"))
