"""The result of an evaluation and of its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from harness.spec.metrics import array_file, curve_name, metric_name, picture_file


@dataclass
class PartResult:
    """The result of one part of an evaluation; names are those of `harness.spec.metrics`, without a prefix.

    Attributes:
        metrics: name -> value, at the training step.
        curves: name -> [(x, value)], where x is t, a number of sampling steps or a percentage.
        arrays: name -> arrays, whole.
        pictures: name -> uint8 [H, W] or [H, W, 3].
        protocol: what has to be reported with the numbers, beyond the spec.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    arrays: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)


@dataclass
class EvaluationResult(PartResult):
    """The results of all parts under full names, with their prefix, and as files."""

    def add(self, part: str, prefix: str, result: PartResult) -> None:
        """Add the result of one part."""
        self.metrics |= {metric_name(prefix, name): value for name, value in result.metrics.items()}
        self.curves |= {curve_name(prefix, part, name): curve for name, curve in result.curves.items()}
        self.arrays |= {array_file(prefix, name): arrays for name, arrays in result.arrays.items()}
        self.pictures |= {picture_file(prefix, name): picture for name, picture in result.pictures.items()}
        self.protocol |= result.protocol
