"""A paper's claim as data: what it says, where, and which contrast of records would show it.

A contrast is two sides in one metric. A side is a set of values by their dotted paths in the resolved spec, or below
`evaluation` in the protocol; `σ²` is the variance that was sampled with. What a claim `varies` may differ between its
sides; everything else that was resolved is equal. The claims are a table in papers_claims.py; verdicts.py finds their
contrasts and judges them (docs/claims.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Sureness = Literal["paper", "second-hand", "from memory"]
Metric = Literal["nll", "fid", "sweep", "frechet", "noise_scale"]
"""`sweep` is FID by sampling steps, their geometric mean; `frechet` is that of a mixture in SIDDM's coordinates."""


@dataclass(frozen=True)
class Between:
    """The numbers from `low` on, below `high`."""

    low: float = -math.inf
    high: float = math.inf


Values = Mapping[str, Any]
"""Values by dotted path; a tuple stands for any of its members, `Between` for a range."""


@dataclass(frozen=True)
class Source:
    """Where a claim stands, with the paper's numbers.

    Attributes:
        sure: `paper` was read there, `second-hand` in a summary of it, and `from memory` has no numbers.
    """

    paper: str
    place: str
    numbers: str
    sure: Sureness = "paper"

    @property
    def text(self) -> str:
        """Return the source in a line."""
        return f"{self.paper}, {self.place}: {self.numbers} ({self.sure})"


@dataclass(frozen=True)
class Side:
    """One side of a contrast: its name, and the values that a run has to be on it."""

    name: str
    values: Values


@dataclass(frozen=True)
class Claim:
    """A paper's statement: each of `ours` is better than each of `others` in a metric.

    Attributes:
        varies: parts of the spec and the protocol that may differ between the sides.
        study: the file that tests it, below experiments/.
        where: values that both sides have.
        direction: of `ours`.
        num_steps: which numbers of sampling steps of a sweep count.
        margin: by how much of the other's value `ours` may be worse, for a claim that it is not worse.
        named_by: the path whose value names what both sides have in common.
    """

    id: str
    statement: str
    source: Source
    ours: tuple[Side, ...]
    others: tuple[Side, ...]
    metric: Metric
    varies: tuple[str, ...]
    study: str
    where: Values = field(default_factory=dict)
    direction: Literal["lower", "higher"] = "lower"
    num_steps: Between = Between()
    margin: float = 0.0
    named_by: str = "diffusion.schedule.name"
