import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import RecordError
from harness.records.directory import RunDirectory
from harness.records.files import safe_name
from harness.records.lock import FolderLock
from harness.records.status import Status
from harness.records.system_metrics import SystemMetrics

SPEC = {"diffusion": {"num_timesteps": 200, "schedule": {"name": "cosine", "s": 0.008}}, "seed": 0}


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "runs" / "0123456789ab").create(SPEC, schema_version=1)


def attempt(run, resumed_from_step, steps, checkpoints=(), value=lambda step: step / 7):
    """Journal one attempt: a loss at every step, a checkpoint event at some."""
    with run.lock(), run.open_journal(resumed_from_step=resumed_from_step) as journal:
        for step in steps:
            journal.metrics(step, {"train/loss": value(step)})
            if step in checkpoints:
                journal.event("checkpoint", step=step)


class TestWhatARunIs:
    def test_creating_a_run_twice_with_one_spec_changes_nothing(self, run):
        before = (run.path / "spec.json").stat().st_mtime_ns
        run.create(SPEC, schema_version=1)
        assert (run.path / "spec.json").stat().st_mtime_ns == before
        assert run.spec() == SPEC
        assert run.schema_version() == 1

    def test_another_spec_is_refused_with_the_difference_path_by_path(self, run):
        other = {"diffusion": {"num_timesteps": 200.0, "schedule": {"name": "linear"}}, "seed": 0, "ema": 0.99}
        with pytest.raises(RecordError) as caught:
            run.create(other, schema_version=1)
        assert str(caught.value).splitlines()[1:] == [
            "  spec.diffusion.num_timesteps: stored 200, now 200.0",
            "  spec.diffusion.schedule.name: stored 'cosine', now 'linear'",
            "  spec.diffusion.schedule.s: stored 0.008, now absent",
            "  spec.ema: not stored, now 0.99",
        ]

    def test_spec_yaml_reads_back_as_the_spec(self, run):
        import yaml

        assert yaml.safe_load((run.path / "spec.yaml").read_text()) == SPEC

    def test_a_run_may_belong_to_several_studies(self, run):
        run.add_to_study("noise-schedule", {"arm": "cosine", "replicate": 0, "evaluations": [{"sampler": "ddim"}]})
        run.add_to_study("objectives", {"arm": "base", "replicate": 0})
        run.add_to_study("objectives", {"arm": "simple", "replicate": 0})
        assert {study: facts["arm"] for study, facts in run.studies().items()} == {
            "noise-schedule": "cosine",
            "objectives": "simple",
        }

    def test_the_study_that_said_something_last_is_the_last_whatever_the_clock_says(self, run, monkeypatch):
        for clock, study in ((3000.0, "first"), (2000.0, "second"), (1000.0, "third"), (500.0, "first")):
            monkeypatch.setattr(time, "time", lambda clock=clock: clock)
            run.add_to_study(study, {"arm": study})
        assert list(run.studies_by_joining()) == ["second", "third", "first"]
        assert run.studies()["first"] == {"arm": "first"}

    def test_studies_from_before_the_joining_time_was_written_come_first_in_the_order_of_their_files(self, run):
        run.add_to_study("new", {})
        for study, seconds in (("b", 5), ("a", 5), ("c", 1)):
            run.study_path(study).write_text("{}")
            os.utime(run.study_path(study), (seconds, seconds))
        assert list(run.studies_by_joining()) == ["c", "a", "b", "new"]

    def test_registering_a_run_writes_its_spec_and_study_once(self, tmp_path, tiny_study):
        [planned] = tiny_study()
        directory = RunDirectory(tmp_path / planned.run_key)
        assert directory.register(planned)
        assert directory.spec() == planned.spec.model_dump(mode="json")
        assert directory.studies() == {"tiny": json.loads(json.dumps(planned.membership()))}
        before = directory.study_path("tiny").read_bytes()
        assert not directory.register(planned)
        assert directory.study_path("tiny").read_bytes() == before
        assert directory.register(dataclasses.replace(planned, arm="renamed"))
        assert directory.studies()["tiny"]["arm"] == "renamed"

    @pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "a\n", ".hidden", "a..b", "/tmp/x", "x" * 101, "a\0b"])
    def test_a_name_that_could_leave_the_folder_is_refused(self, run, name):
        with pytest.raises(RecordError, match="cannot be a file name"):
            run.add_to_study(name, {})

    @given(st.text(max_size=120))
    def test_a_name_that_is_accepted_is_one_plain_path_component(self, name):
        try:
            safe_name(name)
        except RecordError:
            return
        assert Path("a", name).parts == ("a", name)
        assert name.isprintable() and ".." not in name and not name.startswith(".")

    def test_environments_are_kept_by_attempt(self, run):
        run.write_environment(1, {"host": "a", "num_threads": 1})
        run.write_environment(2, {"host": "b", "num_threads": 2})
        run.write_environment(2, {"host": "c", "num_threads": 2})
        assert [(entry["attempt"], entry["host"]) for entry in run.environments()] == [(1, "a"), (2, "c")]

    def test_a_folder_without_a_spec_is_called_no_run_directory(self, tmp_path):
        with pytest.raises(RecordError, match=r"spec\.json is missing"):
            RunDirectory(tmp_path / "empty").spec()


