"""Carry run directories into MLflow, each row exactly once; the only file that writes to MLflow.

The run directory is the truth and MLflow the window on it. A metric row is sent only once it can never change (a
checkpoint at or after its step is durable), because MLflow cannot take a row back; until then the live step, loss and
ETA are tags, which are overwritten. Rows carry the journal's own times, so that sending one again is a no-op in
MLflow's SQL stores, and a cursor per store and study makes a repeat cost only what is new. Losing it costs time, never
rows.

MLflow takes seconds to import, and its Python work in a thread of the training process was measured to slow small
training steps threefold (they wait for the interpreter lock). So it is imported inside functions, and `BackgroundSync`
is a process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import HarnessError, TrackingError
from harness.records import FolderLock, Row, RunDirectory, Status, is_measurement, replace_file

MAX_METRICS_PER_BATCH = 1000  # MLflow's limits over HTTP
MAX_PARAMS_PER_BATCH = 100
MAX_PARAM_CHARACTERS = 6000  # longer ones MLflow cuts without a word
MLFLOW_STATUS = {
    "queued": "SCHEDULED",
    "running": "RUNNING",
    "interrupted": "KILLED",
    "pruned": "KILLED",
    "failed": "FAILED",
    "done": "FINISHED",
}
# Set before mlflow is imported, unless the user has set them. With MLflow's own policy (120 s, 7 retries) one call to a
# dead server was measured to block for 247 s.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


def _mlflow() -> Any:
    """Import mlflow: quiet, without telemetry and with a short patience for servers."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):  # afterwards, because the import sets their levels
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


# --------------------------------------------------------------------------------------------------------------- store


def store_uri(tracking_uri: str | None = None) -> str:
    """Return the store's URI: the one given, else MLFLOW_TRACKING_URI, else `mlflow.db` in the working folder.

    Raises:
        TrackingError: a folder is named; MLflow refuses its file store since 3.13.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if "://" not in uri or uri.startswith("file:"):
        raise TrackingError(
            f"{uri!r} is a folder, and MLflow refuses its file store since 3.13; "
            "use sqlite:///PATH.db or the http(s):// address of a server"
        )
    path = _sqlite_path(uri)
    return f"sqlite:///{path}" if path else uri


def initialise_store(tracking_uri: str | None = None) -> str:
    """Make the store ready for many jobs at once, and return its absolute URI; milliseconds when it is ready already.

    Sixteen processes that opened a fresh SQLite store together all failed in its migration. Here the first one builds
    the database aside, under a file lock, and renames it into place: a database that exists is whole.
    """
    uri = store_uri(tracking_uri)
    path = _sqlite_path(uri)
    if path is None or _has_schema(path):
        return uri
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _has_schema(path):
            with _store_errors(uri):
                from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

                aside = path.with_name(f"{path.name}.new")
                aside.unlink(missing_ok=True)
                store = SqlAlchemyStore(f"sqlite:///{aside}", str(_artifact_root(path)))
                store.engine.dispose()
                aside.replace(path)
    return uri


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def _artifact_root(database: Path) -> Path:
    return database.parent / "mlartifacts"


def _has_schema(database: Path) -> bool:
    if not database.exists() or database.stat().st_size == 0:
        return False
    with contextlib.closing(sqlite3.connect(database)) as connection:
        try:
            connection.execute("SELECT version_num FROM alembic_version").fetchall()
        except sqlite3.Error as error:
            raise TrackingError(f"{database} is not an MLflow database: {error}") from error
    return True


@contextlib.contextmanager
def _store_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow and the network throw into one plain TrackingError that does not show a password."""
    _mlflow()
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"MLflow store {uri}: {first_line}"
        raise TrackingError(re.sub(r"//[^/@\s]*@", "//***@", message)) from error


# ---------------------------------------------------------------------------------------------------------------- sync


@dataclass
class StudySync:
    """What one pass carried into MLflow for one study of a run."""

    run_id: str
    num_rows_sent: int = 0
    num_artifacts_sent: int = 0


