"""MLflow's store: its URI, and its initialisation."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

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
    """Import mlflow quietly, without telemetry, with short timeouts and with writes that are done when they return.

    Raises:
        TrackingError: an environment variable of MLflow's has a value that it does not take.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["MLFLOW_ENABLE_ASYNC_LOGGING"] = "false"  # else a row would count as sent before it is
    try:
        import mlflow
    except ValueError as error:
        raise _variable_refused(error) from error

    for name in ("mlflow", "alembic"):  # afterwards, because the import sets their levels
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


def _variable_refused(error: ValueError) -> TrackingError:
    set_here = ", ".join(sorted(name for name in os.environ if name.startswith("MLFLOW_") and name not in _ENVIRONMENT))
    return TrackingError(f"MLflow does not take an environment variable's value: {error} (set here: {set_here})")


def store_uri(tracking_uri: str | None = None) -> str:
    """Return the store's URI: the one given, else MLFLOW_TRACKING_URI, else `mlflow.db` in the working folder.

    That of an SQLite file has an absolute path; a URI that was returned here is returned as it is.

    Raises:
        TrackingError: a folder is named, since MLflow refuses its file store since 3.13; or no file is.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return _sqlite_uri(_working_folder() / "mlflow.db")
    if "://" not in uri or uri.startswith("file:"):
        raise TrackingError(
            f"{uri!r} is a folder, and MLflow refuses its file store since 3.13; "
            "use sqlite:///PATH.db or the http(s):// address of a server"
        )
    path = sqlite_path(uri)
    return _sqlite_uri(path, uri.partition("?")[2]) if path else uri


def initialise_store(tracking_uri: str | None = None) -> str:
    """Initialise the store for many concurrent jobs, and return its absolute URI; takes milliseconds if it exists.

    Sixteen processes that opened a new SQLite store at the same time all failed in its migration. Here the first one
    builds the database in a temporary file, under a file lock, and renames it: a database that exists is complete.

    Raises:
        TrackingError: the store cannot be made or read; an existing file is locked, damaged or something else.
    """
    uri = store_uri(tracking_uri)
    path = sqlite_path(uri)
    if path is None or _has_schema(path):
        return uri
    with store_errors(uri):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f"{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _has_schema(path):
                from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

                aside = path.with_name(f"{path.name}.new")
                aside.unlink(missing_ok=True)
                # As a URI: MLflow writes the root into an SQL statement, where a quotation mark would end the text.
                store = SqlAlchemyStore(_sqlite_uri(aside), artifact_root(path).as_uri())
                store.engine.dispose()
                aside.replace(path)
    return uri


def is_sqlite(uri: str) -> bool:
    """Return whether a URI names an SQLite database, which only processes of one machine may write."""
    return uri.partition(":")[0].partition("+")[0] == "sqlite"


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of an SQLite URI's file, None of another URI.

    Raises:
        TrackingError: it names no file, or has a `?` that begins no options.
    """
    if not is_sqlite(uri):
        return None
    rest = uri.partition("://")[2]
    text, _, options = rest.removeprefix("/").partition("?")
    if not rest.startswith("/") or text in ("", ":memory:") or text.startswith("file:"):
        raise TrackingError(f"{uri!r} names no file that jobs could share; use sqlite:///PATH.db")
    if options and not re.fullmatch(r"\w+=[^/]*", options):
        raise TrackingError(f"{uri!r}: a question mark begins options; in a path write %3F for it")
    path = Path(_decode(text))
    if path != Path(text) and not path.parent.exists() and Path(text).parent.exists():
        path = Path(text)  # a path that was pasted as it is
    return _working_folder() / path


def _sqlite_uri(path: Path, options: str = "") -> str:
    text = str(path)
    if text != text.encode(errors="replace").decode():  # bytes that are no UTF-8 have no place in a URI
        raise TrackingError(f"{text!r} is not UTF-8; choose another by MLFLOW_TRACKING_URI=sqlite:///PATH.db")
    for encoded in (text, text.replace("%", "%25").replace("?", "%3F")):
        if "?" not in encoded and _decode(encoded) == text:
            # MLflow makes the folder of what follows sqlite:///, and takes %25 in it for a name.
            scheme = "sqlite" if encoded == text and "%" not in text else "sqlite+pysqlite"
            return f"{scheme}:///{encoded}" + (f"?{options}" if options else "")
    raise TrackingError(f"{text!r} cannot be written as a URI; choose another by MLFLOW_TRACKING_URI=sqlite:///PATH.db")


