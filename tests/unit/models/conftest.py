"""The published networks' vectors, and our networks with their weights."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parents[2] / "golden"


@dataclass
class Vectors:
    """Arrays of one file of vectors as tensors; floats have the type asked for."""

    arrays: dict[str, torch.Tensor]
    args: dict[str, Any]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.arrays[name]

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return {key.removeprefix("state/"): array for key, array in self.arrays.items() if key.startswith("state/")}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def vectors(dtype: torch.dtype):
    """Return a function that reads one file of vectors in the type of the test."""

    def read(name: str) -> Vectors:
        with np.load(GOLDEN / f"{name}.npz") as file:
            tensors = {key: torch.from_numpy(file[key]) for key in file.files}
        args = GOLDEN / f"{name}.json"
        return Vectors(
            {key: array.to(dtype) if array.is_floating_point() else array for key, array in tensors.items()},
            json.loads(args.read_text()) if args.exists() else {},
        )

    return read


@pytest.fixture(scope="session")
def published() -> ModuleType:
    """Import the networks under the names and arguments of the published code."""
    spec = importlib.util.spec_from_file_location("adversarial_networks", GOLDEN / "adversarial_networks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def assert_near():
    """Return a check that two tensors differ by at most `scale` of the largest expected value."""

    def check(result: torch.Tensor, expected: torch.Tensor, scale: float) -> None:
        torch.testing.assert_close(result, expected, rtol=0, atol=scale * expected.abs().max().item())

    return check