@dataclass
class SyncReport:
    """What one pass over a run did: per study what was sent, what waits for a checkpoint, what is wrong."""

    run_key: str
    studies: dict[str, StudySync] = field(default_factory=dict)
    num_rows_waiting: int = 0
    problems: list[str] = field(default_factory=list)


def sync_run(run_directory: RunDirectory, *, tracking_uri: str | None = None, wait_seconds: float = 60.0) -> SyncReport:
    """Carry everything that is new in a run directory into MLflow: one MLflow run for each study that it belongs to.

    Args:
        wait_seconds: how long to wait while another process syncs this same run.

    Raises:
        TrackingError: the store cannot be reached or refuses; what was sent stays, and a repeat goes on from there.
        RecordError: another process syncs this run for longer than that.
    """
    uri = initialise_store(tracking_uri)
    report = SyncReport(run_directory.key)
    studies = run_directory.studies()
    if not studies or not run_directory.attempts():
        return report  # nothing has happened yet
    lock = FolderLock(run_directory.path / "tracking" / "lock", f"the MLflow record of run {run_directory.key}")
    lock.acquire(wait_seconds)
    try:
        mlflow = _mlflow()
        with _store_errors(uri):
            client = mlflow.MlflowClient(tracking_uri=uri)
            for study, facts in studies.items():
                _StudySyncer(client, uri, run_directory, study, facts, report).run()
    finally:
        lock.release()
    return report


