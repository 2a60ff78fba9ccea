"""Against the real MLflow: SQLite stores, and its real HTTP server on loopback."""

import http.server
import json
import math
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness.errors import TrackingError
from harness.records.directory import RunDirectory
from harness.records.lock import FolderLock
from harness.records.manifest import ask_for
from harness.records.status import Status
from harness.tracking.check import check
from harness.tracking.daemon import BackgroundSync, _SyncLoop, watch
from harness.tracking.store import initialise_store, store_uri
from harness.tracking.sync import is_synced, sync_run


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "runs" / "0123456789ab").create({"seed": 3, "optim": {"lr": 2e-4}}, schema_version=1)
    run.add_to_study("noise-schedule", {"arm": "cosine", "replicate": 1, "label": "cosine, s = 0.008"})
    return run


def client(uri):
    import mlflow

    return mlflow.MlflowClient(tracking_uri=uri)


def mlflow_run(uri, run, study="noise-schedule"):
    """Return the one MLflow run of a run in a study."""
    experiment = client(uri).get_experiment_by_name(study)
    (found,) = client(uri).search_runs([experiment.experiment_id], f"tags.run_key = '{run.key}'")
    return found


def stored_rows(uri, run, study="noise-schedule"):
    """Return all rows of a run in MLflow: (key, step, value, time)."""
    found = mlflow_run(uri, run, study)
    histories = [client(uri).get_metric_history(found.info.run_id, key) for key in found.data.metrics]
    return sorted((row.key, row.step, row.value, row.timestamp) for history in histories for row in history)


def journalled_rows(run):
    return sorted((row.key, row.x, row.value, row.time_ms) for row in run.rows())


def attempt(run, resumed_from_step, steps, checkpoints=(), state="done", value=lambda step: step / 7):
    with run.lock(), run.open_journal(resumed_from_step=resumed_from_step) as journal:
        for step in steps:
            journal.metrics(step, {"train/loss": value(step), "perf/images_per_second": 100.0 + step})
            if step in checkpoints:
                journal.event("checkpoint", step=step)
        run.set_status(Status(state, step=max(steps, default=0), num_steps=20, attempt=journal.attempt, loss=0.5))


