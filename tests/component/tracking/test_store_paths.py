"""A path is not a URI and a file is not always a database: what a store may be called, and what its errors say."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from harness.doctor import store as doctor
from harness.errors import TrackingError
from harness.records.directory import RunDirectory
from harness.slurm.profile import Profile
from harness.tracking import store
from harness.tracking.store import initialise_store, sqlite_path, store_uri
from harness.tracking.sync import sync_run

URI = "sqlite:///x.db"
ODD_NAMES = (
    *("a b", "100%20x", "a%2Fb", "50%", "q?x#y", "#1", "[a]*", "x\\j", "%j", "ünïcode", 'it\'s "q"', "-rf"),
    *("new\nline", "a;b", "a&b=c", "a@b", "c:d", "~", "$HOME", "`id`", "x.db?mode=ro"),
)


@pytest.fixture(scope="module")
def fresh_database(tmp_path_factory):
    """Make a store in a folder whose name is odd in several ways."""
    folder = tmp_path_factory.mktemp("store") / "it's 100%20 odd?yes#no"
    initialise_store(store._sqlite_uri(folder / "mlflow.db"))
    return folder / "mlflow.db"


def test_a_store_is_made_where_it_is_said_to_be(fresh_database):
    folder = fresh_database.parent
    assert {path.name for path in folder.iterdir()} - {"mlflow.db.lock"} == {"mlflow.db"}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.fixture
def home(tmp_path, fresh_database, monkeypatch, request):
    """Return a working folder of an odd name with a store and a run that has records."""
    folder = tmp_path / "above" / request.param
    folder.mkdir(parents=True)
    shutil.copy(fresh_database, folder / "mlflow.db")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = RunDirectory(Path("runs") / "0123456789ab").create({"seed": 3}, schema_version=1)
    run.add_to_study("odd", {"arm": "a", "replicate": 0})
    with run.lock(), run.open_journal(resumed_from_step=0) as journal:
        journal.metrics(1, {"train/loss": 1.0})
        journal.event("checkpoint", step=1)
    (run.path / "arrays").mkdir()
    (run.path / "arrays" / "x.npz").write_bytes(b"x")
    return folder


@pytest.mark.parametrize("home", ODD_NAMES, indirect=True, ids=ascii)
def test_records_reach_the_store_of_a_working_folder_of_any_name(home):
    report = sync_run(RunDirectory(Path("runs") / "0123456789ab"))
    assert report.studies["odd"].num_rows_sent == 1
    with sqlite3.connect(home / "mlflow.db") as connection:
        assert connection.execute("SELECT value FROM metrics").fetchall() == [(1.0,)]
    assert [path.name for path in (home / "mlartifacts").rglob("x.npz")] == ["x.npz"]
    assert [path.name for path in home.parent.iterdir()] == [home.name]  # and no stray store beside it
    assert {path.name for path in home.iterdir()} <= {"mlflow.db", "mlflow.db.lock", "mlartifacts", "runs"}
    assert store_uri(store_uri()) == store_uri()
    assert sqlite_path(store_uri()) == home / "mlflow.db"


@pytest.mark.parametrize("home", ["100%20x", "q?x#y"], indirect=True, ids=ascii)
def test_doctor_speaks_of_the_file_that_is_meant(home):
    asked = []
    [finding] = doctor.check_store(Profile(), store_uri(), lambda path: asked.append(path) or "ext4")
    assert finding.level == "ok"
    assert asked == [home / "mlflow.db"]
    assert [finding.level for finding in doctor.check_local_store()] == ["ok"]


@pytest.mark.parametrize("home", ["a%20b"], indirect=True)
def test_a_path_that_was_pasted_into_a_uri_is_taken_as_it_is(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
    assert sqlite_path(store_uri()) == home / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home.parent}/a%2520b/mlflow.db")
    assert sqlite_path(store_uri()) == home / "mlflow.db"


def test_options_of_a_uri_are_kept(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db?timeout=60"
    assert store_uri(uri) == uri
    assert sqlite_path(uri) == tmp_path / "mlflow.db"


@pytest.mark.parametrize(
    "uri",
    ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file:x.db?uri=true", "sqlite:///a?b/mlflow.db"],
)
def test_a_uri_without_a_file_of_its_own_is_refused(uri, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackingError, match=r"names no file|begins options"):
        initialise_store(uri)
    assert list(tmp_path.iterdir()) == []


def test_a_working_folder_whose_name_is_not_utf_8_is_refused_in_words(tmp_path, monkeypatch):
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrackingError, match="is not UTF-8; choose another by MLFLOW_TRACKING_URI"):
        store_uri()


def test_a_working_folder_that_was_removed_is_refused_in_words(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrackingError, match="the working folder was removed"):
        store_uri()
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------------------------------------------------- the errors


def test_a_locked_database_is_called_locked(fresh_database, tmp_path, monkeypatch):
    path = tmp_path / "mlflow.db"
    shutil.copy(fresh_database, path)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda name: connect(name, timeout=0.01))
    holder = connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(TrackingError, match=r"mlflow\.db is locked by another process for now, try again later"):
            initialise_store(f"sqlite:///{path}")
    finally:
        holder.close()
    assert initialise_store(f"sqlite:///{path}")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("no database, but a text" * 100), "is not an MLflow database"),
        (lambda path: sqlite3.connect(path).execute("CREATE TABLE a (b)"), "is not an MLflow database"),
        (lambda path: path.mkdir(), "cannot be read"),
    ],
    ids=["text", "other tables", "folder"],
)
def test_what_is_no_store_is_said_to_be_none(tmp_path, make, words):
    make(tmp_path / "mlflow.db")
    with pytest.raises(TrackingError, match=words):
        initialise_store(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_folder_that_cannot_be_written_is_an_error_in_words():
    with pytest.raises(TrackingError, match=r"MLflow store sqlite:////proc/store/mlflow\.db: "):
        initialise_store("sqlite:////proc/store/mlflow.db")


def test_an_error_of_the_database_under_mlflow_is_no_traceback():
    from sqlalchemy.exc import OperationalError

    for error in (OperationalError("INSERT", {}, ValueError("disk full")), sqlite3.OperationalError("disk full")):
        with pytest.raises(TrackingError, match=r"MLflow store sqlite:///x\.db: .*disk full"), store.store_errors(URI):
            raise error


def test_a_value_that_mlflow_does_not_take_is_named_with_its_variable(monkeypatch):
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "maybe")
    words = r"Failed to convert 'maybe' for MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"
    with pytest.raises(TrackingError, match=words), store.store_errors(URI):
        from mlflow.environment_variables import MLFLOW_SQLALCHEMYSTORE_POOL_SIZE

        MLFLOW_SQLALCHEMYSTORE_POOL_SIZE.get()


def test_rows_are_written_when_they_count_as_sent_whatever_the_environment_says(monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    store.import_mlflow()
    from mlflow.environment_variables import MLFLOW_ENABLE_ASYNC_LOGGING

    assert MLFLOW_ENABLE_ASYNC_LOGGING.get() is False
