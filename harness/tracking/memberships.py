"""The places of a run in studies, in each of which it is a run of MLflow, with a cursor of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.records.directory import RunDirectory
from harness.records.manifest import Manifests
from harness.tracking.arms import order_text
from harness.tracking.store import store_digest


@dataclass(frozen=True)
class StudyMembership:
    """A run's place in a study.

    Attributes:
        asked_for: whether the study still asks for the run; a tag in MLflow, by which its pages are filtered.
        values: arm, replicate, ...; empty for a run that a study has forgotten, whose tags then stay as they are.
        file: the study's; empty if unknown.
        replaced: whether the study asks for another run as this arm and replicate.
        siblings: the keys of the runs of its arm that the study asks for.
        order: sorts the runs of a study as its file does; None if unknown.
    """

    study: str
    asked_for: bool
    values: dict[str, Any]
    file: str = ""
    replaced: bool = False
    siblings: tuple[str, ...] = ()
    order: str | None = None


def memberships_of(run_directory: RunDirectory, uri: str, manifests: Manifests | None = None) -> list[StudyMembership]:
    """Return a run's place in each study that has it in this store, or is to have it."""
    manifests = manifests or Manifests(run_directory.path.parent)
    asked, earlier = manifests.split(run_directory)
    forgotten = _studies_with_cursors(run_directory, uri) - asked.keys() - earlier.keys()
    return [
        *(_membership(manifests, study, True, values) for study, values in sorted(asked.items())),
        *(_membership(manifests, study, False, values) for study, values in sorted(earlier.items())),
        *(StudyMembership(study, False, {}) for study in sorted(forgotten)),
    ]


def _membership(manifests: Manifests, study: str, asked_for: bool, values: dict[str, Any]) -> StudyMembership:
    manifest = manifests.of(study)
    if manifest is None:
        return StudyMembership(study, asked_for, values)
    name, replicate = str(values.get("arm")), values.get("replicate")
    arm = manifest.arms.get(name, {})
    replaced = not asked_for and replicate in arm.values()
    order = order_text(manifest, name, replicate)
    return StudyMembership(study, asked_for, values, manifest.file, replaced, tuple(arm), order)


def cursor_path(run_directory: RunDirectory, study: str, uri: str) -> Path:
    return run_directory.tracking_folder / f"{study}{cursor_suffix(uri)}"


def cursor_suffix(uri: str) -> str:
    return f"-{store_digest(uri)}.json"


def _studies_with_cursors(run_directory: RunDirectory, uri: str) -> set[str]:
    suffix = cursor_suffix(uri)
    return {path.name.removesuffix(suffix) for path in run_directory.tracking_folder.glob(f"[!.]*{suffix}")}
