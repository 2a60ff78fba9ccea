"""One writer at a time, of processes that run beside each other and are killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from harness.errors import RecordError
from harness.records.directory import RunDirectory

SPEC = {"diffusion": {"num_timesteps": 200, "schedule": {"name": "cosine", "s": 0.008}}, "seed": 0}


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "runs" / "0123456789ab").create(SPEC, schema_version=1)


def start_writer(run, code="time.sleep(60)"):
    """Start a process that holds the run directory, and return it once it does."""
    script = (
        "import sys, time; from pathlib import Path; from harness.records.directory import RunDirectory\n"
        "from harness.records.status import Status\n"
        "run = RunDirectory(Path(sys.argv[1]))\n"
        "with run.lock() as lock:\n"
        "    run.set_status(Status('running', step=3))\n"
        "    print('locked', flush=True)\n"
        f"    {code}\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    return process


class TestWhereItStands:
    def test_a_killed_writer_leaves_an_interrupted_run_that_can_be_taken_over_at_once(self, run):
        process = start_writer(run)
        assert run.status().state == "running"
        process.kill()
        process.wait()
        assert run.status().state == "interrupted"
        with run.lock():
            pass


class TestOneWriter:
    def test_a_second_process_is_refused_and_the_owner_named(self, run):
        process = start_writer(run)
        try:
            message = f"run 0123456789ab is in use by process {process.pid} on "
            with pytest.raises(RecordError, match=message), run.lock():
                pass
        finally:
            process.kill()
            process.wait()

    @pytest.mark.slow
    def test_waiting_outlasts_a_writer_that_ends(self, run):
        process = start_writer(run, "time.sleep(0.5)")
        with run.lock(wait_seconds=20):
            assert run.writer()["pid"] == os.getpid()
        assert process.wait() == 0

    def test_a_copy_on_the_writers_own_machine_is_not_written_by_it(self, run, tmp_path):
        process = start_writer(run)
        try:
            shutil.copytree(run.path, tmp_path / run.key)
            copy = RunDirectory(tmp_path / run.key)
            assert copy.status().state == "running"  # as it was when it was made
            for directory in (run, copy):
                path = directory.lock_folder / "000001"
                facts = json.loads(path.read_text())
                path.write_text(json.dumps(facts | {"heartbeat": time.time() - 130}))
            assert (run.status().state, copy.status().state) == ("running", "interrupted")
        finally:
            process.kill()
            process.wait()

    @pytest.mark.slow
    def test_many_takers_of_live_and_stale_locks_never_hold_one_together(self, tmp_path):
        # Each process takes the lock again and again, and one time in eight dies in it; the others race for its lock.
        script = """
import os, random, sys, time
from pathlib import Path
from harness.records.lock import FolderLock
from harness.errors import RecordError
folder, number = Path(sys.argv[1]), int(sys.argv[2])
rng, taken = random.Random(number), 0
for round in range(40):
    lock = FolderLock(folder / "lock", "test")
    while True:
        try:
            lock.acquire()
            break
        except RecordError:
            time.sleep(rng.random() * 0.003)
    os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))   # raises when another is inside
    time.sleep(rng.random() * 0.002)
    os.unlink(folder / "inside")
    with open(folder / f"taken{number}", "a") as file:
        file.write("x")
    if rng.random() < 1 / 8:
        if os.fork() == 0:
            continue         # a child, which must not think that it holds the lock, goes on in its place
        os._exit(0)
    lock.release()
"""
        arguments = [sys.executable, "-c", script, str(tmp_path)]
        processes = [subprocess.Popen([*arguments, str(number)], stderr=subprocess.PIPE) for number in range(6)]
        errors = b"".join(process.communicate()[1] for process in processes)  # ends when the forked children end too
        assert errors == b""
        taken = [len((tmp_path / f"taken{number}").read_text()) for number in range(6)]
        print("taken", taken)
        assert taken == [40] * 6


class TestJournal:
    def test_a_row_in_a_killed_process_is_not_lost(self, run):
        append = "run.open_journal(resumed_from_step=0).metrics(1, {'train/loss': 0.5})"
        process = start_writer(run, f"{append}; print('appended', flush=True); time.sleep(60)")
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert run.history("train/loss") == ([1], [0.5])
