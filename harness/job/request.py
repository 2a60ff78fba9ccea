"""What the studies of a run request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from harness.records.directory import RunDirectory
from harness.records.manifest import Manifests
from harness.records.plugins import read_evaluation, read_spec
from harness.spec.evaluation import Evaluation
from harness.spec.metrics import outputs
from harness.spec.resources import Records, Resources
from harness.spec.run import RunSpec


@dataclass(frozen=True)
class RunRequest:
    """The combined request of all studies of a run."""

    evaluations: tuple[Evaluation, ...]
    resources: Resources
    records: Records
    data_root: str | None
    scored_by: Evaluation | None = None  # measures records.best, during training and at the end
    until: int | None = None  # the step at which the run pauses, if all that ask for it have rungs

    def last_step(self, spec: RunSpec, is_first: bool, all_reduce_max: Callable[[int], int]) -> int:
        """Return the step at which all processes of a run stop for now.

        It is the first one's word: another one may have read a moment later what the studies ask for.
        """
        return all_reduce_max((self.until or spec.train.steps) if is_first else 0)

    @classmethod
    def of(cls, run_directory: RunDirectory) -> RunRequest:
        """Read the studies that ask for the run; evaluations add up, for all else the one that joined last decides."""
        studies = list(Manifests(run_directory.path.parent).memberships_by_joining(run_directory).values())
        read = partial(read_evaluation, run_directory.path)
        evaluations = {
            evaluation.key: evaluation for study in studies for evaluation in map(read, study["evaluations"])
        }
        last = studies[-1] if studies else {}
        records = Records.model_validate(last.get("records", {}))
        candidates = map(read, last.get("evaluations", []))
        spec = read_spec(run_directory.path, run_directory.spec())
        repeated = (entry for entry in candidates if entry.every)
        scored_by = next((entry for entry in repeated if records.best in outputs(entry, spec).during_training), None)
        resources = as_begun(Resources.model_validate(last.get("resources", {})), run_directory.environments())
        limits = [study["until"] for study in studies if "until" in study]
        until = max(limits) if limits and len(limits) == len(studies) else None
        return cls(tuple(evaluations.values()), resources, records, last.get("data_root"), scored_by, until)


def as_begun(resources: Resources, environments: Sequence[Mapping[str, Any]]) -> Resources:
    """Return the resources of a run, with the kernels that it was begun with if that was before they were a choice.

    Args:
        environments: of the run's attempts so far.
    """
    if not environments or "kernels" in environments[0]:
        return resources
    return resources.model_copy(update={"kernels": "reference"})