class TestRows:
    def test_a_run_reaches_mlflow_row_for_row(self, run, store):
        attempt(run, 0, range(1, 21), checkpoints=[20])
        report = sync_run(run)
        assert report.studies["noise-schedule"].num_rows_sent == 40
        assert stored_rows(store, run) == journalled_rows(run)
        assert check(run).ok
        assert check(run).num_rows_compared == 40

    def test_only_rows_that_a_checkpoint_covers_leave(self, run, store):
        attempt(run, 0, range(1, 16), checkpoints=[5, 10], state="interrupted")
        assert sync_run(run).num_rows_waiting == 10
        assert {step for _, step, _, _ in stored_rows(store, run)} == set(range(1, 11))
        attempt(run, 10, range(11, 21), checkpoints=[20], value=lambda step: -step)
        report = sync_run(run)
        assert (report.num_rows_waiting, report.studies["noise-schedule"].num_rows_sent) == (0, 20)
        assert stored_rows(store, run) == journalled_rows(run)

    def test_a_repeat_sends_nothing(self, run, store):
        attempt(run, 0, range(1, 21), checkpoints=[20])
        sync_run(run)
        again = sync_run(run).studies["noise-schedule"]
        assert (again.num_rows_sent, again.num_artifacts_sent) == (0, 0)

    def test_rows_journalled_late_for_an_early_step_are_sent_too(self, run, store):
        attempt(run, 0, range(1, 21), checkpoints=[20])
        sync_run(run)
        with run.lock(), run.open_journal(resumed_from_step=20) as journal:  # another evaluation of the finished run
            journal.metrics(199, {"eval/L_t_bpd": 0.25}, train_step=10)
        assert sync_run(run).studies["noise-schedule"].num_rows_sent == 1
        assert check(run).ok

    def test_replaying_without_the_cursor_gives_the_same(self, run, store):
        attempt(run, 0, range(1, 13), checkpoints=[8], state="interrupted")
        sync_run(run)
        attempt(run, 8, range(9, 21), checkpoints=[20])
        sync_run(run)
        before, first = stored_rows(store, run), mlflow_run(store, run).info.run_id
        shutil.rmtree(run.path / "tracking")
        report = sync_run(run)
        assert report.studies["noise-schedule"].num_rows_sent == 40
        assert stored_rows(store, run) == before
        assert mlflow_run(store, run).info.run_id == first

    def test_a_pass_that_broke_off_between_batches_is_finished_by_the_next(self, run, store, monkeypatch):
        import mlflow

        monkeypatch.setattr("harness.tracking.sync.MAX_METRICS_PER_BATCH", 7)
        attempt(run, 0, range(1, 21), checkpoints=[20])
        log_batch, calls = mlflow.MlflowClient.log_batch, []

        def break_off(self, run_id, metrics=(), **others):
            calls.extend([1] if metrics else [])
            if len(calls) == 4:
                raise OSError("connection reset")
            return log_batch(self, run_id, metrics=metrics, **others)

        monkeypatch.setattr(mlflow.MlflowClient, "log_batch", break_off)
        with pytest.raises(TrackingError, match="connection reset"):
            sync_run(run)
        assert sync_run(run).studies["noise-schedule"].num_rows_sent < 40 - 2 * 7 + 2
        assert stored_rows(store, run) == journalled_rows(run)

    def test_rows_made_again_after_a_damaged_checkpoint_are_not_doubled(self, run, store):
        attempt(run, 0, range(1, 13), checkpoints=[6, 12], state="interrupted")
        sync_run(run)  # steps 7 to 12 are in MLflow; then the checkpoint of step 12 is found damaged
        attempt(run, 6, range(7, 21), checkpoints=[20])
        sync_run(run)
        results = [row for row in stored_rows(store, run) if row[0] == "train/loss"]
        assert [step for _, step, _, _ in results] == list(range(1, 21))
        assert check(run).ok

    def test_nan_and_infinities_are_kept_and_visible(self, run, store):
        values = {1: math.nan, 2: math.inf, 3: -math.inf, 4: 1.0}
        attempt(run, 0, range(1, 5), checkpoints=[4], value=values.get)
        sync_run(run)
        found = mlflow_run(store, run)
        history = client(store).get_metric_history(found.info.run_id, "train/loss")
        stored = {row.step: row.value for row in history}
        assert math.isnan(stored[1])
        assert (stored[2], stored[3]) == (sys.float_info.max, -sys.float_info.max)
        assert found.data.tags["infinite_values"] == (
            "train/loss at step 2: inf; train/loss at step 3: -inf (MLflow shows them as 1.8e308)"
        )
        assert check(run).ok


