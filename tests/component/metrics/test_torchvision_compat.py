"""In subprocesses, because an import that failed, and what cured it, stay with a process."""

import subprocess
import sys

import pytest


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_torch_fidelity_imports_whatever_build_of_torchvision_lies_beside_torch():
    assert run(
        "from harness.metrics.torchvision_compat import ensure_torchvision, torch_fidelity\n"
        "ensure_torchvision(); ensure_torchvision()\n"
        "print(torch_fidelity().metric_prc.KEY_METRIC_RECALL)"
    ).endswith("recall\n")


@pytest.mark.slow
def test_operators_are_declared_only_where_the_plain_import_fails():
    assert run(
        "import torch\n"
        "try:\n"
        "    import torchvision; fails = False\n"
        "except RuntimeError:\n"
        "    fails = True\n"
        "import sys; [sys.modules.pop(name) for name in list(sys.modules) if name.startswith('torchvision')]\n"
        "from harness.metrics import torchvision_compat\n"
        "torchvision_compat.ensure_torchvision()\n"
        "assert bool(torchvision_compat._KEEP) == fails\n"
        "import torchvision; torchvision.io, torchvision.transforms; print('imported')"
    ).endswith("imported\n")


def test_another_failure_of_the_import_is_not_hidden(tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('the disk is on fire')")
    out = run(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from harness.metrics.torchvision_compat import ensure_torchvision\n"
        "try:\n"
        "    ensure_torchvision()\n"
        "except RuntimeError as error:\n"
        "    print(error)"
    )
    assert out == "the disk is on fire\n"
