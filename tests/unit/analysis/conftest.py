"""Runs with known numbers; nothing is trained here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.study.model import Run
from harness.testing import tiny_study, write_finished_run

STUDY = """
study: small
data: digits
diffusion: {num_timesteps: 50}
model: {channels: 8, channel_mult: [1], num_res_blocks: 1, attention_resolutions: [], num_heads: 1}
train: {steps: 100, batch_size: 4, ema_rate: 0.9}
"""

Numbers = Callable[[Run], dict[str, Any]]

# What these tests say -> the kind of metric.
KINDS = {"nll": "nll_bpd", "ancestral": "fid_ancestral", "ddim": "fid_ddim", "compute": "train_multiply_adds"}


class StudyRuns:
    """Writes a study's runs with given numbers into a folder."""

    def __init__(self, home: Path):
        self.home = home

    def __call__(self, extra: str, numbers: Numbers, folder: str = "runs") -> Path:
        """Return the folder of the runs.

        `numbers(run)` may give nll, fid, precision, recall, ancestral, ddim, compute, and a state; a run that is not
        done is left without measurements.
        """
        for run in tiny_study(self.home, extra, study=STUDY):
            values: dict[str, Any] = {"state": "done"} | numbers(run)
            state = values.pop("state")
            measured = {KINDS.get(name, name): value for name, value in values.items()}
            write_finished_run(run, self.home / folder, measured, state=state)
        return self.home / folder


@pytest.fixture
def study_runs(tmp_path: Path) -> StudyRuns:
    return StudyRuns(tmp_path)


@pytest.fixture(scope="module")
def study_runs_of_module(tmp_path_factory: pytest.TempPathFactory) -> StudyRuns:
    return StudyRuns(tmp_path_factory.mktemp("study"))