class TestWhatMLflowShows:
    @pytest.mark.parametrize(
        ("state", "shown"),
        [
            ("done", "FINISHED"),
            ("failed", "FAILED"),
            ("interrupted", "KILLED"),
            ("pruned", "KILLED"),
            ("queued", "SCHEDULED"),
        ],
    )
    def test_a_run_is_shown_as_what_it_is(self, run, store, state, shown):
        attempt(run, 0, [1], state=state)
        sync_run(run)
        found = mlflow_run(store, run)
        assert (found.info.status, found.data.tags["state"]) == (shown, state)

    def test_a_run_goes_from_running_over_killed_to_finished(self, run, store):
        shown = []
        with run.lock(), run.open_journal(resumed_from_step=0):
            run.set_status(Status("running", step=3, num_steps=10, loss=0.25, eta_seconds=12.0))
            sync_run(run)
            shown.append(mlflow_run(store, run))
        sync_run(run)
        shown.append(mlflow_run(store, run))
        attempt(run, 0, [1], state="running")
        attempt(run, 0, range(1, 11), checkpoints=[10])
        sync_run(run)
        shown.append(mlflow_run(store, run))
        assert [found.info.status for found in shown] == ["RUNNING", "KILLED", "FINISHED"]
        assert [found.data.tags["step"] for found in shown] == ["3", "3", "10"]
        assert [found.data.tags.get("eta_seconds") for found in shown] == ["12.0", None, None]
        assert "killed" in shown[1].data.tags["reason"]
        assert "reason" not in shown[2].data.tags
        assert len({found.info.run_id for found in shown}) == 1
        assert shown[2].info.end_time == run.events()[-1].time_ms

    def test_the_data_are_an_input_with_their_digest_and_account_and_are_sent_once(self, run, store):
        attempt(run, 0, [1])
        account = {"train": 3, "test": 1, "seen": 5, "num_ignored": 1, "ignored": {".txt": 1}, "folders": ["data/x"]}
        run.write_environment(1, {"data_digest": "d" * 64, "data_account": account})
        sync_run(run)
        shutil.rmtree(run.tracking_folder)  # with the cursor
        sync_run(run)
        [given] = mlflow_run(store, run).inputs.dataset_inputs
        assert (given.dataset.digest, [tag.value for tag in given.tags]) == ("d" * 36, ["training"])
        assert json.loads(given.dataset.profile) == account
        assert json.loads(given.dataset.source)["folders"] == ["data/x"]

    def test_params_tags_and_name_say_what_the_run_is(self, run, store):
        run.write_environment(1, {"code_version": "3f2a"})
        attempt(run, 0, [1])
        sync_run(run)
        found = mlflow_run(store, run)
        assert found.info.run_name == "cosine r1"
        assert found.data.params == {"seed": "3", "optim.lr": "0.0002"}
        tags = {name: found.data.tags[name] for name in ("run_key", "study", "arm", "replicate", "code_version")}
        assert tags == {
            "run_key": run.key,
            "study": "noise-schedule",
            "arm": "cosine",
            "replicate": "1",
            "code_version": "3f2a",
        }

    def test_a_collapse_is_a_tag(self, run, store):
        attempt(run, 0, [1])
        with run.lock(), run.open_journal(resumed_from_step=1) as journal:
            journal.event("collapse", step=1, sign="recall_zero")
        sync_run(run)
        assert mlflow_run(store, run).data.tags["collapse"] == "recall_zero"

    def test_a_run_in_two_studies_is_one_mlflow_run_in_each(self, run, store):
        attempt(run, 0, range(1, 5), checkpoints=[4])
        sync_run(run)
        run.add_to_study("objectives", {"arm": "hybrid", "replicate": 0})
        report = sync_run(run)
        assert {study: part.num_rows_sent for study, part in report.studies.items()} == {
            "noise-schedule": 0,
            "objectives": 8,
        }
        assert stored_rows(store, run) == stored_rows(store, run, "objectives")
        assert mlflow_run(store, run, "objectives").info.run_name == "hybrid r0"
        assert check(run).num_rows_compared == 16

    def test_artifacts_lie_beside_the_database_and_are_sent_when_they_change(self, run, store, tmp_path):
        (run.path / "arrays").mkdir()
        (run.path / "arrays" / "L_t.npz").write_bytes(b"first")
        attempt(run, 0, [1])
        assert sync_run(run).studies["noise-schedule"].num_artifacts_sent == 2
        (run.path / "arrays" / "L_t.npz").write_bytes(b"second")
        assert sync_run(run).studies["noise-schedule"].num_artifacts_sent == 1
        run_id = mlflow_run(store, run).info.run_id
        stored = tmp_path / "mlartifacts" / "noise-schedule" / run_id / "artifacts"
        assert (stored / "arrays" / "L_t.npz").read_bytes() == b"second"
        assert (stored / "spec.yaml").read_text() == (run.path / "spec.yaml").read_text()
        assert [item.path for item in client(store).list_artifacts(run_id)] == ["arrays", "spec.yaml"]

    def test_a_run_that_never_started_is_not_in_mlflow(self, run, store):
        run.set_status(Status("queued"))
        assert sync_run(run).studies == {}


class TestCheck:
    @pytest.fixture
    def synced(self, run, store, tmp_path):
        attempt(run, 0, range(1, 6), checkpoints=[5])
        sync_run(run)
        return run

    def test_a_missing_row_is_a_gap(self, synced, tmp_path):
        with sqlite3.connect(tmp_path / "mlflow.db") as database:
            database.execute("DELETE FROM metrics WHERE key = 'train/loss' AND step = 3")
        assert check(synced).gaps == [f"noise-schedule: train/loss at step 3: {3 / 7} is not in MLflow"]

    def test_a_row_that_is_there_twice_is_a_duplicate(self, synced, store):
        client(store).log_metric(mlflow_run(store, synced).info.run_id, "train/loss", 3 / 7, timestamp=1, step=3)
        assert check(synced).duplicates == [f"noise-schedule: train/loss at step 3: MLflow has {3 / 7} 2 times"]

    def test_another_value_at_a_step_is_a_conflict(self, synced, store):
        client(store).log_metric(mlflow_run(store, synced).info.run_id, "train/loss", 0.5, step=3)
        client(store).log_metric(mlflow_run(store, synced).info.run_id, "train/loss", 0.5, step=9)
        assert check(synced).conflicts == [
            "noise-schedule: train/loss at step 3: MLflow has 0.5, the journal another value",
            "noise-schedule: train/loss at step 9: MLflow has 0.5, the journal nothing",
        ]

    def test_a_retrained_step_with_another_value_is_a_conflict(self, run, store):
        attempt(run, 0, range(1, 13), checkpoints=[6, 12], state="interrupted")
        sync_run(run)
        attempt(run, 6, range(7, 13), checkpoints=[12], value=lambda step: -step)
        sync_run(run)
        assert len(check(run).conflicts) == 6

    def test_a_run_that_was_never_synced_is_all_gaps(self, run, store):
        attempt(run, 0, range(1, 6), checkpoints=[5])
        assert len(check(run).gaps) == 10


