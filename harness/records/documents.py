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


def check_spec(document: Any, place: str, *, complete: bool = False) -> None:
    """Check what readers rely on in a spec.json.

    Args:
        complete: the data and the size of the training must be there, as figures need them.

    Raises:
        RecordError: a value is missing or not of its type.
    """
    fields = Fields(document, place)
    fields.integer("schema_version")
    spec = fields.fields("spec")
    spec.integer("seed")
    if complete or "train" in spec:
        training_size(document, place, complete=complete)
    if "diffusion" in spec:
        spec.fields("diffusion").integer("num_timesteps", 1, low=1)
    for part in ("data", "model", "objective"):
        if (complete and part == "data") or part in spec:
            spec.fields(part).line("name")
    spec.fields("plugins", {})


def training_size(document: Any, place: str, *, complete: bool = True) -> tuple[int, int]:
    """Return the number of steps and the batch size in a spec.json; if not complete, 1 where one is missing.

    Raises:
        RecordError: a value is missing or not of its type.
    """
    train = Fields(document, place).fields("spec").fields("train")
    default = {} if complete else {"default": 1}
    return train.integer("steps", low=1, **default), train.integer("batch_size", low=1, **default)


def as_yaml(spec: dict[str, Any]) -> str:
    """Return a spec as YAML for people; by libyaml, which is ten times as fast, where PyYAML has it."""
    import yaml  # 20 ms that readers save

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(spec, Dumper=dumper, sort_keys=False, allow_unicode=True))
