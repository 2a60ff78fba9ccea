"""A fresh SQLite store for each test, copied from one that is made once."""

import shutil
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def first_contact(tmp_path_factory):
    """Initialise a store in a process of its own; return the database and what the process printed."""
    path = tmp_path_factory.mktemp("store") / "new" / "mlflow.db"
    code = f"from harness.tracking.store import initialise_store; print(initialise_store('sqlite:///{path}'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return path, done.stdout, done.stderr


@pytest.fixture(scope="module")
def fresh_database(first_contact):
    return first_contact[0]


@pytest.fixture
def store(fresh_database, tmp_path, monkeypatch):
    """A fresh SQLite store, set as the one to use."""
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri
