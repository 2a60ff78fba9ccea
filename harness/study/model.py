"""Study and Run: the result of expanding a study's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.spec.base import SCHEMA_VERSION
from harness.spec.evaluation import Evaluation
from harness.spec.presentation import Presentation
from harness.spec.resources import Records, Resources
from harness.spec.run import RunSpec
from harness.study.document import Keys, SourceLocation

if TYPE_CHECKING:
    from harness.study.rungs import Rungs


@dataclass(frozen=True)
class Override:
    path: str
    value: Any
    mark: SourceLocation

    @property
    def keys(self) -> Keys:
        return tuple(self.path.split("."))


@dataclass(frozen=True)
class Variant:
    """One arm before replication: a name for legends and its overrides."""

    arm: str
    overrides: tuple[Override, ...]


@dataclass(frozen=True)
class Run:
    """One run of a study: its spec (the identity), and what is not part of the identity."""

    study: str
    arm: str
    replicate: int
    spec: RunSpec
    overrides: Mapping[str, Any]
    evaluations: tuple[Evaluation, ...] = ()
    resources: Resources = field(default_factory=Resources)
    records: Records = field(default_factory=Records)
    data_root: str | None = None
    until: int | None = None  # the step at which it pauses, if its study has rungs

    @property
    def run_key(self) -> str:
        return self.spec.run_key

    def membership(self) -> dict[str, Any]:
        """Return the run's membership in its study, as stored in the run directory."""
        return {
            "arm": self.arm,
            "replicate": self.replicate,
            "overrides": dict(self.overrides),
            "evaluations": [evaluation.model_dump(mode="json") for evaluation in self.evaluations],
            "resources": self.resources.model_dump(mode="json"),
            "records": self.records.model_dump(mode="json"),
            "data_root": self.data_root,
        }

    @cached_property
    def resolved(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **self.spec.plain}


@dataclass(frozen=True)
class Study:
    name: str
    path: Path
    runs: tuple[Run, ...]
    budget_gpu_hours: float | None = None
    presentation: Presentation = field(default_factory=Presentation)
    rungs: Rungs | None = None
    sets: tuple[str, ...] = ()  # overrides that it was loaded with, path=value

    def warnings(self) -> list[str]:
        """Return each warning once, with the arms that it concerns."""
        arms: dict[str, list[str]] = {}
        for run in self.runs:
            if run.replicate == 0:
                for warning in (*run.spec.warnings(), *run.records.warnings()):
                    arms.setdefault(warning, []).append(run.arm)
        return [f"{', '.join(names)}: {warning}" for warning, names in arms.items()]
