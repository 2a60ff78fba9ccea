"""The reference's own checker on a copy of its vectors: every value is met in both precisions."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden"


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--float64",)], ids=["float32", "float64"])
def test_every_value_of_the_reference_is_met(options):
    checker = [sys.executable, GOLDEN / "check_adversarial.py", GOLDEN, GOLDEN / "adversarial_adapter.py", "--optional"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*checker, *options], env=environment, capture_output=True, text=True, check=False)
    match = re.fullmatch(r"(\d+) of (\d+) held-out values met", done.stdout.splitlines()[-1])
    assert match and match[1] == match[2] and int(match[2]) >= 379, done.stdout + done.stderr
