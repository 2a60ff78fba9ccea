"""The networks of two runs, measured as an ensemble by t."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from harness.data.base import Dataset
from harness.evaluation.sampling import load_method
from harness.methods.ensemble import Ensemble
from harness.methods.gaussian import GaussianMethod
from harness.records.data_digest import require_same_data
from harness.records.ensembles import middle_of
from harness.records.plugins import read_spec
from harness.spec.evaluation import Evaluation
from harness.spec.run import RunSpec


def with_middle(
    method: Any, evaluation: Evaluation, spec: RunSpec, runs_folder: Path, data: Dataset, device: torch.device
) -> Any:
    """Return the ensemble that an evaluation asks for, or the method itself.

    Raises:
        SpecError: the other run cannot take part.
        DataError: it was trained on other data.
    """
    asked = evaluation.ensemble
    if asked is None:
        return method
    assert asked.high is not None, "resolved"
    run = middle_of(asked.middle, spec, runs_folder)
    require_same_data(run, data.digest)
    middle, _ = load_method(run.path, read_spec(run.path, run.spec()), data, device=device)
    assert isinstance(method, GaussianMethod) and isinstance(middle, GaussianMethod), (
        "the spec's validation asks for it"
    )
    return Ensemble(method, middle, asked.low, asked.high)
