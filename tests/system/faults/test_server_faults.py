"""A tracking server that is killed, hangs or answers 500, under a real training: it never notices, and nothing is lost.

How much a step costs is paired within one run: the syncer is stopped (SIGSTOP) and let go on in turn every few steps,
so that both kinds of steps meet the same machine. Times are printed and not asserted; what is asserted are facts: the
training process makes no network call, all rows stand in the journal, and all of them in MLflow after `sync`.
"""

import contextlib
import functools
import http.server
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

import psutil
import pytest

from harness.job.job import run_job
from harness.methods.gaussian import GaussianMethod
from harness.records.directory import RunDirectory
from harness.records.status import Status
from harness.tracking.check import check
from harness.tracking.daemon import BackgroundSync
from harness.tracking.store import initialise_store
from harness.tracking.sync import sync_run

BLOCK = 10  # steps
STEPS = 400

connections: list | None = None  # what this process connects to, while it is watched


def _watch(event, arguments):
    if connections is not None and event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        connections.append((event, arguments[1:]))


sys.addaudithook(_watch)


@contextlib.contextmanager
def watched_network():
    """Give the list of all connections that this process tries to make."""
    global connections
    connections = []
    try:
        yield connections
    finally:
        connections = None


class RealServer:
    """MLflow's own server, killed after a third of the steps, back after two thirds."""

    def __init__(self, folder, start_server):
        initialise_store(f"sqlite:///{folder / 'server.db'}")
        self.server = start_server(folder)
        self.uri, self.wait, self.close = self.server.uri, self.server.wait, self.server.kill

    def at(self, step):
        if step == STEPS // 3:
            self.server.kill()
        if step == 2 * STEPS // 3:
            self.server.begin()

    def met(self, run):
        return any("sent_step" in path.read_text() for path in (run / "tracking").glob("*.json"))

    def was_missed(self, run):
        return "MLflow store http://127.0.0.1" in (run / "tracking" / "sync.log").read_text()


class HangingServer:
    """Accepts every connection and never answers."""

    def __init__(self, folder, start_server):
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.uri = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.accepted = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                self.accepted.append(self.listening.accept())

    def at(self, step):
        pass

    def met(self, run):
        return bool(self.accepted)

    def close(self):
        self.listening.close()


class BrokenServer:
    """Answers 500 to everything."""

    def __init__(self, folder, start_server):
        answered = self.answered = []

        class Broken(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                answered.append(self.path)
                self.send_error(500)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken)
        self.uri = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def at(self, step):
        pass

    def met(self, run):
        return bool(self.answered)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


SERVERS = {"killed and restarted": RealServer, "hangs": HangingServer, "answers 500": BrokenServer}


@pytest.mark.slow
@pytest.mark.parametrize("what", SERVERS)
def test_a_training_does_not_notice_its_server_and_nothing_is_lost(
    what, tiny_run, tmp_path, monkeypatch, capsys, start_server
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("harness.tracking.daemon.BackgroundSync", functools.partial(BackgroundSync, every_seconds=0.1))
    run = tiny_run("", f"train.steps={STEPS}", "records.checkpoint_every_seconds=0.2", "model.channels=16")
    server = SERVERS[what](tmp_path, start_server)
    seconds = {"with": [], "without": []}
    inner, syncer = GaussianMethod.step, None

    def step(self, number, *rest, **options):
        nonlocal syncer
        if syncer is None:
            (syncer,) = (one for one in psutil.Process().children() if "harness.tracking.daemon" in one.cmdline())
        deadline = time.monotonic() + 240
        while number == BLOCK and not server.met(run):
            assert time.monotonic() < deadline, "the syncer has not come to the server"
            time.sleep(0.05)
        while what == "killed and restarted" and number == 2 * STEPS // 3 and not server.was_missed(run):
            assert time.monotonic() < deadline, "the syncer has not met the outage"
            time.sleep(0.05)
        server.at(number)
        paused = number // BLOCK % 2 == 1
        if number % BLOCK == 0:
            syncer.send_signal(signal.SIGSTOP if paused else signal.SIGCONT)
        began = time.perf_counter()
        terms = inner(self, number, *rest, **options)
        if number >= BLOCK:
            seconds["without" if paused else "with"].append(time.perf_counter() - began)
        if number == STEPS - 1:
            syncer.send_signal(signal.SIGCONT)
        return terms

    monkeypatch.setattr(GaussianMethod, "step", step)
    try:
        with watched_network() as tried:
            assert run_job(run, tracking_uri=server.uri, show_progress=False) == "done"
        assert tried == []
        directory = RunDirectory(run)
        assert directory.history("train/loss")[0] == list(range(5, STEPS + 1, 5))
        if what == "killed and restarted":
            server.wait()
            uri = server.uri
        else:
            uri = initialise_store(f"sqlite:///{tmp_path / 'later.db'}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        sync_run(directory, tracking_uri=uri)
        report = check(directory, tracking_uri=uri)
        assert report.ok and report.num_rows_waiting == 0 and report.num_rows_compared > STEPS
    finally:
        server.close()
    with_it, without = (statistics.median(seconds[kind]) for kind in ("with", "without"))
    with capsys.disabled():
        print(
            f"\na server that {what}: a step takes {1e3 * with_it:.2f} ms with the syncer at work, "
            f"{1e3 * without:.2f} ms without, ratio {with_it / without:.3f} ({len(seconds['with'])} steps each); "
            f"0 network calls in the training; {report.num_rows_compared} rows in MLflow, none lost"
        )


@pytest.mark.slow
def test_sixteen_processes_may_meet_one_cold_store(tmp_path, capsys):
    # mlflow is imported once and the process forked, which makes all of them arrive together.
    script = """
import os, sys
from pathlib import Path
import mlflow.store.tracking.sqlalchemy_store
from harness.records.directory import RunDirectory
from harness.tracking.store import initialise_store
from harness.tracking.sync import sync_run
uri, *paths = sys.argv[1:]
for path in paths:
    if os.fork() == 0:
        initialise_store(uri)
        report = sync_run(RunDirectory(Path(path)), tracking_uri=uri)
        os._exit(report.studies["noise-schedule"].num_rows_sent != 40)
sys.exit(sum(os.wait()[1] != 0 for _ in paths))
"""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}?timeout=120"  # SQLite's own 5 s are short where all cores are busy
    runs = []
    for number in range(16):
        run = RunDirectory(tmp_path / f"run{number:02d}").create({"seed": number}, schema_version=1)
        run.add_to_study("noise-schedule", {"arm": "cosine", "replicate": number})
        with run.lock(), run.open_journal(resumed_from_step=0) as journal:
            for step in range(1, 21):
                journal.metrics(step, {"train/loss": step / 7, "perf/images_per_second": 100.0 + step})
            run.set_status(Status("done", step=20, num_steps=20, attempt=1))
        runs.append(run)
    start = time.perf_counter()
    paths = [str(run.path) for run in runs]
    done = subprocess.run([sys.executable, "-c", script, uri, *paths], capture_output=True, text=True)
    taken = time.perf_counter() - start
    assert (done.returncode, done.stderr) == (0, "")
    reports = [check(run, tracking_uri=uri) for run in runs]
    assert all(report.ok for report in reports)
    with capsys.disabled():
        rows = sum(report.num_rows_compared for report in reports)
        print(f"\n16 processes on one cold SQLite store: {taken:.1f} s, no error, {rows} of {16 * 40} rows there")