class _StudySyncer:
    """One pass for one study; the cursor is a JSON file in the run directory."""

    def __init__(self, client: Any, uri: str, run_directory: RunDirectory, study: str, facts: dict, report: SyncReport):
        self.client, self.uri, self.run_directory = client, uri, run_directory
        self.study, self.facts, self.report = study, facts, report
        self.cursor_path = _cursor_path(run_directory, study, uri)
        self.cursor = _read_cursor(self.cursor_path)

    def run(self) -> None:
        # Taken first: what changes while we read is read again next time.
        stamps = self._stamps()
        status = self.run_directory.status()
        stored = self._find_or_create_run(status)
        self.outcome = self.report.studies[self.study] = StudySync(stored.info.run_id)
        if self.cursor.get("stamps") == stamps and self.cursor.get("state") == status.state:
            self.report.num_rows_waiting = self.cursor["num_rows_waiting"]
            self.report.problems = self.cursor["problems"]
            return
        rows, num_waiting = durable_rows(self.run_directory, status)
        self.report.num_rows_waiting = num_waiting
        self.report.problems = self.run_directory.problems()
        self._send_params_and_tags(rows, status)
        self._send_rows(rows)
        self._send_artifacts()
        self._send_status(stored, status)
        self._save_cursor(
            stamps=stamps, state=status.state, num_rows_waiting=num_waiting, problems=self.report.problems
        )

    def _stamps(self) -> dict[str, list[int]]:
        names = ("journal-*.jsonl", "status.json", "spec.*", "environment.json", f"studies/{self.study}.json")
        paths = [
            path
            for name in (*names, "evaluations/*", "arrays/*", "samples/*")
            for path in self.run_directory.path.glob(name)
        ]
        return {str(path.relative_to(self.run_directory.path)): _stamp(path) for path in sorted(paths)}

    def _find_or_create_run(self, status: Status) -> Any:
        """Return the run that the cursor names, else the one that bears our key, else a new one."""
        from mlflow.exceptions import MlflowException

        if "run_id" in self.cursor:
            try:
                run = self.client.get_run(self.cursor["run_id"])
                if run.info.lifecycle_stage == "active":
                    return run
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        self.cursor = {}  # another store, or the run was deleted there: send everything
        experiment_id = _experiment_id(self.client, self.uri, self.study)
        key = self.run_directory.key
        found = self.client.search_runs([experiment_id], f"tags.run_key = '{key}'")
        start_ms = self.run_directory.events()[0].time_ms
        run = found[0] if found else self.client.create_run(experiment_id, start_ms, {"run_key": key}, self._run_name())
        self._save_cursor(run_id=run.info.run_id)
        return run

    def _run_name(self) -> str:
        return f"{self.facts.get('arm', 'run')} r{self.facts.get('replicate', 0)}"

    def _send_params_and_tags(self, rows: list[Row], status: Status) -> None:
        from mlflow.entities import Param, RunTag

        run_id = self.outcome.run_id
        if not self.cursor.get("params_sent"):
            params = [Param(name, value) for name, value in params_of(self.run_directory.spec()).items()]
            for start in range(0, len(params), MAX_PARAMS_PER_BATCH):
                self.client.log_batch(run_id, params=params[start : start + MAX_PARAMS_PER_BATCH])
            self._save_cursor(params_sent=True)
        environment = (self.run_directory.environments() or [{}])[-1]
        tags = {
            "run_key": self.run_directory.key,
            "study": self.study,
            "arm": self.facts.get("arm"),
            "replicate": self.facts.get("replicate"),
            "label": self.facts.get("label"),
            "code_version": environment.get("code_version"),
            "state": status.state,
            "reason": status.reason,
            "attempt": status.attempt,
            "step": status.step,
            "num_steps": status.num_steps,
            "loss": status.loss,
            "images_per_second": status.images_per_second,
            "eta_seconds": status.eta_seconds if status.state == "running" else None,
            "mlflow.parentRunId": _parent_run_id(self.client, self.uri, self.run_directory, self.study),
        }
        # A value that was there and is gone must not stay behind; one that never was makes no tag.
        before = self.cursor.get("tags", {})
        texts = {name: "" if value is None else str(value)[:5000] for name, value in tags.items()}
        texts["infinite_values"] = _infinite_values(rows)
        changed = {name: text for name, text in texts.items() if before.get(name, "") != text}
        if changed:
            self.client.log_batch(run_id, tags=[RunTag(name, text) for name, text in changed.items()])
            self._save_cursor(tags=texts)

    def _send_rows(self, rows: list[Row]) -> None:
        """Send what the cursor has not: rows past its step, and rows journalled after its last line."""
        from mlflow.entities import Metric

        sent_step, sent_line = self.cursor.get("sent_step", -1), tuple(self.cursor.get("sent_line", (0, 0)))
        new = [row for row in rows if row.at > sent_step or (row.attempt, row.seq) > sent_line]
        # In the order of their steps, so that after any batch the cursor can say "everything up to here".
        new.sort(key=lambda row: (row.at, row.attempt, row.seq))
        last_line = max(((row.attempt, row.seq) for row in rows), default=(0, 0))
        rows_end = max((row.at for row in rows), default=-1)
        for start in range(0, len(new), MAX_METRICS_PER_BATCH):
            batch = new[start : start + MAX_METRICS_PER_BATCH]
            metrics = [Metric(row.key, row.value, row.time_ms, row.step) for row in batch]
            self.client.log_batch(self.outcome.run_id, metrics=metrics)
            self.outcome.num_rows_sent += len(batch)
            following = new[start + len(batch)].at if start + len(batch) < len(new) else rows_end + 1
            self._save_cursor(sent_step=following - 1, sent_line=last_line)

    def _send_artifacts(self) -> None:
        sent = self.cursor.get("artifacts", {})
        folder = self.run_directory.path
        for pattern in ("spec.yaml", "environment.json", "evaluations/*.json", "arrays/*.npz", "samples/*.png"):
            for path in sorted(folder.glob(pattern)):
                name, stamp = str(path.relative_to(folder)), _stamp(path)
                if sent.get(name) != stamp:
                    parent = path.parent.name if path.parent != folder else None
                    self.client.log_artifact(self.outcome.run_id, str(path), parent)
                    self.outcome.num_artifacts_sent += 1
                    sent = {**sent, name: stamp}
                    self._save_cursor(artifacts=sent)

    def _send_status(self, stored: Any, status: Status) -> None:
        asked = MLFLOW_STATUS[status.state]
        name = self._run_name()
        if asked in ("RUNNING", "SCHEDULED"):
            if stored.info.status != asked or stored.info.run_name != name:
                self.client.update_run(self.outcome.run_id, status=asked, name=name)
            return
        if stored.info.run_name != name:
            self.client.update_run(self.outcome.run_id, name=name)
        end_ms = self.run_directory.events()[-1].time_ms
        if stored.info.status != asked or stored.info.end_time != end_ms:
            self.client.set_terminated(self.outcome.run_id, asked, end_ms)

    def _save_cursor(self, **facts: Any) -> None:
        self.cursor = self.cursor | facts
        replace_file(self.cursor_path, json.dumps(self.cursor, indent=1), durable=False)