def _decode(text: str) -> str:
    """Return the path that SQLAlchemy reads from a URI; not every version of it takes %20 for a space."""
    if "%" not in text:
        return text
    from sqlalchemy.engine import make_url

    return make_url(f"sqlite:///{text}").database or ""


def _working_folder() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise TrackingError("the working folder was removed; go to one that exists") from None


def artifact_root(database: Path) -> Path:
    return database.parent / "mlartifacts"


def _has_schema(database: Path) -> bool:
    """Return whether an MLflow database exists.

    Raises:
        TrackingError: there is a file that cannot be read now, or that is none.
    """
    try:
        if not database.exists() or database.stat().st_size == 0:
            return False
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except OSError as error:
        raise TrackingError(f"{database} cannot be read: {error.strerror}") from error
    except sqlite3.Error as error:
        raise TrackingError(f"{database} {_describe(error)}: {error}") from error
    return True


def _describe(error: sqlite3.Error) -> str:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # the primary code of extended ones
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return "is locked by another process for now, try again later"
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_IOERR:
            return "cannot be read"
        case sqlite3.SQLITE_CORRUPT:
            return "is damaged"
    return "is not an MLflow database"


@contextlib.contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turn exceptions of MLflow, of databases and of the network into a TrackingError that contains no password."""
    import_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"MLflow store {uri}: {first_line}"
        raise TrackingError(without_password(message)) from error
    except ValueError as error:
        if "MLFLOW_" in str(error):
            raise _variable_refused(error) from error
        raise


def server_address(uri: str) -> str:
    """Return the address at which a browser finds a store, without a password; empty if no server has it."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def without_password(text: str) -> str:
    """Return a text without the passwords of the URIs in it."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)


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
    "new": "SCHEDULED",  # of a run whose status was lost
    "queued": "SCHEDULED",
    "running": "RUNNING",
    "interrupted": "KILLED",
    "paused": "SCHEDULED",  # at a rung: perhaps it goes on
    "pruned": "KILLED",
    "failed": "FAILED",
    "done": "FINISHED",
}


STUDY_TAG = "study"
"""Of an experiment: the study that it is of, whatever the experiment is called in MLflow since."""


def experiment_of(client: Any, study: str) -> Any:
    """Return the experiment of a study, also one that was renamed in MLflow or deleted there; None if there is none."""
    experiment = client.get_experiment_by_name(study)
    if experiment is not None and experiment.tags.get(STUDY_TAG, study) == study:
        if experiment.lifecycle_stage == "active":
            return experiment
        deleted = experiment
    else:
        deleted = None
    renamed = client.search_experiments(filter_string=f"tags.{STUDY_TAG} = '{study}'")
    return renamed[0] if renamed else deleted


def experiment_id_of(client: Any, uri: str, study: str) -> str:
    """Return the id of a study's experiment; make it if the store has none.

    Raises:
        TrackingError: it was deleted in MLflow, or another study's experiment was given its name there.
    """
    from mlflow.exceptions import MlflowException

    experiment = experiment_of(client, study)
    if experiment is None:
        path = sqlite_path(uri)
        location = (artifact_root(path) / study).as_uri() if path else None
        try:
            return client.create_experiment(study, artifact_location=location, tags={STUDY_TAG: study})
        except MlflowException:  # another process was faster
            experiment = experiment_of(client, study)
            if experiment is None and client.get_experiment_by_name(study) is not None:
                raise TrackingError(
                    f"the experiment {study!r} is another study's, which was renamed in MLflow; rename it again"
                ) from None
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise TrackingError(f"the experiment {study!r} was deleted in MLflow; restore it or rename the study")
    if STUDY_TAG not in experiment.tags:  # of an earlier version
        client.set_experiment_tag(experiment.experiment_id, STUDY_TAG, study)
    return experiment.experiment_id


def active_run(client: Any, run_id: str) -> Any:
    """Return a run; None if the store has none, or it was deleted there."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def search_runs(client: Any, experiment_id: str, query: str = "") -> Iterator[Any]:
    """Yield the runs of an experiment that fit a query, page after page."""
    token = None
    while True:
        page = client.search_runs([experiment_id], query, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def active_run_ids(client: Any, study: str) -> set[str]:
    """Return the ids of all runs of a study's experiment; none if it has no experiment, or it was deleted."""
    experiment = experiment_of(client, study)
    if experiment is None or experiment.lifecycle_stage != "active":
        return set()
    return {run.info.run_id for run in search_runs(client, experiment.experiment_id)}


def store_digest(uri: str) -> str:
    """Return 12 hex digits of a store's URI, for names of files."""
    return hashlib.sha256(uri.encode()).hexdigest()[:12]


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
