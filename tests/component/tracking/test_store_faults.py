"""Stores that misbehave: what is told, and that the next upload is whole all the same."""

import contextlib
import http.server
import json
import socket
import sqlite3
import struct
import threading

import pytest

from harness.errors import TrackingError
from harness.records.directory import RunDirectory
from harness.records.manifest import ask_for
from harness.records.status import Status
from harness.tracking.check import check
from harness.tracking.studies import sync_studies
from harness.tracking.sync import sync_run


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    run = RunDirectory(tmp_path / "runs" / "0123456789ab").create({"seed": 3}, schema_version=1)
    run.add_to_study("schedules", {"arm": "cosine", "replicate": 0, "evaluations": []})
    ask_for(run.path.parent, "schedules", {run.key: run.studies()["schedules"]})
    with run.lock(), run.open_journal(resumed_from_step=0) as journal:
        journal.metrics(1, {"train/loss": 0.5})
        run.set_status(Status("done", step=1, num_steps=1, attempt=1))
    return run


class Html(http.server.BaseHTTPRequestHandler):
    """A login page of a proxy in front of the server."""

    status = 200

    def do_GET(self):
        body = b"<html><body>Please log in</body></html>"
        self.send_response(self.status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_):
        pass


class Unauthorised(Html):
    status = 401


class Unavailable(Html):
    status = 503


class Resetting(Html):
    def do_GET(self):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    do_POST = do_GET


class Truncated(Html):
    """Says that it answers in JSON, and breaks off in the middle."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(json.dumps({"experiment": {}}).encode()[:7])

    do_POST = do_GET


@contextlib.contextmanager
def serving(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://ada:geheim@127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("handler", [Html, Unauthorised, Unavailable, Resetting, Truncated])
def test_a_server_that_answers_nonsense_is_one_error_without_a_password_and_no_loss(run, store, handler):
    with serving(handler) as uri:
        for upload in (sync_run, lambda run, tracking_uri: sync_studies([run], tracking_uri=tracking_uri)):
            with pytest.raises(TrackingError) as refusal:
                upload(run, tracking_uri=uri)
            assert "geheim" not in str(refusal.value)
            assert "MLflow store http://***@127.0.0.1" in str(refusal.value)
            assert len(str(refusal.value).splitlines()) == 1
    sync_run(run, tracking_uri=store)
    assert sync_studies([run], tracking_uri=store) == 2
    assert check(run, tracking_uri=store).ok


def test_a_locked_database_is_an_error_and_its_next_upload_is_whole(run, store, tmp_path):
    sync_run(run, tracking_uri=store)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as holding:
        holding.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackingError, match="locked"):
            sync_studies([run], tracking_uri=f"{store}?timeout=1")
    assert sync_studies([run], tracking_uri=store) == 2


def test_an_experiment_that_was_deleted_in_mlflow_is_named_and_comes_back_when_it_is_restored(run, store):
    from harness.tracking.store import import_mlflow

    client = import_mlflow().MlflowClient(tracking_uri=store)
    sync_run(run, tracking_uri=store)
    sync_studies([run], tracking_uri=store)
    experiment = client.get_experiment_by_name("schedules")
    client.delete_experiment(experiment.experiment_id)
    for upload in (sync_run, lambda run, tracking_uri: sync_studies([run], tracking_uri=tracking_uri)):
        with pytest.raises(TrackingError, match="'schedules' was deleted in MLflow; restore it or rename the study"):
            upload(run, tracking_uri=store)
    client.restore_experiment(experiment.experiment_id)
    sync_run(run, tracking_uri=store)
    sync_studies([run], tracking_uri=store)
    kinds = [each.data.tags["kind"] for each in client.search_runs([experiment.experiment_id])]
    assert sorted(kinds) == ["arm", "run", "study"]