def _experiment_id(client: Any, uri: str, study: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        path = _sqlite_path(uri)
        location = (_artifact_root(path) / study).as_uri() if path else None
        try:
            return client.create_experiment(study, artifact_location=location)
        except MlflowException:  # another syncer was faster
            experiment = client.get_experiment_by_name(study)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise TrackingError(f"the experiment {study!r} was deleted in MLflow; restore it or rename the study")
    return experiment.experiment_id


def _cursor_path(run_directory: RunDirectory, study: str, uri: str) -> Path:
    store = hashlib.sha256(uri.encode()).hexdigest()[:12]
    return run_directory.path / "tracking" / f"{study}-{store}.json"


def _read_cursor(path: Path) -> dict:
    """Return the cursor; a missing or unreadable one only means that everything is sent again."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def durable_rows(run_directory: RunDirectory, status: Status) -> tuple[list[Row], int]:
    """Return the rows that can never change, and how many others wait for a checkpoint."""
    rows = run_directory.rows()
    if status.state in ("done", "pruned"):  # never resumed, so nothing of it is made again
        return rows, 0
    end = run_directory.durable_step()
    durable = [row for row in rows if row.at <= end]
    return durable, len(rows) - len(durable)


def params_of(spec: dict) -> dict[str, str]:
    """Flatten a resolved spec to MLflow params: dotted names, text as it is, all else as JSON."""
    flat: dict[str, str] = {}

    def visit(value: Any, path: str) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                visit(item, f"{path}.{key}" if path else str(key))
            return
        text = value if isinstance(value, str) else json.dumps(value)
        if len(text) > MAX_PARAM_CHARACTERS:
            note = f" ... ({len(text)} characters; whole in spec.yaml)"
            text = text[: MAX_PARAM_CHARACTERS - len(note)] + note
        flat[path] = text

    visit(spec, "")
    return flat


def _infinite_values(rows: list[Row]) -> str:
    """Name the infinities, which MLflow stores as the largest float without a word; NaN it keeps."""
    found = [f"{row.key} at step {row.step}: {row.value}" for row in rows if math.isinf(row.value)]
    if not found:
        return ""
    more = f"; and {len(found) - 20} more" if len(found) > 20 else ""
    return "; ".join(found[:20]) + more + " (MLflow shows them as 1.8e308)"


# -------------------------------------------------------------------------------------------------------------- search


def sync_search(
    folder: Path,
    *,
    params: dict[str, str],
    tags: dict[str, str],
    bests: Sequence[tuple[int, dict[str, float]]],
    state: str,
    tracking_uri: str | None = None,
) -> str:
    """Bring the parent run of a search up to date, beneath which MLflow shows its trials; return its run_id.

    Args:
        folder: the search's own, runs/.search/<name>; the pictures in its `figures` become artifacts.
        params: the space and the budget; sent once, since MLflow's params never change.
        tags: what changes: how far it is, its best trial.
        bests: for each finished trial, in their order: Unix time in ms, and the best values so far by metric.
        state: running, interrupted or done.

    Raises:
        TrackingError: the store cannot be reached or refuses; a repeat goes on from there.
    """
    uri = initialise_store(tracking_uri)
    mlflow = _mlflow()
    with _store_errors(uri):
        from mlflow.entities import Metric, Param, RunTag

        client = mlflow.MlflowClient(tracking_uri=uri)
        run_id = _search_run_id(client, uri, folder)
        path = _search_cursor(folder, uri)
        cursor = _read_cursor(path)
        if not cursor.get("params_sent"):
            sent = [Param(name, text[:MAX_PARAM_CHARACTERS]) for name, text in params.items()]
            for start in range(0, len(sent), MAX_PARAMS_PER_BATCH):
                client.log_batch(run_id, params=sent[start : start + MAX_PARAMS_PER_BATCH])
        rows = [
            Metric(key, value, time_ms, step)
            for step, (time_ms, values) in enumerate(bests, 1)
            if step > cursor.get("bests_sent", 0)
            for key, value in values.items()
        ]
        for start in range(0, len(rows), MAX_METRICS_PER_BATCH):
            client.log_batch(run_id, metrics=rows[start : start + MAX_METRICS_PER_BATCH])
        client.log_batch(run_id, tags=[RunTag(name, text[:5000]) for name, text in (tags | {"state": state}).items()])
        for picture in sorted((folder / "figures").glob("*.png")):
            client.log_artifact(run_id, str(picture), "figures")
        client.update_run(run_id, status=MLFLOW_STATUS[state])
        facts = {"run_id": run_id, "params_sent": True, "bests_sent": len(bests)}
        replace_file(path, json.dumps(facts), durable=False)
    return run_id


def _parent_run_id(client: Any, uri: str, run_directory: RunDirectory, study: str) -> str | None:
    """Return the run of the search that this study is, None where it is no search."""
    folder = run_directory.path.parent / ".search" / study
    return _search_run_id(client, uri, folder) if folder.is_dir() else None


def _search_run_id(client: Any, uri: str, folder: Path) -> str:
    """Return the search's run in this store, made by whoever needs it first."""
    path = _search_cursor(folder, uri)
    if "run_id" not in _read_cursor(path):
        lock = FolderLock(folder / "tracking", f"the MLflow record of search {folder.name}")
        lock.acquire(60.0)
        try:
            if "run_id" not in _read_cursor(path):
                experiment_id = _experiment_id(client, uri, folder.name)
                found = client.search_runs([experiment_id], f"tags.search = '{folder.name}'")
                tags = {"search": folder.name, "study": folder.name}
                run = found[0] if found else client.create_run(experiment_id, None, tags, f"search {folder.name}")
                replace_file(path, json.dumps({"run_id": run.info.run_id}), durable=False)
        finally:
            lock.release()
    return _read_cursor(path)["run_id"]


def _search_cursor(folder: Path, uri: str) -> Path:
    return folder / f"tracking-{hashlib.sha256(uri.encode()).hexdigest()[:12]}.json"


# --------------------------------------------------------------------------------------------------------------- check


@dataclass
class CheckReport:
    """How MLflow and the journals differ, row for row on (key, step, value); all zero and empty when they agree."""

    num_rows_compared: int = 0
    num_rows_waiting: int = 0
    gaps: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Tell whether nothing is missing, doubled, contradictory or damaged."""
        return not (self.gaps or self.duplicates or self.conflicts or self.problems)


def check(run_directory: RunDirectory, *, tracking_uri: str | None = None) -> CheckReport:
    """Compare MLflow with the journals row for row, for every study of a run, and say where they differ.

    Timings and system metrics differ by nature from attempt to attempt: they may be missing nowhere, but may repeat.

    Raises:
        TrackingError: the store cannot be reached.
    """
    uri = initialise_store(tracking_uri)
    report = CheckReport(problems=run_directory.problems())
    rows, report.num_rows_waiting = durable_rows(run_directory, run_directory.status())
    mlflow = _mlflow()
    with _store_errors(uri):
        client = mlflow.MlflowClient(tracking_uri=uri)
        for study in run_directory.studies():
            experiment = client.get_experiment_by_name(study)
            query = f"tags.run_key = '{run_directory.key}'"
            runs = client.search_runs([experiment.experiment_id], query) if experiment else []
            if len(runs) > 1:
                report.duplicates.append(f"{study}: {len(runs)} MLflow runs bear the run_key {run_directory.key}")
            stored: Counter[tuple[str, int, float | str]] = Counter()
            for run in runs[:1]:
                for key in run.data.metrics:
                    history = client.get_metric_history(run.info.run_id, key)
                    stored.update((key, metric.step, _comparable(metric.value)) for metric in history)
            _compare(study, rows, stored, report)
    return report


def _compare(study: str, rows: list[Row], stored: Counter, report: CheckReport) -> None:
    journalled = Counter((row.key, row.step, _comparable(row.value)) for row in rows)
    journalled_points = {(key, step) for key, step, _ in journalled}
    report.num_rows_compared += len(journalled)
    for (key, step, value), count in journalled.items():
        if stored[key, step, value] < count:
            report.gaps.append(f"{study}: {key} at step {step}: {value} is not in MLflow")
    for (key, step, value), count in stored.items():
        expected = journalled[key, step, value]
        if is_measurement(key) or count == expected:
            continue
        point = f"{study}: {key} at step {step}: MLflow has {value}"
        if expected:
            report.duplicates.append(f"{point} {count} times")
        elif (key, step) in journalled_points:
            report.conflicts.append(f"{point}, the journal another value")
        else:
            report.conflicts.append(f"{point}, the journal nothing")


def _comparable(value: float) -> float | str:
    """Make values compare as MLflow stores them: infinities as the largest float, NaN equal to itself."""
    if math.isnan(value):
        return "nan"
    return math.copysign(sys.float_info.max, value) if math.isinf(value) else value


# --------------------------------------------------------------------------------------------------------------- watch


MAX_PAUSE_SECONDS = 600.0


def watch(
    gather: Callable[[], Sequence[RunDirectory]],
    say: Callable[[str], None],
    *,
    tracking_uri: str | None = None,
    every_seconds: float = 30.0,
    for_ever: bool = False,
) -> None:
    """Carry records to MLflow again and again, until all is there and nothing is left to run.

    This is what a login node does for compute nodes that cannot reach the server. An outage is waited out: the pause
    between tries doubles, up to ten minutes.

    Args:
        gather: finds the runs, anew before each pass.
        say: takes a plain line of what is new.
        for_ever: go on when nothing is left to run.
    """
    passes = _Passes(tracking_uri)
    told, pause, away = "", every_seconds, False
    while True:
        num_rows, news, error = passes.carry(gather())
        if num_rows:
            say(f"{num_rows} rows carried")
        if error:
            pause = min(2 * pause, MAX_PAUSE_SECONDS) if away else every_seconds
            say(f"{error}; trying again in {pause:.0f} s")
        elif away:
            pause = every_seconds
            say("the store is back")
        away = error is not None
        if news != told:
            say(news)
            told = news
        if not (for_ever or away or passes.left_to_do):
            return
        time.sleep(pause)


class _Passes:
    """Passes over many runs that leave out those in which nothing has changed since they were carried."""

    def __init__(self, tracking_uri: str | None):
        self.tracking_uri = tracking_uri
        self.left_to_do = False
        self._carried: dict[str, Any] = {}

    def carry(self, run_directories: Sequence[RunDirectory]) -> tuple[int, str, TrackingError | None]:
        """Return how many rows were sent, where the runs stand and what is wrong, and why the store is away."""
        num_rows, lines, error = 0, [], None
        states: Counter[str] = Counter()
        self.left_to_do = False
        for run_directory in run_directories:
            status = run_directory.status()
            states[status.state] += 1
            self.left_to_do |= _goes_on(status)
            # Taken first: what changes while the run is carried is carried next time.
            seen = (status.state, _files_seen(run_directory))
            if error or self._carried.get(run_directory.key) == seen:
                continue
            try:
                report = sync_run(run_directory, tracking_uri=self.tracking_uri, wait_seconds=5.0)
            except TrackingError as away:
                error = away  # for the others too
            except HarnessError as refusal:
                self.left_to_do = True
                lines.append(f"{run_directory.key} is left for the next pass: {refusal}")
            else:
                self._carried[run_directory.key] = seen
                num_rows += sum(study.num_rows_sent for study in report.studies.values())
                lines.extend(f"{run_directory.key}: {problem}" for problem in report.problems)
        counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "no runs yet"
        return num_rows, "\n".join([*lines, counts]), error


def _goes_on(status: Status) -> bool:
    """Tell whether more is to come of a run; SLURM requeues one that was stopped by its notice of the end, SIGUSR2."""
    waiting = status.state in ("new", "queued", "running")
    return waiting or (status.state == "interrupted" and "SIGUSR2" in status.reason)


def _files_seen(run_directory: RunDirectory) -> list[tuple[str, list[int]]]:
    folder = run_directory.path
    return [(path.name, _stamp(path)) for pattern in ("*.json*", "studies/*.json") for path in folder.glob(pattern)]


# ---------------------------------------------------------------------------------------------------------- background


class BackgroundSync:
    """Keep MLflow in step with runs while they train, from a process of its own at the lowest priority.

    It never blocks a training: it reads the journals, waits out a dead or hanging server, and catches up. When the
    process that began it ends, by SIGKILL too, it makes a last pass and ends. What it cannot deliver, `sync_run`
    delivers later. Write the last status before `close`, so that the last pass carries it.

    Args:
        run_directories: of one job, or of all that one machine works on.
        log_folder: takes sync.log.
        every_seconds: time from one pass to the next.
    """

    def __init__(
        self,
        run_directories: Sequence[RunDirectory],
        log_folder: Path,
        *,
        tracking_uri: str | None = None,
        every_seconds: float = 15.0,
    ):
        package_root = str(Path(__file__).resolve().parents[1])
        search_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        log_folder.mkdir(parents=True, exist_ok=True)
        arguments = [store_uri(tracking_uri), str(every_seconds)]
        with (log_folder / "sync.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "harness.tracking", *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": search_path},
            )
        assert self._process.stdin is not None
        paths = [str(run_directory.path.absolute()) for run_directory in run_directories]
        with contextlib.suppress(BrokenPipeError):  # it died at once; its log says why
            self._process.stdin.write(json.dumps(paths).encode() + b"\n")
            self._process.stdin.flush()

    def __enter__(self) -> BackgroundSync:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, wait_seconds: float = 60.0) -> bool:
        """Ask for the last pass and wait for it, no longer than told; return whether it succeeded."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            return self._process.wait(wait_seconds) == 0
        except subprocess.TimeoutExpired:
            self.kill()
            return False

    def kill(self) -> None:
        """End it at once; what it was sending, the next sync sends again, and once."""
        self._process.kill()
        self._process.wait()


def _follow(run_directories: list[RunDirectory], uri: str, every_seconds: float) -> int:
    """Sync until standard input closes, which it does when the process that asked for it ends in whatever way."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # SLURM sends its signals to every process of the job
    os.nice(19)
    parent = os.getppid()
    ended = False
    while True:
        # The parent is asked after as well: a process that it forked may hold its end of the pipe open.
        ended = ended or bool(select.select([sys.stdin], [], [], every_seconds)[0]) or os.getppid() != parent
        failed = False
        for run_directory in run_directories:
            try:
                sync_run(run_directory, tracking_uri=uri)
            except HarnessError as error:
                print(time.strftime("%Y-%m-%d %H:%M:%S"), error, flush=True)
                failed = True
                if isinstance(error, TrackingError):
                    break  # the store is away for the others too
            except Exception:
                traceback.print_exc()
                failed = True
        if ended:
            return int(failed)


if __name__ == "__main__":
    uri, seconds = sys.argv[1:]
    folders = json.loads(sys.stdin.buffer.readline() or b"[]")
    sys.exit(_follow([RunDirectory(Path(folder)) for folder in folders], uri, float(seconds)))
