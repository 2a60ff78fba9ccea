"""What a study asks for: the manifest that `submit` writes, runs/.studies/<study>/manifest.json.

A run directory says in which studies the run has ever been (studies/<study>.json); the manifest says which runs the
study asks for now, as which arm and replicate, and with which evaluations. A run that it does not list is no longer
asked for: its records stay, but no table, figure, claim or archive of the study has it.

    {"format": 1, "study": NAME, "generation": 2, "file": FILE, "written_seconds": TIME,
     "presentation": {"question": TEXT, "compare": {...}, "figures": {...}},
     "evaluations": {KEY: PROTOCOL},
     "runs": {RUN_KEY: {"arm": NAME, "replicate": INDEX, "evaluations": [KEY], "until": STEP}}}

The generation counts how often a study has asked for something else; how it is compared and drawn does not count. A
study without a manifest (of a version that wrote none, or from an archive) asks for every run that was ever in it.
`until`, the step to which a run trains for now, is there only if the study has rungs.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.directory import RunDirectory
from harness.records.documents import membership_from
from harness.records.files import replace_file, safe_name
from harness.records.layout import ASKED, StudyLayout, members_of
from harness.records.lock import FolderLock
from harness.records.reading import Fields, read_json

logger = logging.getLogger(__name__)

FORMAT = 1
LOCK_WAIT_SECONDS = 130.0  # outlasts a dead process on another host

Membership = dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """The runs that a study asks for.

    Attributes:
        generation: from 1; one more whenever the study asks for something else.
        file: the study's file at that time, absolute; empty if unknown.
        presentation: its question, comparison and figures (`spec.Presentation`) as plain values; empty if unknown.
        written_seconds: Unix time of the last change; 0 if unknown.
        runs: run_key -> `arm`, `replicate`, `evaluations` (protocols) and `evaluation_keys`, in the study's order.
    """

    study: str
    generation: int
    file: str
    runs: Mapping[str, Membership]
    presentation: Mapping[str, Any] = field(default_factory=dict)
    written_seconds: float = 0.0

    @cached_property
    def arms(self) -> dict[str, dict[str, int]]:
        """The replicate of each run by its key, by arm, in the study's order."""
        arms: dict[str, dict[str, int]] = {}
        for run_key, membership in self.runs.items():
            arms.setdefault(membership["arm"], {})[run_key] = membership["replicate"]
        return arms


