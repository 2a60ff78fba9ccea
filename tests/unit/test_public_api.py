"""`import harness` is cheap, and each public function is found in it."""

import subprocess
import sys
from pathlib import Path

import pytest

import harness

ROOT = Path(__file__).parents[2]


def modules_after(code):
    program = f"import sys\n{code}\nprint(*sys.modules)"
    command = [sys.executable, "-c", program]
    return set(
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True, timeout=240).stdout.split()
    )


@pytest.mark.process
def test_importing_the_package_loads_nothing_else():
    assert modules_after("import harness").isdisjoint({"pydantic", "torch", "numpy", "yaml", "pandas", "click"})


@pytest.mark.process
def test_a_study_is_loaded_and_planned_without_torch(tmp_path):
    code = (
        "import harness\n"
        "study = harness.load_study('experiments/laptop/iddpm_digits.yaml')\n"
        f"assert len(harness.plan(study, runs_folder={str(tmp_path)!r}).to_do) == len(study.runs)"
    )
    assert modules_after(code).isdisjoint({"torch", "mlflow", "submitit", "matplotlib"})


@pytest.mark.parametrize("name", harness.__all__)
def test_every_public_name_is_there_and_listed(name):
    assert getattr(harness, name) is not None
    assert name in dir(harness)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'lod_study'"):
        _ = harness.lod_study
