"""What an archive holds of a run, and how it is checked: nothing that comes from elsewhere is believed.

An archive carries results: spec, studies, environments, journals, evaluations, arrays, samples and checkpoints. What
belongs to the machine that made them stays there: status, locks, MLflow's cursors, logs, code, kept samples and
features, requests to prune or retry. An import writes its own status, from the journals.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.directory import RunDirectory
from harness.records.disk import scores_from
from harness.records.documents import check_spec, environments_from, membership_from
from harness.records.files import replace_file
from harness.records.journal import AttemptFile, Event
from harness.records.reading import Fields, read_arrays, read_bytes, read_json
from harness.records.status import Cause, Status
from harness.spec.base import digest

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.+=,@-]{0,149}"
_RECORDS = re.compile(
    rf"spec\.(?:json|yaml)|environment\.json|journal-[0-9]{{4,9}}\.jsonl|studies/{_NAME}\.json"
    rf"|evaluations/[0-9a-f]{{16}}\.json|arrays/{_NAME}\.npz|samples/{_NAME}\.(?:png|npz)"
    r"|checkpoints/(?:(?:step|averages)-[0-9]{8,18}-[0-9a-f]{64}\.pt|scores\.json)"
)
_OF_THE_MACHINE = re.compile(r"(?:status|prune)\.json|retried|study\.yaml|(?:lock|tracking|logs|certificates|kept)/.*")
_HOSTS = ("host", "hosts")  # in an environment
_MAX_PIXELS = 1 << 27


def is_record(name: str) -> bool:
    """Return whether a file of a run directory goes into archives."""
    return bool(_RECORDS.fullmatch(name)) and ".." not in name


def stays_behind(name: str) -> bool:
    """Return whether a file of a run directory belongs to the machine, and is no loss to an archive."""
    return bool(_OF_THE_MACHINE.fullmatch(name))


def check_run(folder: Path, names: Iterable[str]) -> None:
    """Check the records of a run, the files with these names in a folder that is named by the run's key.

    Raises:
        RecordError: the spec is another run's, or a file is not what its name says; the message names it.
    """
    names = sorted(names)
    if "spec.json" not in names:
        raise RecordError("it has no spec.json")
    for name in names:
        path, kind = folder / name, name.split("/")[0]
        try:
            _CHECKS[re.sub(r"-[0-9].*|\..*", "", kind)](path)
        except FileNotFoundError:
            raise RecordError(f"{name} is missing") from None
        except RecordError as error:
            raise RecordError(str(error).replace(f"{folder}/", "")) from None


def _check_spec(path: Path) -> None:
    if path.suffix == ".yaml":
        return  # for people; an import writes its own
    document = read_json(path)
    check_spec(document, str(path), complete=True)
    try:
        key = digest({"schema_version": document["schema_version"], "spec": document["spec"]})
    except (ValueError, TypeError, RecursionError) as error:
        raise RecordError(f"{path}: has no key: {error}") from None
    if key != path.parent.name:
        raise RecordError(f"{path}: it holds the spec of run {key}")


def _check_study(path: Path) -> None:
    membership_from(read_json(path), path, complete=True)


def _check_environment(path: Path) -> None:
    environments_from(read_json(path), str(path))


def _check_journal(path: Path) -> None:
    attempt = AttemptFile(path)
    attempt.refresh()
    if attempt.damage:
        raise RecordError(attempt.damage[0])
    _ = attempt.resumed_from_step  # of the header


def _check_evaluation(path: Path) -> None:
    fields = Fields(read_json(path), str(path))
    fields.fields("evaluation").file_name("name")
    fields.fields("likelihood", {})
    fields.fields("metrics", {})


def _check_sample(path: Path) -> None:
    if path.suffix == ".npz":
        read_arrays(path)
    else:
        check_png(path)


def check_png(path: Path) -> None:
    """Raise RecordError unless a file is an intact PNG of at most 128 million pixels."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.width * picture.height > _MAX_PIXELS:
                raise RecordError(f"{path}: has {picture.width} x {picture.height} pixels")
            picture.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RecordError(f"{path}: is not a PNG: {error}") from None


def _check_checkpoint(path: Path) -> None:
    if path.name == "scores.json":
        scores_from(read_json(path), str(path))
        return
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    if content not in path.name:
        raise RecordError(f"{path}: its content is not the one in its name")


_CHECKS = {
    "spec": _check_spec,
    "studies": _check_study,
    "environment": _check_environment,
    "journal": _check_journal,
    "evaluations": _check_evaluation,
    "arrays": read_arrays,
    "samples": _check_sample,
    "checkpoints": _check_checkpoint,
}


def same_content(name: str, one: Path, other: Path) -> bool:
    """Return whether two records of one name are equal except for the hosts that they come from."""
    if name != "environment.json":
        return read_bytes(one) == read_bytes(other)
    try:
        return without_hosts(read_json(one)) == without_hosts(read_json(other))
    except (RecordError, AttributeError, TypeError):
        return False


def without_hosts(environments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the environments of attempts without the names of their machines."""
    return [{key: value for key, value in entry.items() if key not in _HOSTS} for entry in environments]


def complete_import(directory: RunDirectory) -> None:
    """Write what an import does not take from an archive: spec.yaml and the status."""
    import yaml

    spec = directory.spec()
    text = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)
    replace_file(directory.spec_yaml_path, text, durable=True)
    if directory.attempts():
        status = _status_of(directory, spec["train"]["steps"])
        replace_file(directory.status_path, json.dumps(asdict(status)), durable=True)


def _status_of(directory: RunDirectory, num_steps: int) -> Status:
    """Return the status that the journals of an imported run stand for."""
    rows, events = directory.rows(), directory.events()
    attempt = max(directory.attempts())
    endings = [event for event in events if event.attempt == attempt and event.name in _STATE_AFTER]
    losses = [row.value for row in rows if row.key == "train/loss"]
    state, cause, reason = _ending(endings[-1] if endings else None)
    step = max((row.train_step for row in rows), default=0)
    if state == "done" and directory.durable_step() < num_steps:
        state, cause, reason = "interrupted", "imported", "imported: it has no checkpoint of its last step"
    return Status(
        state=state,
        step=num_steps if state == "done" else max(step, directory.durable_step()),
        num_steps=num_steps,
        attempt=attempt,
        reason=reason,
        loss=losses[-1] if losses else None,
        updated_seconds=max((event.time_ms / 1000 for event in events), default=0.0),
        cause=cause,
    )


# Event at the end of an attempt -> state and cause. `imported` is of a run whose weights came from a published file.
_STATE_AFTER: dict[str, tuple[str, Cause]] = {
    "finished": ("done", ""),
    "imported": ("done", ""),
    "failed": ("failed", "error"),
    "pruned": ("pruned", "pruned"),
}


def _ending(event: Event | None) -> tuple[str, Cause, str]:
    if event is None:
        return "interrupted", "imported", "imported: it was not finished where it comes from"
    state, cause = _STATE_AFTER[event.name]
    if event.fields.get("cause") == "rung":  # dropped there by its study, which may still let it go on
        cause = "rung"
    reason = event.fields.get("reason", "")
    return state, cause, reason if isinstance(reason, str) and state != "done" else ""
