"""Upload run directories to MLflow, each row exactly once; the only package that writes to MLflow.

The run directory is the source of truth and MLflow a copy for viewing. A metric row is sent only when it is final (a
checkpoint at or after its step is durable), because MLflow cannot delete a row; until then the current step, loss and
ETA are tags, which are overwritten. Rows have the journal's timestamps, so that sending one again is a no-op in
MLflow's SQL stores, and with a cursor per store and study only new rows are sent. Losing the cursor costs time, never
rows.

MLflow takes seconds to import, and running it in a thread of the training process was measured to slow small training
steps threefold (by the interpreter lock). So it is imported inside functions, and `BackgroundSync` is a process.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.collapse import collapses, signs
from harness.records.directory import RunDirectory
from harness.records.files import replace_file
from harness.records.journal import Row
from harness.records.lock import FolderLock
from harness.records.manifest import Manifests
from harness.records.status import Status
from harness.tracking.arms import ARM, RUN, arm_run_id
from harness.tracking.described import constants_of, infinite_values, is_constant, params_of, source_tags
from harness.tracking.images import IMAGES, is_own_file, sample_images, upload_image
from harness.tracking.memberships import StudyMembership, cursor_path, cursor_suffix, memberships_of
from harness.tracking.searches import parent_run_id
from harness.tracking.store import (
    MAX_METRICS_PER_BATCH,
    MAX_PARAMS_PER_BATCH,
    MAX_TAG_CHARACTERS,
    MLFLOW_STATUS,
    active_run,
    active_run_ids,
    experiment_id_of,
    import_mlflow,
    initialise_store,
    read_cursor,
    server_address,
    store_errors,
    store_uri,
    tag_text,
)
from harness.tracking.study_cursor import StudyCursor

PARENT_TAG = "mlflow.parentRunId"


@dataclass
class StudySync:
    """The result of one pass for one study of a run."""

    run_id: str
    num_rows_sent: int = 0
    num_artifacts_sent: int = 0


@dataclass
class SyncReport:
    """The result of one pass over a run: per study the rows sent, the rows that wait for a checkpoint, and problems."""

    run_key: str
    studies: dict[str, StudySync] = field(default_factory=dict)
    num_rows_waiting: int = 0
    problems: list[str] = field(default_factory=list)


class Pass:
    """What the uploads of many runs of one folder share: manifests, experiments, and the runs that MLflow has."""

    def __init__(self, uri: str, runs_folder: Path):
        self.uri, self.manifests, self.active = uri, Manifests(runs_folder), set[str]()
        self._asked: set[str] = set()
        self._experiments: dict[str, str] = {}

    def experiment_id(self, client: Any, study: str) -> str:
        """Return the id of a study's experiment, as `experiment_id_of` does at the first time."""
        if study not in self._experiments:
            self._experiments[study] = experiment_id_of(client, self.uri, study)
        return self._experiments[study]

    def has(self, study: str, run_id: str) -> bool:
        """Return whether MLflow has a run of a study; it is asked once a study, for all of its runs."""
        if study not in self._asked:
            self._asked.add(study)
            with store_errors(self.uri):
                self.active |= active_run_ids(import_mlflow().MlflowClient(tracking_uri=self.uri), study)
        return run_id in self.active

    def report(self, run_directory: RunDirectory, memberships: Sequence[StudyMembership]) -> SyncReport | None:
        """Return the report of a run of which MLflow has everything; None if something is to be sent."""
        report, status = SyncReport(run_directory.key), run_directory.status()
        for membership in memberships:
            cursor = read_cursor(cursor_path(run_directory, membership.study, self.uri))
            if not _is_current(cursor, _stamps(run_directory, membership, self.uri), status):
                return None
            parent = cursor.get("tags", {}).get(PARENT_TAG, cursor["run_id"])
            if not (self.has(membership.study, cursor["run_id"]) and self.has(membership.study, parent)):
                return None
            report.studies[membership.study] = StudySync(cursor["run_id"])
            report.num_rows_waiting, report.problems = cursor["num_rows_waiting"], cursor["problems"]
        return report


