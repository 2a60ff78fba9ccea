"""Whoever adds a part breaks no test of the others: contracts hold for all, golden values for those that have some."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_contracts_and_golden_values_hold_beside_a_part_of_every_kind_that_was_added():
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    options = ["-p", "grown_registries", "-p", "no:cacheprovider", "-q", "-n", "0", "-m", "not slow"]
    tests = ["diffusion", "contracts", "spec"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(f"tests/unit/{name}" for name in tests)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
