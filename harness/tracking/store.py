"""MLflow's store: its URI, and its initialisation."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import RecordError, TrackingError
from harness.records.reading import Fields, read_json
from harness.text import printable_lines

# Set before mlflow is imported, unless the user has set them. With MLflow's defaults (120 s, 7 retries) one call to an
# unreachable server was measured to block for 247 s.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


def import_mlflow() -> Any:
    """Import mlflow quietly, without telemetry and with short timeouts."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):  # afterwards, because the import sets their levels
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


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
    path = sqlite_path(uri)
    return f"sqlite:///{path}" if path else uri


def initialise_store(tracking_uri: str | None = None) -> str:
    """Initialise the store for many concurrent jobs, and return its absolute URI; takes milliseconds if it exists.

    Sixteen processes that opened a new SQLite store at the same time all failed in its migration. Here the first one
    builds the database in a temporary file, under a file lock, and renames it: a database that exists is complete.
    """
    uri = store_uri(tracking_uri)
    path = sqlite_path(uri)
    if path is None or _has_schema(path):
        return uri
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _has_schema(path):
            with store_errors(uri):
                from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

                aside = path.with_name(f"{path.name}.new")
                aside.unlink(missing_ok=True)
                store = SqlAlchemyStore(f"sqlite:///{aside}", str(artifact_root(path)))
                store.engine.dispose()
                aside.replace(path)
    return uri


def sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def artifact_root(database: Path) -> Path:
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
def store_errors(uri: str) -> Iterator[None]:
    """Turn exceptions of MLflow and of the network into a TrackingError that does not contain a password."""
    import_mlflow()
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"MLflow store {uri}: {first_line}"
        raise TrackingError(re.sub(r"//[^/@\s]*@", "//***@", message)) from error


MAX_METRICS_PER_BATCH = 1000  # MLflow's limits over HTTP


MAX_PARAMS_PER_BATCH = 100


MAX_PARAM_CHARACTERS = 6000  # MLflow truncates longer ones silently


MAX_TAG_CHARACTERS = 5000


def param_name(path: str) -> str:
    """Return a name that MLflow accepts for a param: it may have letters, digits and _ - . : / alone."""
    name = re.sub(r"[^\w\-. :/]", "_", path)[:250]
    # It is a path for MLflow, which must be a normal one.
    return "/".join(part for part in name.split("/") if part.strip(".")) or "_"


def tag_text(value: object) -> str:
    """Return a tag's or a param's text: no control characters, which a database or a browser may refuse."""
    return printable_lines(value)


MLFLOW_STATUS = {
    "new": "SCHEDULED",
    "queued": "SCHEDULED",
    "running": "RUNNING",
    "interrupted": "KILLED",
    "pruned": "KILLED",
    "failed": "FAILED",
    "done": "FINISHED",
}


def experiment_id_of(client: Any, uri: str, study: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(study)
    if experiment is None:
        path = sqlite_path(uri)
        location = (artifact_root(path) / study).as_uri() if path else None
        try:
            return client.create_experiment(study, artifact_location=location)
        except MlflowException:  # another process was faster
            experiment = client.get_experiment_by_name(study)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise TrackingError(f"the experiment {study!r} was deleted in MLflow; restore it or rename the study")
    return experiment.experiment_id


def read_cursor(path: Path) -> dict:
    """Return the cursor; if it is missing, unreadable or damaged, everything is sent again."""
    try:
        cursor = read_json(path)
        fields = Fields(cursor, str(path))
        if "run_id" in fields:
            fields.file_name("run_id")
        fields.integer("sent_step", -1, low=-1)
        fields.integer("num_rows_waiting", 0)
        fields.integer("bests_sent", 0)
        for name in ("tags", "artifacts", "stamps"):
            fields.fields(name, {})
        for name, kind in (("sent_line", int), ("problems", str)):
            if not all(type(entry) is kind for entry in cursor.get(name, [])):
                return {}
    except (FileNotFoundError, RecordError, TypeError):
        return {}
    return cursor
