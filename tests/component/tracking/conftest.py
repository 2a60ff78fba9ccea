"""A fresh SQLite store for each test, copied from one that is made once; and MLflow's own server."""

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

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


class Server:
    """MLflow's own server on a port of loopback, without workers for jobs."""

    def __init__(self, folder, port):
        self.folder, self.port = folder, port
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        arguments = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--workers", "1"]
        arguments += ["--artifacts-destination", f"{self.folder}/served", "--host", "127.0.0.1"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *arguments, "--port", str(self.port)],
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that its workers end with it
                env={key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
                | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1)
                return
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None and time.monotonic() < deadline, (
                    self.folder / "server.log"
                ).read_text()
                time.sleep(0.2)

    def kill(self):
        os.killpg(self.process.pid, 9)
        self.process.wait()


@pytest.fixture
def start_server():
    """Return the class whose objects are servers: `start_server(folder, port)`; who starts one kills it."""
    return Server
