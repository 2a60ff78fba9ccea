"""What is known of a study's own runs in one MLflow store: runs/.studies/<study>/tracking/<store>.json.

Losing it costs time only: the runs are found again by their tags.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.files import replace_file
from harness.records.layout import StudyLayout
from harness.records.lock import FolderLock
from harness.records.reading import Fields, read_json
from harness.tracking.store import active_run, experiment_id_of, search_runs, store_digest

LOCK_WAIT_SECONDS = 60.0


class StudyCursor:
    """The runs of a study's arms and its own in one store, and what was sent to each.

    Args:
        runs_folder: contains the run directories.
        uri: of the store.
        active: run_ids that the store is known to have, so that it need not be asked again; added to.
    """

    def __init__(self, runs_folder: Path, study: str, uri: str, active: set[str] | None = None):
        self.study, self.uri, self._active = study, uri, set() if active is None else active
        folder = StudyLayout(runs_folder, study).tracking_folder
        self._path, self._lock_folder = folder / f"{store_digest(uri)}.json", folder / "lock"
        self._pass_path, self._pass_lock_folder = folder / f"{store_digest(uri)}-sent.json", folder / "pass"

    def known(self, kind: str) -> dict[str, str]:
        """Return the run_ids that were used last, by name."""
        return dict(_read(self._path).get(kind, {}))

    def run_id(
        self,
        client: Any,
        kind: str,
        name: str,
        tags: Callable[[], dict[str, str]],
        start_ms: Callable[[], int | None],
    ) -> str:
        """Return the run of an arm or of the study; make it if the store has none, or if it was deleted there.

        Args:
            kind: the tag of its runs: arm or study.
            name: of the arm, or of the study.
            tags, start_ms: of a new run.
        """
        run_id = self.known(kind).get(name)
        if run_id and self._is_active(client, run_id):
            return run_id
        lock = FolderLock(self._lock_folder, f"the MLflow record of study {self.study}")
        lock.acquire(LOCK_WAIT_SECONDS)
        try:
            run_id = self.known(kind).get(name)  # another process may have made it meanwhile
            if run_id and self._is_active(client, run_id):
                return run_id
            experiment_id = experiment_id_of(client, self.uri, self.study)
            runs = self.search(client, experiment_id, kind, name)
            run_id = runs.get(name) or client.create_run(experiment_id, start_ms(), tags(), name).info.run_id
            known = _read(self._path)
            known[kind] = {**known.get(kind, {}), name: run_id}
            replace_file(self._path, json.dumps(known, indent=1), durable=False)
            self._active.add(run_id)
        finally:
            lock.release()
        return str(run_id)

    def _is_active(self, client: Any, run_id: str) -> bool:
        if run_id not in self._active and active_run(client, run_id):
            self._active.add(run_id)
        return run_id in self._active

    def search(self, client: Any, experiment_id: str, kind: str, name: str = "") -> dict[str, str]:
        """Return the run_ids of a kind in the store, by name; with one given, those of others may be left out."""
        query = f"tags.kind = '{kind}'"
        if re.fullmatch(r"[\w .,=()+-]+", name):  # else it may end the query's quotation
            query += f" and tags.{kind} = '{name}'"
        runs = search_runs(client, experiment_id, query)
        return {run.data.tags.get(kind, ""): run.info.run_id for run in runs}

    # -- what was sent, written by one process at a time

    def begin_pass(self, wait_seconds: float) -> FolderLock:
        """Take the lock that a pass over the study's own runs needs.

        Raises:
            RecordError: another process has it for longer than that.
        """
        lock = FolderLock(self._pass_lock_folder, f"the MLflow record of study {self.study}")
        lock.acquire(wait_seconds)
        return lock

    def sent(self) -> dict[str, Any]:
        """Return what was sent, by run_id."""
        return _read(self._pass_path)

    def save_sent(self, sent: dict[str, Any]) -> None:
        replace_file(self._pass_path, json.dumps(sent, indent=1), durable=False)


def _read(path: Path) -> dict[str, Any]:
    """Return a document whose values are documents; empty if it is missing or damaged."""
    try:
        document = read_json(path)
        fields = Fields(document, str(path))
        for name in document:
            fields.fields(name)
    except (FileNotFoundError, RecordError, TypeError):
        return {}
    return document