class TestStore:
    def test_the_default_is_a_database_in_the_working_folder(self, tmp_path, monkeypatch):
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.chdir(tmp_path)
        assert store_uri() == f"sqlite:///{tmp_path}/mlflow.db"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
        assert store_uri() == "http://127.0.0.1:5000"
        assert store_uri("sqlite:///other.db") == f"sqlite:///{tmp_path}/other.db"

    @pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "file:///tmp/mlruns"])
    def test_a_folder_is_refused_with_the_reason(self, uri):
        with pytest.raises(TrackingError, match=r"refuses its file store since 3\.13"):
            store_uri(uri)

    def test_a_file_that_is_not_an_mlflow_database_is_refused_and_left_alone(self, tmp_path):
        with sqlite3.connect(tmp_path / "mine.db") as database:
            database.execute("CREATE TABLE mine (x)")
        (tmp_path / "text.db").write_text("not a database at all")
        for name in ("mine.db", "text.db"):
            before = (tmp_path / name).read_bytes()
            with pytest.raises(TrackingError, match="is not an MLflow database"):
                initialise_store(f"sqlite:///{tmp_path / name}")
            assert (tmp_path / name).read_bytes() == before

    def test_a_run_deleted_in_mlflow_is_sent_again(self, run, store):
        attempt(run, 0, range(1, 5), checkpoints=[4])
        sync_run(run)
        client(store).delete_run(mlflow_run(store, run).info.run_id)
        assert sync_run(run).studies["noise-schedule"].num_rows_sent == 8
        assert check(run).ok

    def test_a_new_database_in_the_place_of_the_old_one_is_filled(self, run, store, tmp_path, fresh_database):
        attempt(run, 0, range(1, 5), checkpoints=[4])
        sync_run(run)
        (tmp_path / "elsewhere").mkdir()
        shutil.copy(fresh_database, tmp_path / "elsewhere" / "mlflow.db")
        other = f"sqlite:///{tmp_path / 'elsewhere' / 'mlflow.db'}"
        assert sync_run(run, tracking_uri=other).studies["noise-schedule"].num_rows_sent == 8
        assert check(run, tracking_uri=other).ok
        cursors = sorted((run.path / "tracking").glob("*.json"))
        cursors[0].write_text(cursors[1].read_text())  # as if the first store had been replaced by another
        cursors[1].write_text("torn {")
        for uri in (store, other):
            sync_run(run, tracking_uri=uri)
            assert check(run, tracking_uri=uri).ok

    def test_a_password_in_the_address_is_not_shown(self, run, monkeypatch, free_ports):
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        attempt(run, 0, [1])
        with pytest.raises(TrackingError) as caught:
            sync_run(run, tracking_uri=f"http://me:secret@127.0.0.1:{free_ports(1)}")
        assert "secret" not in str(caught.value)
        assert "http://***@127.0.0.1" in str(caught.value)

    @pytest.mark.slow
    def test_ten_thousand_rows_go_into_sqlite_in_one_sending(self, run, store):
        attempt(run, 0, [1], checkpoints=[1])
        sync_run(run)  # creates the experiment and the run
        with run.lock(), run.open_journal(resumed_from_step=1) as journal:
            for step in range(2000):
                journal.metrics(step, {f"train/m{index}": step * 0.1 for index in range(5)}, train_step=1)
        assert sync_run(run).studies["noise-schedule"].num_rows_sent == 10_000