def read_manifest(runs_folder: Path, study: str) -> Manifest | None:
    """Return what a study asks for; None if it has no manifest, or a damaged one, of which a warning is logged."""
    path = StudyLayout(runs_folder, study).manifest_path
    try:
        stat = path.stat()
    except OSError:
        return None
    return _read(path, (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=256)
def _read(path: Path, _stamp: tuple[int, ...]) -> Manifest | None:
    try:
        return _manifest_from(read_json(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecordError) as error:
        study = path.parent.name
        logger.warning(
            f"{path} cannot be read ({type(error).__name__}), so every run that was ever in study {study} counts; "
            "submitting the study writes it anew"
        )
        return None


def _manifest_from(stored: dict[str, Any]) -> Manifest:
    if stored["format"] != FORMAT:
        raise ValueError(f"format {stored['format']!r}")
    protocols = stored["evaluations"]
    runs = {}
    for run_key, entry in stored["runs"].items():
        arm, replicate, keys = entry["arm"], entry["replicate"], list(entry["evaluations"])
        safe_name(run_key)
        evaluations = [protocols[key] for key in keys]
        runs[run_key] = {"arm": arm, "replicate": replicate, "evaluations": evaluations, "evaluation_keys": keys}
        if (until := Fields(entry, f"run {run_key}").optional_integer("until")) is not None:
            runs[run_key]["until"] = until
        if not _is_complete(runs[run_key]):
            raise ValueError(f"run {run_key}")
        membership_from(runs[run_key], Path(f"{stored['study']}.json"), complete=True)
    presentation = stored.get("presentation", {})
    if type(presentation) is not dict:
        raise ValueError("presentation")
    written = Fields(stored, "manifest.json").seconds("written_seconds", 0.0)
    return Manifest(str(stored["study"]), int(stored["generation"]), str(stored["file"]), runs, presentation, written)


def ask_for(
    runs_folder: Path,
    study: str,
    memberships: Mapping[str, Mapping[str, Any]],
    *,
    file: Path | None = None,
    presentation: Mapping[str, Any] | None = None,
) -> Manifest:
    """Record that a study asks for these runs and no others from now on; without a change the generation stays.

    Args:
        memberships: run_key -> `arm`, `replicate`, `evaluations` and perhaps `until`; other fields are not used.
        file: the study's.
        presentation: as in `Manifest`.

    Raises:
        RecordError: the file cannot be written, or another process has been writing it for minutes.
    """
    with _locked(runs_folder, study):
        return _write(runs_folder, study, memberships, str(file.absolute()) if file else "", presentation or {})


def join(runs_folder: Path, study: str, memberships: Mapping[str, Mapping[str, Any]]) -> None:
    """Add runs to those that a study asks for; nothing is to do for a study without a manifest.

    Args:
        memberships: as in `ask_for`; of somebody else's files, so an incomplete one is left out.
    """
    if read_manifest(runs_folder, study) is None:
        return
    complete = {key: membership for key, membership in memberships.items() if _is_complete(membership)}
    with _locked(runs_folder, study):
        if manifest := read_manifest(runs_folder, study):
            _write(runs_folder, study, {**manifest.runs, **complete}, manifest.file, manifest.presentation)


def _is_complete(membership: Mapping[str, Any]) -> bool:
    arm, replicate, evaluations = map(membership.get, ("arm", "replicate", "evaluations"))
    return type(arm) is str and type(replicate) is int and type(evaluations) is list


def forget(runs_folder: Path, study: str, is_to_go: Callable[[RunDirectory], bool]) -> list[RunDirectory]:
    """End the membership of runs that a study no longer asks for; return them. Their records stay.

    Args:
        is_to_go: whether a run is to be forgotten.
    """
    with _locked(runs_folder, study):  # so that no submission asks for them again meanwhile
        leaving = [directory for directory in Manifests(runs_folder).earlier_runs(study) if is_to_go(directory)]
        for directory in leaving:
            directory.leave_study(study)
    return leaving


@contextmanager
def _locked(runs_folder: Path, study: str) -> Iterator[None]:
    lock = FolderLock(StudyLayout(runs_folder, safe_name(study)).lock_folder, f"the manifest of study {study}")
    lock.acquire(LOCK_WAIT_SECONDS)
    try:
        yield
    finally:
        lock.release()


def _write(
    runs_folder: Path,
    study: str,
    memberships: Mapping[str, Mapping[str, Any]],
    file: str,
    presentation: Mapping[str, Any],
) -> Manifest:
    protocols: dict[str, Any] = {}
    runs = {
        run_key: {
            "arm": membership["arm"],
            "replicate": membership["replicate"],
            "evaluations": [_add_protocol(protocols, protocol) for protocol in membership["evaluations"]],
            **({"until": membership["until"]} if "until" in membership else {}),
        }
        for run_key, membership in memberships.items()
    }
    before = read_manifest(runs_folder, study)
    stored = {"format": FORMAT, "study": study, "generation": 1, "file": file}
    stored |= {"presentation": dict(presentation)} if presentation else {}
    stored |= {"evaluations": protocols, "runs": runs}
    manifest = _manifest_from(json.loads(json.dumps(stored)))
    if before:
        same = before.runs == manifest.runs
        unchanged = before.file == file and before.presentation == manifest.presentation
        if same and unchanged and list(before.runs) == list(manifest.runs):
            return before
        stored["generation"] = before.generation + (not same)
    stored["written_seconds"] = time.time()
    replace_file(StudyLayout(runs_folder, study).manifest_path, json.dumps(stored, indent=1), durable=True)
    return _manifest_from(stored)


def _add_protocol(protocols: dict[str, Any], protocol: dict[str, Any]) -> str:
    for key, known in protocols.items():  # few: the evaluations of a study, resolved for its kinds of runs
        if known == protocol:
            return key
    from harness.spec.base import SCHEMA_VERSION, digest  # imports pydantic, which readers do not need

    key = digest({"schema_version": SCHEMA_VERSION, "evaluation": protocol})
    protocols[key] = protocol
    return key


class Manifests:
    """What the studies of a folder of runs ask for; read once, so make a new one to see what has changed since."""

    def __init__(self, runs_folder: Path):
        self.runs_folder = runs_folder

    @cached_property
    def _by_study(self) -> dict[str, Manifest]:
        paths = sorted((self.runs_folder / ASKED).glob("[!.]*/manifest.json"))
        manifests = {path.parent.name: read_manifest(self.runs_folder, path.parent.name) for path in paths}
        return {study: manifest for study, manifest in manifests.items() if manifest}

    def of(self, study: str) -> Manifest | None:
        return self._by_study.get(study)

    def run_keys(self) -> list[str]:
        """Return the keys of all runs that are asked for, by study and in its order, each once."""
        return list(dict.fromkeys(key for manifest in self._by_study.values() for key in manifest.runs))

    def memberships(self, directory: RunDirectory, *, complete: bool = False) -> dict[str, Membership]:
        """Return a run's membership in each study that asks for it, by the study's name.

        Args:
            complete: as in `RunDirectory.read_studies`.
        """
        return self.split(directory, directory.read_studies(complete=complete)[0])[0]

    def memberships_by_joining(self, directory: RunDirectory) -> dict[str, Membership]:
        """Return a run's membership in each study that asks for it, in the order in which it joined them.

        A run that no study asks for any more has those that it had: its job ends as it was begun.
        """
        stored = directory.studies_by_joining()
        return self.split(directory, stored)[0] or stored

    def split(
        self, directory: RunDirectory, stored: dict[str, Membership] | None = None
    ) -> tuple[dict[str, Membership], dict[str, Membership]]:
        """Return a run's memberships in studies that ask for it, and in those that no longer do.

        Args:
            stored: its memberships, if they were read already.
        """
        stored, key = directory.studies() if stored is None else stored, directory.key
        asked, earlier = {}, {}
        for study, membership in stored.items():
            manifest = self.of(study)
            if manifest is None:
                asked[study] = membership
            elif key in manifest.runs:
                asked[study] = membership | manifest.runs[key]
            else:
                earlier[study] = membership
        for study, manifest in self._by_study.items():
            if study not in stored and key in manifest.runs:  # a submission was killed before it wrote the membership
                asked[study] = dict(manifest.runs[key])
        return asked, earlier

    def runs(self, study: str) -> list[RunDirectory]:
        """Return the existing runs that a study asks for, in its order; without a manifest in the order of the keys."""
        manifest = self.of(study)
        paths = sorted(members_of(self.runs_folder, study)) if manifest is None else self._paths(manifest.runs)
        directories = map(RunDirectory, paths)
        return [directory for directory in directories if directory.spec_path.exists()]

    def earlier_runs(self, study: str) -> list[RunDirectory]:
        """Return the runs of a study that it no longer asks for, in the order of their keys."""
        manifest = self.of(study)
        if manifest is None:
            return []
        paths = sorted(members_of(self.runs_folder, study))
        directories = [RunDirectory(path) for path in paths if path.name not in manifest.runs]
        return [directory for directory in directories if directory.spec_path.exists()]

    def _paths(self, run_keys: Mapping[str, Any]) -> list[Path]:
        return [self.runs_folder / run_key for run_key in run_keys]
