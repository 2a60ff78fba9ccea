"""diffusion-harness: ablations and scaling studies of diffusion models, from one YAML file to the papers' figures."""

from pathlib import Path

__version__ = "0.1.0"

PACKAGE_ROOT = Path(__file__).resolve().parents[1]
"""The folder of the package `harness`: PYTHONPATH names it for the processes that we start."""
