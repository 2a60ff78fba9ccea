"""diffusion-harness: ablations and scaling studies of diffusion models, from one YAML file to the papers' figures.

    study = harness.load_study("experiments/laptop/iddpm_digits.yaml")
    harness.plan(study).to_do                  # what is left to do
    harness.submit(study).wait(lambda: None)   # do it
    harness.load_runs("iddpm-digits")          # tidy frames of what was measured
    harness.open_run("1f31")                   # one run's records

Each name is imported when it is first used: `import harness` loads nothing, and only `submit` loads torch.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api import load_runs, load_study, open_run, plan, submit
    from harness.study.python_studies import python_study, run

__version__ = "0.1.0"

PACKAGE_ROOT = Path(__file__).resolve().parents[1]
"""The folder that contains the package `harness`; PYTHONPATH of the processes that we start includes it."""

_HOMES = {
    "load_study": "harness.api",
    "plan": "harness.api",
    "submit": "harness.api",
    "open_run": "harness.api",
    "load_runs": "harness.api",
    "python_study": "harness.study.python_studies",
    "run": "harness.study.python_studies",
}

__all__ = [
    "PACKAGE_ROOT",
    "__version__",
    "load_runs",
    "load_study",
    "open_run",
    "plan",
    "python_study",
    "run",
    "submit",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'harness' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