def sync_runs(
    run_directories: Sequence[RunDirectory], *, tracking_uri: str | None = None
) -> Iterator[tuple[RunDirectory, SyncReport | RecordError]]:
    """Upload everything new of many runs; yield each with its report, or with what keeps it from MLflow.

    Raises:
        TrackingError: the store cannot be reached or refuses; a repeat resumes from there.
    """
    uri = initialise_store(tracking_uri)
    passes: dict[Path, Pass] = {}
    for run_directory in run_directories:
        folder = run_directory.path.parent
        shared = passes.setdefault(folder, Pass(uri, folder))
        try:
            with rare_garbage_collection():
                result: SyncReport | RecordError = sync_run(run_directory, tracking_uri=uri, shared=shared)
        except RecordError as error:
            result = error
        yield run_directory, result


@contextmanager
def rare_garbage_collection() -> Iterator[None]:
    """Let the collector of cycles look rarely: MLflow makes many objects a row, and all but a few live to the end."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def sync_run(
    run_directory: RunDirectory,
    *,
    tracking_uri: str | None = None,
    wait_seconds: float = 60.0,
    shared: Pass | None = None,
) -> SyncReport:
    """Upload everything new in a run directory to MLflow: one MLflow run for each of its studies.

    Args:
        wait_seconds: how long to wait while another process syncs the same run.
        shared: with the uploads of other runs.

    Raises:
        TrackingError: the store cannot be reached or refuses; rows sent so far remain, and a repeat resumes from there.
        RecordError: another process syncs this run for longer than that.
    """
    uri = initialise_store(tracking_uri)
    report = SyncReport(run_directory.key)
    if not run_directory.attempts():
        return report  # nothing has happened yet
    memberships = memberships_of(run_directory, uri, shared.manifests if shared else None)
    if shared and (unchanged := shared.report(run_directory, memberships)):
        return unchanged
    if not memberships or not run_directory.events():
        return report
    lock = FolderLock(run_directory.tracking_folder / "lock", f"the MLflow record of run {run_directory.key}")
    lock.acquire(wait_seconds)
    try:
        mlflow = import_mlflow()
        with store_errors(uri):
            client = mlflow.MlflowClient(tracking_uri=uri)
            for membership in memberships:
                _StudySyncer(client, uri, run_directory, membership, report, shared).run()
    finally:
        lock.release()
    return report


def is_synced(run_directory: RunDirectory, tracking_uri: str | None, manifests: Manifests | None = None) -> bool:
    """Return whether everything of a run was uploaded, as far as its cursors know; MLflow is not asked."""
    if not run_directory.attempts():
        return True
    status, uri = run_directory.status(), store_uri(tracking_uri)
    for membership in memberships_of(run_directory, uri, manifests):
        cursor = read_cursor(cursor_path(run_directory, membership.study, uri))
        if not _is_current(cursor, _stamps(run_directory, membership, uri), status):
            return False
    return True


def not_reported(run_directories: Sequence[RunDirectory], tracking_uri: str | None = None) -> list[RunDirectory]:
    """Return the runs that have ended and of which MLflow does not know it, looking at cursors and states alone.

    None of runs of which nothing was ever uploaded to this store: then nobody has asked for that. A run that has just
    ended is still its job's to upload.
    """
    suffix, now = cursor_suffix(store_uri(tracking_uri)), time.time()
    cursors = {run.key: list(run.tracking_folder.glob(f"[!.]*{suffix}")) for run in run_directories}
    if not any(cursors.values()):
        return []
    left_over = []
    for run in run_directories:
        status = run.status()
        known = {read_cursor(path).get("state") for path in cursors[run.key]}
        has_ended = status.state in ENDED and now - status.updated_seconds > GRACE_SECONDS and run.attempts()
        if has_ended and known != {status.state}:
            left_over.append(run)
    return left_over


ENDED = ("done", "failed", "pruned", "interrupted", "paused")
GRACE_SECONDS = 120.0


def _is_current(cursor: dict[str, Any], stamps: dict[str, Any], status: Status) -> bool:
    return bool(cursor.get("stamps") == stamps and cursor.get("state") == status.state)


VERSION = 3  # of what is sent of a run; with another one, all but its rows is sent again


def _stamps(run: RunDirectory, membership: StudyMembership, uri: str) -> dict[str, Any]:
    """Return what changes whenever there is something new to upload."""
    single = [run.status_path, run.spec_path, run.spec_yaml_path, run.environment_path]
    single.append(run.study_path(membership.study))
    folders = (run.evaluations_folder, run.arrays_folder, run.samples_folder)
    paths = [
        *run.journal_paths(),
        *filter(Path.exists, single),
        *(path for folder in folders for path in folder.glob("*")),
    ]
    arm = membership.values.get("arm")
    place = [membership.asked_for, arm, membership.values.get("replicate"), membership.replaced, membership.file]
    place.append(membership.order)
    arms = StudyCursor(run.path.parent, membership.study, uri).known(ARM)
    beside = {"version": VERSION, "membership": place, "parent": arms.get(str(arm))}
    return {str(path.relative_to(run.path)): file_stamp(path) for path in sorted(paths)} | beside


class _StudySyncer:
    """One pass for one study; the cursor is a JSON file in the run directory."""

    def __init__(
        self,
        client: Any,
        uri: str,
        run_directory: RunDirectory,
        membership: StudyMembership,
        report: SyncReport,
        shared: Pass | None,
    ):
        self.client, self.uri, self.run_directory, self.report = client, uri, run_directory, report
        self.study, self.membership, self.shared = membership.study, membership, shared
        self.cursor_path = cursor_path(run_directory, self.study, uri)
        self.cursor = read_cursor(self.cursor_path)
        self.values = membership.values or self.cursor.get("tags", {})  # a run that was forgotten keeps its name

    def run(self) -> None:
        # Taken first: changes while we read are read next time.
        stamps = _stamps(self.run_directory, self.membership, self.uri)
        status = self.run_directory.status()
        stored = self._find_run() or (self._create_run() if self.membership.values else None)
        if stored is None:
            return  # it was forgotten, and is not in MLflow
        self.outcome = self.report.studies[self.study] = StudySync(stored.info.run_id)
        if _is_current(self.cursor, stamps, status) and self._has_parent():
            self.report.num_rows_waiting = self.cursor["num_rows_waiting"]
            self.report.problems = self.cursor["problems"]
            return
        rows, num_waiting = durable_rows(self.run_directory, status)
        self.report.num_rows_waiting = num_waiting
        self.report.problems = self.run_directory.problems()
        parent = self._parent_run_id()
        stamps = _stamps(self.run_directory, self.membership, self.uri) | {
            name: stamp for name, stamp in stamps.items() if name != "parent"
        }
        self._send_params_and_tags(stored.data.tags, rows, status, parent)
        self._send_dataset()
        self._send_rows([row for row in rows if not is_constant(row.key)])
        self._send_artifacts()
        self._send_images()
        self._send_status(stored, status)
        self._save_cursor(
            stamps=stamps,
            state=status.state,
            num_rows_waiting=num_waiting,
            problems=self.report.problems,
            server=server_address(self.uri),
        )

    def _find_run(self) -> Any:
        """Return the run in the cursor; None if there is none, or it was deleted."""
        return active_run(self.client, self.cursor["run_id"]) if "run_id" in self.cursor else None

    def _create_run(self) -> Any:
        """Return the run with our run_key, else a new one."""
        self.cursor = {}  # another store, or the run was deleted there: send everything
        experiment_id = self._experiment_id()
        key = self.run_directory.key
        runs = self.client.search_runs([experiment_id], f"tags.run_key = '{key}'")
        start_ms = self.run_directory.events()[0].time_ms
        run = runs[0] if runs else self.client.create_run(experiment_id, start_ms, {"run_key": key}, self._run_name())
        self._save_cursor(run_id=run.info.run_id)
        return run

    def _experiment_id(self) -> str:
        if self.shared:
            return self.shared.experiment_id(self.client, self.study)
        return experiment_id_of(self.client, self.uri, self.study)

    def _run_name(self) -> str:
        name = f"{self.values.get('arm', 'run')} r{self.values.get('replicate', 0)}"
        return f"{name} ({self.run_directory.key[:8]})" if self.membership.replaced else name

    def _has_parent(self) -> bool:
        """Return whether the run beneath which this one is shown is there, as far as that is known."""
        parent = self.cursor.get("tags", {}).get(PARENT_TAG)
        return not (self.shared and parent) or self.shared.has(self.study, parent)

    def _parent_run_id(self) -> str | None:
        """Return the run beneath which MLflow shows this one: its search's, or its arm's."""
        if search := parent_run_id(self.client, self.uri, self.run_directory, self.study):
            return search
        if not self.membership.values:
            return self.cursor.get("tags", {}).get(PARENT_TAG)
        runs_folder = self.run_directory.path.parent
        members = [RunDirectory(runs_folder / key) for key in self.membership.siblings] or [self.run_directory]
        cursor = StudyCursor(runs_folder, self.study, self.uri, self.shared.active if self.shared else None)
        return arm_run_id(self.client, cursor, str(self.values.get("arm", "run")), members)

    def _send_params_and_tags(
        self, stored: dict[str, str], rows: list[Row], status: Status, parent: str | None
    ) -> None:
        from mlflow.entities import Param, RunTag

        run_id = self.outcome.run_id
        params: list[Any] = []
        if not self.cursor.get("params_sent"):
            params = [Param(name, value) for name, value in params_of(self.run_directory.spec()).items()]
        environment = (self.run_directory.environments() or [{}])[-1]
        tags: dict[str, Any] = {
            "kind": RUN,
            "run_key": self.run_directory.key,
            "study": self.study,
            "asked_for": "true" if self.membership.asked_for else "false",
            "arm": self.values.get("arm"),
            "replicate": self.values.get("replicate"),
            "order": self.membership.order,
            "label": self.values.get("label"),
            "code_version": environment.get("code_version"),
            "state": status.state,
            "reason": status.reason,
            "cause": status.cause or None,  # of a trial or an arm that was dropped at a rung: rung
            "attempt": status.attempt,
            "step": status.step,
            "num_steps": status.num_steps,
            "collapse": ", ".join(signs(collapses(self.run_directory))) or None,
            "loss": status.loss,
            "images_per_second": status.images_per_second,
            "eta_seconds": status.eta_seconds if status.state == "running" else None,
            "infinite_values": infinite_values(rows) or None,
            PARENT_TAG: parent,
        }
        own = tags.keys()
        tags = tags | source_tags(self.run_directory, environment, self.membership.file) | constants_of(rows)
        texts = {name: tag_text(value)[:MAX_TAG_CHARACTERS] for name, value in tags.items() if value not in (None, "")}
        changed = [RunTag(name, text) for name, text in texts.items() if stored.get(name) != text]
        while changed or params:
            self.client.log_batch(run_id, params=params[:MAX_PARAMS_PER_BATCH], tags=changed)
            params, changed = params[MAX_PARAMS_PER_BATCH:], []
        for name in own & stored.keys() - texts.keys():  # a value that was removed must not remain
            self.client.delete_tag(run_id, name)
        if texts != self.cursor.get("tags") or not self.cursor.get("params_sent"):
            self._save_cursor(params_sent=True, tags=texts)

    def _send_dataset(self) -> None:
        """Log the data that the run was trained on as its input: name, digest, and the account as its profile."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        environment = (self.run_directory.environments() or [{}])[-1]
        digest = environment.get("data_digest")
        if not digest or self.cursor.get("dataset") == digest:
            return
        name = str(self.run_directory.spec().get("data", {}).get("name", "data"))
        account = environment.get("data_account") or {}
        source = json.dumps({"name": name, "folders": account.get("folders", [])})
        dataset = Dataset(
            name=name, digest=digest[:36], source_type="local", source=source, profile=json.dumps(account)
        )
        tags = [InputTag("mlflow.data.context", "training")]
        self.client.log_inputs(self.outcome.run_id, datasets=[DatasetInput(dataset, tags)])
        self._save_cursor(dataset=digest)

    def _send_rows(self, rows: list[Row]) -> None:
        """Send the rows that are new since the cursor: past its step, or journalled after its last line."""
        from mlflow.entities import Metric

        sent_step, sent_line = self.cursor.get("sent_step", -1), tuple(self.cursor.get("sent_line", (0, 0)))
        new = [row for row in rows if row.train_step > sent_step or (row.attempt, row.seq) > sent_line]
        # In the order of their steps, so that after any batch the cursor can say "everything up to here".
        new.sort(key=lambda row: (row.train_step, row.attempt, row.seq))
        last_line = max(((row.attempt, row.seq) for row in rows), default=(0, 0))
        rows_end = max((row.train_step for row in rows), default=-1)
        for start in range(0, len(new), MAX_METRICS_PER_BATCH):
            batch = new[start : start + MAX_METRICS_PER_BATCH]
            # The newest first: MLflow then writes what is newest of a metric once a batch, not once a row.
            metrics = [Metric(row.key, row.value, row.time_ms, row.x) for row in reversed(batch)]
            self.client.log_batch(self.outcome.run_id, metrics=metrics)
            self.outcome.num_rows_sent += len(batch)
            following = new[start + len(batch)].train_step if start + len(batch) < len(new) else rows_end + 1
            self._save_cursor(sent_step=following - 1, sent_line=last_line)

    def _send_artifacts(self) -> None:
        sent = self.cursor.get("artifacts", {})
        run = self.run_directory
        paths = [
            *(path for path in (run.spec_yaml_path, run.environment_path) if path.exists()),
            *sorted(run.evaluations_folder.glob("*.json")),
            *sorted(run.arrays_folder.glob("*.npz")),
            *sorted(run.samples_folder.glob("*.png")),
        ]
        for path in paths:
            if not is_own_file(path):
                continue
            name, stamp = str(path.relative_to(run.path)), file_stamp(path)
            if sent.get(name) != stamp:
                parent = path.parent.name if path.parent != run.path else None
                self.client.log_artifact(self.outcome.run_id, str(path), parent)
                self.outcome.num_artifacts_sent += 1
                sent = {**sent, name: stamp}
                self._save_cursor(artifacts=sent)

    def _send_images(self) -> None:
        """Send the sample grids once more as MLflow's images, which its pages show side by side."""
        sent = self.cursor.get("artifacts", {})
        for image in sample_images(self.run_directory):
            name, stamp = f"{IMAGES}/{image.key}", [*file_stamp(image.path), image.step, image.time_ms]
            if sent.get(name) == stamp:
                continue
            try:
                upload_image(self.client, self.outcome.run_id, image, self.run_directory.key)
            except RecordError as error:
                self.report.problems.append(str(error))
                continue
            sent = {**sent, name: stamp}
            self._save_cursor(artifacts=sent)

    def _send_status(self, stored: Any, status: Status) -> None:
        mlflow_status = MLFLOW_STATUS[status.state]
        name = self._run_name()
        if mlflow_status in ("RUNNING", "SCHEDULED"):
            if stored.info.status != mlflow_status or stored.info.run_name != name:
                self.client.update_run(self.outcome.run_id, status=mlflow_status, name=name)
            return
        if stored.info.run_name != name:
            self.client.update_run(self.outcome.run_id, name=name)
        end_ms = self.run_directory.events()[-1].time_ms
        if stored.info.status != mlflow_status or stored.info.end_time != end_ms:
            self.client.set_terminated(self.outcome.run_id, mlflow_status, end_ms)

    def _save_cursor(self, **changes: Any) -> None:
        self.cursor = self.cursor | changes
        replace_file(self.cursor_path, json.dumps(self.cursor, indent=1), durable=False)


def file_stamp(path: Path) -> list[int]:
    """Return a stamp of a file that almost certainly changes with it; a copy counts as changed.

    It avoids reading unchanged files. Rows do not depend on it: journals only grow, and their size shows it.
    """
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def durable_rows(run_directory: RunDirectory, status: Status) -> tuple[list[Row], int]:
    """Return the final rows, and the number of rows that wait for a checkpoint."""
    rows = run_directory.rows()
    if status.state in ("done", "pruned"):  # never resumed, so nothing is superseded
        return rows, 0
    end = run_directory.durable_step()
    durable = [row for row in rows if row.train_step <= end]
    return durable, len(rows) - len(durable)