def wait_until(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class TestBackground:
    @pytest.mark.slow
    def test_a_run_is_followed_while_it_trains_and_finished_at_its_end(self, run, store):
        with run.lock(), run.open_journal(resumed_from_step=0) as journal:
            run.set_status(Status("running", step=1, num_steps=20))
            background = BackgroundSync([run], run.path / "tracking", tracking_uri=store, every_seconds=0.5)
            journal.metrics(1, {"train/loss": 0.5})
            journal.event("checkpoint", step=1)
            wait_until(lambda: list((run.path / "tracking").glob("*.json")))
            journal.metrics(20, {"train/loss": 0.25})
            run.set_status(Status("done", step=20, num_steps=20))
        assert background.close()
        assert (run.path / "tracking" / "sync.log").read_text() == ""
        assert mlflow_run(store, run).info.status == "FINISHED"
        assert check(run).ok

    @pytest.mark.slow
    def test_a_sigkill_of_the_training_still_leaves_a_killed_run_in_mlflow(self, run, store):
        script = (
            "import sys, time; from pathlib import Path; from harness.records.directory import RunDirectory\n"
            "from harness.records.status import Status\n"
            "from harness.tracking.daemon import BackgroundSync\n"
            "run = RunDirectory(Path(sys.argv[1]))\n"
            "with run.lock(), run.open_journal(resumed_from_step=0) as journal:\n"
            "    run.set_status(Status('running', step=1, num_steps=20))\n"
            "    background = BackgroundSync([run], run.path / 'tracking', every_seconds=600)\n"
            "    journal.metrics(1, {'train/loss': 0.5}); journal.event('checkpoint', step=1)\n"
            "    print(background._process.pid, flush=True); time.sleep(600)\n"
        )
        training = subprocess.Popen([sys.executable, "-c", script, str(run.path)], stdout=subprocess.PIPE, text=True)
        syncer = int(training.stdout.readline())
        training.kill()
        training.wait()
        wait_until(lambda: not Path(f"/proc/{syncer}").exists())
        found = mlflow_run(store, run)
        assert (found.info.status, found.data.tags["state"]) == ("KILLED", "interrupted")
        assert check(run).ok

    @pytest.mark.slow
    def test_a_syncer_whose_server_hangs_is_killed_when_its_time_is_over(self, run):
        attempt(run, 0, range(1, 5), checkpoints=[4])
        with socket.socket() as hanging:
            hanging.bind(("127.0.0.1", 0))
            hanging.listen()
            background = BackgroundSync(
                [run], run.path / "tracking", tracking_uri=f"http://127.0.0.1:{hanging.getsockname()[1]}"
            )
            assert not background.close(wait_seconds=2)
            assert background._process.returncode == -signal.SIGKILL

    def test_a_server_that_answers_500_is_an_error_and_not_a_loss(self, run, store, monkeypatch):
        class Broken(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_error(500)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        attempt(run, 0, range(1, 5), checkpoints=[4])
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(TrackingError, match="500"):
                sync_run(run, tracking_uri=f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            server.server_close()
        sync_run(run)
        assert check(run).ok


class TestWatch:
    """`watch` itself, in this process; what it says is also where these tests step in."""

    def watched(self, run, act=lambda line: None, **options):
        """Watch until it ends by itself, calling `act` with each line that it says; return the lines."""
        lines = []

        def say(text):
            lines.extend(text.splitlines())
            act(text)

        watch(lambda: [run], say, every_seconds=0.01, **options)
        return lines

    def test_it_ends_when_all_is_carried_and_nothing_is_left_to_run(self, run, store):
        attempt(run, 0, range(1, 11), checkpoints=[10], state="queued")

        def act(text):
            if text == "1 queued":
                attempt(run, 10, range(11, 21), checkpoints=[20])

        assert self.watched(run, act) == ["20 rows uploaded", "1 queued", "20 rows uploaded", "1 done"]
        assert stored_rows(store, run) == journalled_rows(run)

    def test_an_outage_is_waited_out_with_pauses_that_grow(self, run, tmp_path, fresh_database):
        attempt(run, 0, range(1, 11), checkpoints=[10])
        database = tmp_path / "mlflow.db"
        database.write_text("no database")
        outages = []

        def act(text):
            if "trying again" in text:
                outages.append(text)
                if len(outages) == 4:
                    shutil.copy(fresh_database, database)

        lines = self.watched(run, act, tracking_uri=f"sqlite:///{database}")
        assert [line for line in lines if line not in outages] == [
            "1 done",
            "20 rows uploaded",
            "the store is reachable again",
        ]
        assert all("is not an MLflow database" in line for line in outages)
        assert stored_rows(f"sqlite:///{database}", run) == journalled_rows(run)

    def test_the_pause_between_tries_doubles_up_to_ten_minutes(self, run, tmp_path, monkeypatch):
        attempt(run, 0, [1], checkpoints=[1])
        (tmp_path / "mlflow.db").write_text("no database")
        pauses = []

        def sleep(seconds):
            pauses.append(seconds)
            if len(pauses) == 7:
                raise KeyboardInterrupt

        monkeypatch.setattr("harness.tracking.daemon.time.sleep", sleep)
        with pytest.raises(KeyboardInterrupt):
            watch(lambda: [run], lambda text: None, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", every_seconds=30)
        assert pauses == [30, 60, 120, 240, 480, 600, 600]

    def test_a_run_that_slurm_requeues_is_waited_for_and_one_that_was_cancelled_is_not(self, run, store):
        attempt(run, 0, range(1, 11), checkpoints=[10], state="interrupted")
        assert self.watched(run) == ["20 rows uploaded", "1 interrupted"]
        run.set_status(Status("interrupted", 10, 20, 1, cause="signal", stopped_by="SIGUSR2"))
        lines = self.watched(run, lambda _: attempt(run, 10, range(11, 21), checkpoints=[20]))
        assert lines[-1] == "1 done"

    @pytest.mark.slow
    def test_a_run_that_another_process_carries_is_left_to_it_and_looked_at_again(self, run, store):
        attempt(run, 0, range(1, 11), checkpoints=[10])
        lock = FolderLock(run.path / "tracking" / "lock", "the MLflow record")
        lock.acquire()
        lines = self.watched(run, lambda text: lock.release() if "is in use by process" in text else None)
        assert f"{run.key} is postponed to the next pass: the MLflow record of run {run.key} is in use" in lines[0]
        assert lines[1:] == ["1 done", "20 rows uploaded", "1 done"]

    @pytest.mark.slow
    def test_ctrl_c_ends_the_verb_in_good_order(self, run, store):
        attempt(run, 0, range(1, 11), checkpoints=[10])
        command = [sys.executable, "-u", "-m", "harness.cli", "sync", "--watch", "--runs", str(run.path.parent)]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # these tests may run in the background
        )
        said = [process.stdout.readline(), process.stdout.readline()]
        process.send_signal(signal.SIGINT)
        said.append(process.communicate(timeout=120)[0])
        assert [line[9:] for line in said[:2]] == ["20 rows uploaded\n", "1 done\n"]
        assert said[2] == "stopped; the next `harness sync` uploads what is left\n"
        assert process.returncode == 0
        assert check(run).ok


@pytest.mark.slow
def test_nothing_is_lost_when_the_server_is_killed_and_started_again(
    run, tmp_path, fresh_database, monkeypatch, start_server
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    shutil.copy(fresh_database, tmp_path / "server.db")
    server = start_server(tmp_path)
    (run.path / "samples").mkdir()
    (run.path / "samples" / "grid.png").write_bytes(b"png")
    with run.lock(), run.open_journal(resumed_from_step=0) as journal:
        background = BackgroundSync([run], run.path / "tracking", tracking_uri=server.uri, every_seconds=0.2)
        cursors = run.path / "tracking"
        for step in range(1, 2001):
            journal.metrics(step, {"train/loss": step / 7})
            if step % 100 == 0:
                journal.event("checkpoint", step=step)
                run.set_status(Status("running", step=step, num_steps=2000))
            if step == 800:
                wait_until(lambda: any("sent_step" in path.read_text() for path in cursors.glob("*.json")))
                server.kill()
            if step == 1400:
                server.start()
        run.set_status(Status("done", step=2000, num_steps=2000))
    background.close()
    assert "MLflow store http://127.0.0.1" in (run.path / "tracking" / "sync.log").read_text()  # it met the outage
    sync_run(run, tracking_uri=server.uri)
    assert stored_rows(server.uri, run) == journalled_rows(run)
    assert check(run, tracking_uri=server.uri).ok
    found = mlflow_run(server.uri, run)
    assert found.info.status == "FINISHED"
    assert {item.path for item in client(server.uri).list_artifacts(found.info.run_id)} == {"samples", "spec.yaml"}


def test_the_first_contact_with_mlflow_prints_nothing(first_contact):
    path, printed, errors = first_contact
    assert (printed, errors) == (f"sqlite:///{path}\n", "")
    assert path.exists()


class TestWhatIsAskedFor:
    """MLflow shows which runs a study still asks for, by the tag asked_for."""

    def tag(self, store, run, name="asked_for"):
        return mlflow_run(store, run).data.tags.get(name)

    def test_a_run_that_is_no_longer_asked_for_has_another_tag_after_the_next_sync(self, run, store):
        attempt(run, 0, range(1, 6), checkpoints=[5])
        runs, membership = run.path.parent, run.studies()["noise-schedule"] | {"evaluations": []}
        ask_for(runs, "noise-schedule", {run.key: membership})
        sync_run(run)
        assert self.tag(store, run) == "true"
        ask_for(runs, "noise-schedule", {})
        assert not is_synced(run, store)
        [difference] = check(run).lines()
        assert difference == "noise-schedule: the tag asked_for is true in MLflow, not false"
        sync_run(run)
        assert (self.tag(store, run), check(run).ok, is_synced(run, store)) == ("false", True, True)
        ask_for(runs, "noise-schedule", {run.key: membership | {"arm": "renamed"}})
        sync_run(run)
        assert (self.tag(store, run), self.tag(store, run, "arm")) == ("true", "renamed")
        assert mlflow_run(store, run).info.run_name == "renamed r1"

    def test_a_run_that_was_forgotten_is_not_asked_for_and_keeps_its_name(self, run, store):
        attempt(run, 0, range(1, 6), checkpoints=[5])
        sync_run(run)
        run.leave_study("noise-schedule")
        sync_run(run)
        assert (self.tag(store, run), self.tag(store, run, "arm")) == ("false", "cosine")
        assert mlflow_run(store, run).info.run_name == "cosine r1"
        assert check(run).ok

    def test_a_run_that_was_forgotten_and_deleted_in_mlflow_is_not_made_again(self, run, store):
        attempt(run, 0, range(1, 6), checkpoints=[5])
        sync_run(run)
        client(store).delete_run(mlflow_run(store, run).info.run_id)
        run.leave_study("noise-schedule")
        assert sync_run(run).studies == {}
        experiment = client(store).get_experiment_by_name("noise-schedule")
        assert client(store).search_runs([experiment.experiment_id], "tags.kind = 'run'") == []

    def test_a_watching_process_sees_that_a_run_is_no_longer_asked_for(self, run, store):
        attempt(run, 0, range(1, 6), checkpoints=[5])
        sync_loop = _SyncLoop(store)
        sync_loop.sync([run])
        ask_for(run.path.parent, "noise-schedule", {})
        sync_loop.sync([run])
        assert self.tag(store, run) == "false"

    def test_a_store_of_a_version_without_the_tag_has_no_difference(self, run, store):
        attempt(run, 0, range(1, 6), checkpoints=[5])
        sync_run(run)
        client(store).delete_tag(mlflow_run(store, run).info.run_id, "asked_for")
        assert check(run).ok


class TestOneLineARun:
    def test_a_run_that_is_not_in_mlflow_is_one_line(self, run, store):
        attempt(run, 0, range(1, 6), checkpoints=[5])
        report = check(run)
        assert len(report.lines()) == 10
        assert report.summary() == "not in MLflow: 10 rows of noise-schedule: harness sync"

    def test_several_differences_are_counted_by_their_kind_beside_the_first(self, run, store):
        attempt(run, 0, range(1, 6), checkpoints=[5])
        sync_run(run)
        client(store).log_metric(mlflow_run(store, run).info.run_id, "train/loss", 99.0, step=3)
        with run.lock(), run.open_journal(resumed_from_step=5) as journal:
            journal.metrics(6, {"train/loss": 1.0, "train/mse": 2.0})
            journal.event("checkpoint", step=6)
        assert check(run).summary() == (
            "2 missing in MLflow, 1 contradicted by the journal; the first: "
            "noise-schedule: train/loss at step 6: 1.0 is not in MLflow"
        )

    def test_nothing_to_say_is_no_line(self, run, store):
        attempt(run, 0, range(1, 6), checkpoints=[5])
        sync_run(run)
        assert check(run).summary() == ""
