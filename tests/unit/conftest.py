"""The unit layer: no other process, no MLflow, no training. Held for each of its tests.

A test of what a fresh interpreter loads, or of how an outside program is called, is marked `process`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

MOST_OPTIMIZER_STEPS = 10


@pytest.fixture(autouse=True)
def unit_layer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse what belongs into another layer."""
    monkeypatch.setitem(sys.modules, "mlflow", None)  # an import of it is an ImportError
    if not {mark.name for mark in request.node.iter_markers()} & {"process", "slurm"}:
        monkeypatch.setattr(subprocess.Popen, "__init__", _refuse)
        monkeypatch.setattr(os, "fork", _refuse)
    if "torch" not in sys.modules:
        yield
        return
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps: list[None] = []
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(None))
    yield
    hook.remove()
    assert len(steps) <= MOST_OPTIMIZER_STEPS, f"{len(steps)} steps are a training: it belongs into tests/component"


def _refuse(*arguments: Any, **options: Any) -> None:
    raise AssertionError(
        "a unit test starts no process: move it to tests/component, or mark it `process` where a fresh interpreter or "
        "an outside program is what it tests"
    )