class TestWhereItStands:
    def test_a_run_without_status_is_new(self, run):
        assert run.status().state == "new"

    def test_a_status_reads_back_with_the_time_of_its_writing(self, run):
        status = Status("failed", step=7, num_steps=10, attempt=2, reason="loss is nan at step 7", loss=math.inf)
        before = time.time()
        run.set_status(status)
        stored = run.status()
        assert (stored.state, stored.step, stored.reason, stored.loss) == ("failed", 7, status.reason, math.inf)
        assert before <= stored.updated_seconds <= time.time()

    def test_the_fields_of_a_status_read_back(self, run):
        run.set_status(Status("interrupted", step=7, cause="signal", stopped_by="SIGUSR2", reason="whatever it says"))
        status = run.status()
        assert (status.cause, status.stopped_by) == ("signal", "SIGUSR2")

    @pytest.mark.parametrize(
        ("state", "reason", "cause", "stopped_by"),
        [
            ("interrupted", "stopped by SIGUSR2; submit again and it goes on", "signal", "SIGUSR2"),
            ("interrupted", "stopped by SIGTERM; submit again and it goes on", "signal", "SIGTERM"),
            ("interrupted", "stopped by request after 50 steps; submit again and it goes on", "step_limit", ""),
            ("interrupted", "killed by SIGKILL", "killed", ""),
            ("interrupted", "", "", ""),
            ("failed", "killed 3 times at step 4 without progress: on n1, then `harness retry`", "no_progress", ""),
            (
                "failed",
                "killed 3 times before it began: OUT_OF_MEMORY on n1; ask for more memory_gib, then `harness retry`",
                "out_of_memory",
                "",
            ),
            ("failed", "train/loss is not a number at step 7", "error", ""),
            ("pruned", "eval/nll_bpd 9 at step 10 (median)", "pruned", ""),
            ("done", "", "", ""),
        ],
    )
    def test_a_status_from_before_there_were_fields_is_classed_by_its_sentence(
        self, run, state, reason, cause, stopped_by
    ):
        run.status_path.write_text(json.dumps({"state": state, "step": 4, "reason": reason, "updated_seconds": 1.0}))
        status = run.status()
        assert (status.state, status.reason) == (state, reason)
        assert (status.cause, status.stopped_by) == (cause, stopped_by)

    def test_the_sentence_of_a_status_that_has_fields_means_nothing(self, run):
        run.set_status(Status("interrupted", reason="stopped by SIGUSR2", cause="killed"))
        assert (run.status().cause, run.status().stopped_by) == ("killed", "")

    def test_running_without_a_living_writer_is_interrupted(self, run):
        run.set_status(Status("running", step=5))
        assert (run.status().state, run.status().cause, run.status().step) == ("interrupted", "killed", 5)
        with run.lock():
            assert run.status().state == "running"

    def test_a_status_of_a_dead_writer_costs_two_files_and_a_listing(self, run, file_accesses):
        run.set_status(Status("running", step=3, num_steps=9))
        with run.lock():
            pass
        with file_accesses() as accesses:
            assert run.status().state == "interrupted"
        assert sorted(event for event, *_ in accesses) == ["open", "open", "os.listdir"], accesses


