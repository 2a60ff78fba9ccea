"""The JSON files of a run directory, checked for what their readers rely on: spec, studies, environments.

A check is of types and ranges. What a spec means, and whether it is valid, is the matter of `harness/spec`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.reading import STUDY_NAME, Fields

JOINED = "joined_seconds"  # in studies/*.json, beside the membership


def membership_from(stored: Any, path: Path, *, complete: bool = False) -> dict:
    """Return a run's membership in a study as it is stored, after checking what readers rely on.

    Args:
        complete: the arm, the replicate and the evaluations' names must be there.

    Raises:
        RecordError: the file's name is not a study's, or a value is missing or not of its type.
    """
    if not STUDY_NAME.fullmatch(path.stem):
        raise RecordError(f"{path}: {path.stem!r} is not the name of a study")
    fields = Fields(stored, str(path))
    if complete or "arm" in fields:
        fields.line("arm")
    if complete or "replicate" in fields:
        fields.integer("replicate")
    fields.seconds(JOINED, 0.0)
    fields.fields("resources", {})
    if (records := fields.fields("records", {})).get("keep_every") is not None:
        records.integer("keep_every", low=1)
    for evaluation in fields.items("evaluations", []):
        if complete or "name" in evaluation:
            evaluation.file_name("name")
        evaluation.fields("plugins", {})
    return stored


def environments_from(stored: Any, place: str) -> list[dict]:
    """Return the environments of a run's attempts as they are stored, after checking what readers rely on.

    Raises:
        RecordError: a value is missing or not of its type.
    """
    for environment in Fields({"environments": stored}, place).items("environments"):
        environment.integer("attempt", low=1)
        for name in ("harness", "code_version"):
            if name in environment:
                environment.line(name)
    return stored


def check_spec(document: Any, place: str) -> None:
    """Check what readers rely on in a spec.json.

    Raises:
        RecordError: a value is missing or not of its type.
    """
    fields = Fields(document, place)
    fields.integer("schema_version")
    spec = fields.fields("spec")
    spec.integer("seed")
    for part, integers in {"train": ("steps", "batch_size"), "diffusion": ("num_timesteps",)}.items():
        if part in spec:
            for name in integers:
                spec.fields(part).integer(name, 1, low=1)
    for part in ("data", "model", "objective"):
        if part in spec:
            spec.fields(part).line("name")
    spec.fields("plugins", {})
