"""What several tests need: small real runs on the embedded digits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# One thread, so that tests of equal bits do not depend on the machine; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY_STUDY = """
study: tiny
data: digits
diffusion: {num_timesteps: 30, schedule: cosine}
model: {channels: 8, channel_mult: [1], num_res_blocks: 1, attention_resolutions: [], num_heads: 1}
optim: {lr: 1.0e-3}
train: {steps: 12, batch_size: 16, ema_rate: 0.8}
records: {log_every: 5}
resources: {device: cpu, threads: 1}
"""


@pytest.fixture
def tiny_study(tmp_path: Path) -> Callable[..., list]:
    """Return a function that plans the tiny study with extra lines of YAML and `--set`s."""
    from harness.study import load_study

    def plan(extra: str = "", *sets: str) -> list:
        path = tmp_path / "tiny.yaml"
        path.write_text(TINY_STUDY + extra)
        return list(load_study(path, sets=sets).runs)

    return plan


@pytest.fixture
def tiny_run(tmp_path: Path, tiny_study: Callable[..., list]) -> Callable[..., Path]:
    """Return a function that writes the run directory of the tiny study's first run and returns its path."""
    from harness.records import RunDirectory
    from harness.spec import SCHEMA_VERSION

    def make(extra: str = "", *sets: str, folder: str = "runs") -> Path:
        run = tiny_study(extra, *sets)[0]
        directory = RunDirectory(tmp_path / folder / run.run_key)
        directory.create(run.spec.model_dump(mode="json"), SCHEMA_VERSION)
        directory.join_study(run.study, run.facts())
        return directory.path

    return make