class TestOneWriter:
    @staticmethod
    def leave_lock(run, age_seconds, **more):
        """Leave the lock of SLURM job 42's first start on another machine, its file of some age, as version 0.1 did."""
        facts = {"host": "node17", "machine": "node17 boot pid", "pid": 1, "started": "0"}
        path = run.path / "lock" / "000001"
        path.parent.mkdir()
        path.write_text(json.dumps({**facts, "slurm_job_id": "42", "slurm_restart_count": "0", **more}))
        heartbeat = time.time() - age_seconds
        os.utime(path, (heartbeat, heartbeat))

    def test_a_writer_in_the_same_process_is_refused_too(self, run):
        with run.lock(), pytest.raises(RecordError, match=f"process {os.getpid()}"), run.lock():
            pass

    @pytest.mark.parametrize(("age_seconds", "taken"), [(60, False), (130, True)])
    def test_on_another_machine_the_heartbeat_decides(self, run, age_seconds, taken):
        self.leave_lock(run, age_seconds=age_seconds)
        if taken:
            with run.lock():
                pass
        else:
            with pytest.raises(RecordError, match=r"node17, SLURM job 42, last heartbeat 6\d s ago"), run.lock():
                pass

    @pytest.mark.parametrize(("job", "restart", "taken"), [("42", "1", True), ("42", "0", False), ("43", "1", False)])
    def test_a_requeued_job_takes_over_from_its_earlier_start_at_once(self, run, monkeypatch, job, restart, taken):
        self.leave_lock(run, age_seconds=0)
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
        assert (run.writer() is None) == taken

    def test_an_empty_lock_file_is_a_process_that_is_just_starting(self, run):
        (run.path / "lock").mkdir()
        (run.path / "lock" / "000001").touch()
        with pytest.raises(RecordError, match="just starting"), run.lock():
            pass

    def test_a_writer_that_was_taken_over_learns_it_at_its_next_sync(self, run):
        with run.lock() as lock, run.open_journal(resumed_from_step=0) as journal:
            journal.sync()
            (run.path / "lock" / "000002").write_text((run.path / "lock" / "000001").read_text())
            (run.path / "lock" / "000001").unlink()
            with pytest.raises(RecordError, match="taken over"):
                journal.sync()
            lock.folder.joinpath("000002").unlink()

    def test_a_slow_taker_that_looked_before_others_came_and_went_steps_back(self, tmp_path, monkeypatch):
        slow, second, third = (FolderLock(tmp_path, "test") for _ in range(3))
        now, before = slow._newest, slow._newest()
        second.acquire()
        second.release()
        third.acquire()  # removes the file of number 1, so that the slow one can create it
        views = iter([before])
        monkeypatch.setattr(slow, "_newest", lambda: next(views, now()))
        assert not slow._try_acquire()
        assert [path.name for path in tmp_path.iterdir()] == ["000002"]
        third.verify()
        third.release()

    def test_the_heartbeat_moves_in_the_content_of_the_lock(self, run, monkeypatch):
        monkeypatch.setattr("harness.records.lock.HEARTBEAT_SECONDS", 0.02)
        path = run.lock_folder / "000001"
        with run.lock():
            first = json.loads(path.read_text())["heartbeat"]
            deadline = time.monotonic() + 60
            while json.loads(path.read_text())["heartbeat"] == first and time.monotonic() < deadline:
                os.utime(path, (0, 0))
                time.sleep(0.01)
            assert first < json.loads(path.read_text())["heartbeat"] <= time.time()
        assert json.loads(path.read_text()) == {"released": True}

    def test_a_copy_of_a_run_that_another_machine_writes_is_free_when_its_heartbeat_is_old(self, run, tmp_path):
        self.leave_lock(run, 0, heartbeat=time.time() - 130)
        shutil.copytree(run.path, tmp_path / run.key, copy_function=shutil.copy)  # with the time of the copy
        copy = RunDirectory(tmp_path / run.key)
        assert copy.writer() is None
        with copy.lock():
            assert copy.writer()["pid"] == os.getpid()

    def test_old_file_times_make_no_lock_stale(self, run):
        self.leave_lock(run, 10_000, heartbeat=time.time() - 20)
        with pytest.raises(RecordError, match=r"node17, SLURM job 42, last heartbeat 2\d s ago"), run.lock():
            pass

    def test_a_lock_is_written_in_place_so_that_a_full_disk_can_give_it_back(self, run):
        with run.lock():
            path = run.lock_folder / "000001"
            before = path.stat()
        after = path.stat()
        assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
        assert run.writer() is None


