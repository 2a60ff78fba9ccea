"""The parts of an evaluation, one file for each part that `spec.Evaluation` has a field for.

A part is a function of the context and of its own field of the protocol; it returns its measurements under the names
that `harness.spec.metrics` declares for it. tests/unit/contracts checks that the three tables agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.evaluation.context import EvaluationContext
from harness.evaluation.parts.fidelity import fidelity
from harness.evaluation.parts.grid import grid
from harness.evaluation.parts.interpolation import interpolation
from harness.evaluation.parts.likelihood import likelihood
from harness.evaluation.parts.metrics import metrics
from harness.evaluation.parts.modes import modes
from harness.evaluation.parts.noise_scale import noise_scale
from harness.evaluation.parts.progressive import progressive
from harness.evaluation.parts.rate_distortion import rate_distortion
from harness.evaluation.parts.reconstruction import reconstruction
from harness.evaluation.parts.skip import skip
from harness.evaluation.parts.sweep import sweep
from harness.evaluation.parts.trajectories import trajectories
from harness.evaluation.result import PartResult

PARTS: dict[str, Callable[[EvaluationContext, Any], PartResult]] = {
    "nll": likelihood,
    "fidelity": fidelity,
    "sweep": sweep,
    "skip": skip,
    "modes": modes,
    "rate_distortion": rate_distortion,
    "noise_scale": noise_scale,
    "grid": grid,
    "trajectories": trajectories,
    "progressive": progressive,
    "interpolation": interpolation,
    "reconstruction": reconstruction,
    "metrics": metrics,
}