class TestJournal:
    def test_values_read_back_bit_for_bit(self, run):
        values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.1 + 0.2, "e": 5e-324, "f": -0.0}
        with run.lock(), run.open_journal(resumed_from_step=0) as journal:
            journal.metrics(3, values, train_step=40)
        rows = run.rows()
        assert {row.key: repr(row.value) for row in rows} == {key: repr(value) for key, value in values.items()}
        assert {(row.x, row.train_step, row.attempt) for row in rows} == {(3, 40, 1)}

    def test_several_threads_lose_nothing(self, run):
        with run.lock(), run.open_journal(resumed_from_step=0) as journal:

            def work(name):
                for step in range(500):
                    journal.metrics(step, {name: step})

            threads = [threading.Thread(target=work, args=(f"m{number}",)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert run.problems() == []
        assert all(run.history(f"m{number}")[0] == list(range(500)) for number in range(4))

    def test_a_line_is_one_write_and_waits_for_no_disk(self, run, monkeypatch, file_accesses):
        calls = Counter()

        def counted(name):
            function = getattr(os, name)
            return lambda *arguments: (calls.update([name]), function(*arguments))[1]

        with run.lock(), run.open_journal(resumed_from_step=0) as journal:
            for name in ("write", "fsync", "fdatasync"):
                monkeypatch.setattr(os, name, counted(name))
            with file_accesses() as accesses:
                for step in range(50):
                    journal.metrics(step, {"train/loss": step * 0.1, "train/mse": 1.0})
            assert (calls, accesses) == ({"write": 50}, [])

    @pytest.mark.parametrize("key", ["fid%", "a(b)", "", "a//b", "../a", "a/", "x" * 251])
    def test_a_key_that_mlflow_would_refuse_is_refused_at_once(self, run, key):
        with run.lock(), run.open_journal(resumed_from_step=0) as journal, pytest.raises(RecordError, match="metric"):
            journal.metrics(0, {key: 1.0})

    def test_a_reader_that_goes_on_reading_sees_each_row_once(self, run):
        reader = RunDirectory(run.path)
        with run.lock(), run.open_journal(resumed_from_step=0) as journal:
            for step in range(1, 4):
                journal.metrics(step, {"train/loss": step})
                assert reader.history("train/loss")[0] == list(range(1, step + 1))

    def test_the_tail_tells_the_latest_values(self, run):
        attempt(run, 0, range(1, 2001))
        latest = run.latest()
        assert (latest["train/loss"].x, latest["train/loss"].value) == (2000, 2000 / 7)

    def test_the_header_says_who_made_the_attempt(self, run):
        attempt(run, 0, [1], [1])
        attempt(run, 1, [2])
        started = run.events("started")
        assert [event.fields["resumed_from_step"] for event in started] == [0, 1]
        assert [event.fields["pid"] for event in started] == [os.getpid()] * 2
        assert run.attempts() == [1, 2]

    def test_system_metrics_are_sampled_at_the_current_step(self, run):
        with (
            run.lock(),
            run.open_journal(resumed_from_step=0) as journal,
            SystemMetrics(journal, lambda: 17, every_seconds=0.01, extra=lambda: {"gpu_memory_gib": 1.5}),
        ):
            deadline = time.monotonic() + 60
            while not run.rows() and time.monotonic() < deadline:
                time.sleep(0.01)
        row = {row.key: row for row in run.rows()}
        assert row["system/process_memory_gib"].value > 0
        assert row["system/gpu_memory_gib"].value == 1.5
        assert row["system/host_memory_percent"].x == 17


class TestFences:
    def test_rows_past_the_restored_checkpoint_are_made_again_and_kept_once(self, run):
        attempt(run, 0, range(1, 9), checkpoints=[5])
        attempt(run, 5, range(6, 11), checkpoints=[10], value=lambda step: -step)
        assert run.history("train/loss") == (
            list(range(1, 11)),
            [step / 7 for step in range(1, 6)] + [-step for step in range(6, 11)],
        )
        assert run.problems() == []

    def test_a_fence_holds_for_all_earlier_attempts(self, run):
        attempt(run, 0, range(1, 9), checkpoints=[4, 8])
        attempt(run, 8, range(9, 12))
        attempt(run, 4, range(5, 7))  # the checkpoint of step 8 turned out to be damaged
        assert [(row.x, row.attempt) for row in run.rows()] == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 3), (6, 3)]
        assert run.durable_step() == 4
        assert [(event.fields["step"], event.superseded) for event in run.events("checkpoint")] == [
            (4, False),
            (8, True),
        ]

    def test_fencing_goes_by_the_training_step_and_not_by_the_step_it_is_drawn_at(self, run):
        with run.lock(), run.open_journal(resumed_from_step=0) as journal:
            journal.metrics(199, {"eval/L_t_bpd": 0.01}, train_step=10)
            journal.metrics(2, {"eval/other": 0.02}, train_step=20)
        attempt(run, 10, [])
        assert [(row.key, row.x) for row in run.rows()] == [("eval/L_t_bpd", 199)]

    def test_an_evaluation_that_is_done_again_counts_once(self, run):
        for _ in range(2):
            with run.lock(), run.open_journal(resumed_from_step=10) as journal:
                journal.metrics(10, {"eval/nll_bpd": 3.2, "perf/evaluation_seconds": time.perf_counter()})
        assert run.history("eval/nll_bpd") == ([10], [3.2])
        assert run.problems() == []
        assert len(run.history("perf/evaluation_seconds")[0]) == 2

    def test_an_evaluation_that_contradicts_itself_is_reported_and_the_first_stands(self, run):
        for value in (3.2, 3.3):
            with run.lock(), run.open_journal(resumed_from_step=10) as journal:
                journal.metrics(10, {"eval/nll_bpd": value})
        assert run.history("eval/nll_bpd") == ([10], [3.2])
        assert run.problems() == ["eval/nll_bpd at step 10: 3.2 (attempt 1), then 3.3 (attempt 2); the first is kept"]

    def test_a_row_that_is_made_again_bears_its_first_time(self, run):
        attempt(run, 0, range(1, 9), checkpoints=[4, 8])
        first = {row.x: row.time_ms for row in run.rows()}
        time.sleep(0.01)
        attempt(run, 4, range(5, 12))
        again = {row.x: row.time_ms for row in run.rows()}
        assert {step: again[step] for step in first} == first
        assert again[9] > first[8]

    def test_the_durable_step_is_that_of_the_newest_checkpoint(self, run):
        assert run.durable_step() == 0
        attempt(run, 0, range(1, 9), checkpoints=[3, 6])
        assert run.durable_step() == 6

    def test_a_checkpoint_that_was_resumed_from_is_durable_though_its_event_was_lost(self, run):
        attempt(run, 0, range(1, 9))
        attempt(run, 8, [9])
        assert run.durable_step() == 8


@pytest.mark.process
def test_records_import_neither_torch_nor_mlflow():
    code = "import sys, harness.records, harness.tracking; print({'torch', 'mlflow', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_status_file_is_plain_json(run):
    run.set_status(Status("queued"))
    assert json.loads((run.path / "status.json").read_text())["state"] == "queued"


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"slurm_job_id": 7}', '{"slurm_job_id": "--me"}', '{"slurm_job_id": null}', "[" * 100_000, "\udcff"],
)
def test_a_damaged_lock_names_no_job_and_is_stale_by_its_age(tmp_path, content):
    lock = FolderLock(tmp_path, "run")
    path = tmp_path / "000001"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert lock.slurm_job_id() == ""
    assert lock.owner() is not None  # it may be of a process that is just starting
    os.utime(path, (0, 0))
    assert lock.owner() is None


def test_a_lock_names_the_job_that_took_it_last(tmp_path):
    (tmp_path / "000001").write_text('{"slurm_job_id": "42_7", "host": "n1"}')
    assert FolderLock(tmp_path, "run").slurm_job_id() == "42_7"
