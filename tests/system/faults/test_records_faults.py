"""Torn journals, damaged checkpoints, full disks: each is detected and named, and what was good before stays good."""

import os
import re
import subprocess
import sys

import pytest
import torch

from harness.errors import CheckpointError, RecordError
from harness.records.directory import RunDirectory
from harness.training.checkpoints import Checkpoints, DamagedCheckpointWarning


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "run").create({"seed": 0}, schema_version=1)


def write_journal(run, steps):
    with run.lock(), run.open_journal(resumed_from_step=0) as journal:
        for step in steps:
            journal.metrics(step, {"train/loss": step / 3})
    return journal.path


def flip_bit(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


class TestJournal:
    def test_a_line_torn_at_any_byte_is_dropped_and_said(self, run):
        path = write_journal(run, [1, 2, 3])
        whole = path.read_bytes()
        start = whole.rindex(b"\n", 0, -1) + 1
        for end in range(start + 1, len(whole)):
            path.write_bytes(whole[:end])
            torn = RunDirectory(run.path)
            assert torn.history("train/loss")[0] == [1, 2]
            assert torn.problems() == [f"journal-0001.jsonl: torn last line dropped ({end - start} bytes)"]

    def test_a_flipped_bit_in_the_middle_is_reported_with_its_line(self, run):
        path = write_journal(run, range(1, 6))
        lines = path.read_bytes().split(b"\n")
        flip_bit(path, len(b"\n".join(lines[:3])) + 40)
        assert run.history("train/loss")[0] == [1, 2, 4, 5]
        assert run.problems() == ["journal-0001.jsonl: line 4 is damaged (its checksum does not fit)"]

    def test_a_missing_line_is_reported_by_its_sequence_number(self, run):
        path = write_journal(run, range(1, 6))
        lines = path.read_bytes().split(b"\n")
        path.write_bytes(b"\n".join(lines[:2] + lines[4:]))
        assert run.history("train/loss")[0] == [1, 4, 5]
        assert run.problems() == ["journal-0001.jsonl: entries 3 to 4 are missing"]

    def test_a_missing_attempt_is_reported(self, run):
        write_journal(run, [1])
        write_journal(run, [1]).with_name("journal-0001.jsonl").unlink()
        assert run.problems() == ["journal-0001.jsonl is missing"]

    def test_rows_under_a_damaged_header_are_not_guessed_at(self, run):
        flip_bit(write_journal(run, [1, 2]), 20)
        with pytest.raises(RecordError, match="header line is damaged"):
            run.rows()

    def test_an_attempt_that_died_before_its_header_changes_nothing(self, run):
        write_journal(run, [1, 2])
        (run.path / "journal-0002.jsonl").touch()
        assert run.history("train/loss")[0] == [1, 2]
        assert run.problems() == []


class TestCheckpoint:
    @pytest.fixture
    def checkpoints(self, tmp_path):
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        for step in (10, 20):
            checkpoints.save(step, {"weight": torch.full((1000,), float(step))})
        return checkpoints

    def damaged(self, checkpoints):
        (path,) = checkpoints.folder.glob("step-00000020-*.pt")
        return path

    @pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
    def test_a_flipped_bit_is_found_and_the_one_before_used(self, checkpoints, where):
        path = self.damaged(checkpoints)
        flip_bit(path, int(path.stat().st_size * where))
        with pytest.warns(DamagedCheckpointWarning, match=re.escape(path.name)):
            step, state = checkpoints.latest()
        assert step == 10
        assert state["weight"][0] == 10
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoints.load(20)

    @pytest.mark.parametrize("size", [0, 100])
    def test_a_truncated_one_is_found_and_the_one_before_used(self, checkpoints, size):
        os.truncate(self.damaged(checkpoints), size)
        with pytest.warns(DamagedCheckpointWarning):
            assert checkpoints.latest()[0] == 10

    def test_training_on_past_a_damaged_one_replaces_it(self, checkpoints):
        flip_bit(self.damaged(checkpoints), 300)
        checkpoints.save(20, {"weight": torch.ones(3)})
        assert checkpoints.steps() == [10, 20]
        assert checkpoints.latest()[0] == 20


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class TestFullDisk:
    def test_a_checkpoint_that_does_not_fit_leaves_the_earlier_one_intact(self, small_disk):
        checkpoints = Checkpoints(small_disk / "checkpoints")
        checkpoints.save(1, {"weight": torch.ones(20_000)})
        before = {path.name: path.read_bytes() for path in checkpoints.folder.iterdir()}
        with pytest.raises(CheckpointError, match="step 2 cannot be written: the disk or your quota is full"):
            checkpoints.save(2, {"weight": torch.ones(60_000)})
        assert {path.name: path.read_bytes() for path in checkpoints.folder.iterdir()} == before
        assert checkpoints.latest()[0] == 1

    def test_a_journal_that_does_not_fit_says_so_and_stays_whole(self, small_disk):
        run = RunDirectory(small_disk / "run").create({"seed": 0}, schema_version=1)
        (small_disk / "filler").write_bytes(b"x" * 200_000)
        with run.lock(), run.open_journal(resumed_from_step=0) as journal:
            written = 0
            with pytest.raises(RecordError, match="No space left"):
                while True:
                    journal.metrics(written + 1, {"train/loss": 0.5})
                    written += 1
            (small_disk / "filler").unlink()
            journal.metrics(written + 1, {"train/loss": 0.5})
        assert run.history("train/loss")[0] == list(range(1, written + 2))
        assert run.problems() == []

    def test_a_status_that_does_not_fit_leaves_the_old_one(self, small_disk):
        run = RunDirectory(small_disk / "run").create({"seed": 0}, schema_version=1)
        run.add_to_study("study", {"arm": "a"})
        with pytest.raises(RecordError, match="No space left"):
            run.add_to_study("study", {"arm": "b" * 300_000})
        assert run.studies() == {"study": {"arm": "a"}}


def test_a_process_killed_while_it_appends_tears_at_most_its_last_line(run):
    script = (
        "import sys; from pathlib import Path; from harness.records.directory import RunDirectory\n"
        "run = RunDirectory(Path(sys.argv[1]))\n"
        "with run.lock():\n"
        "    journal = run.open_journal(resumed_from_step=0)\n"
        "    print('go', flush=True)\n"
        "    for step in range(10**9): journal.metrics(step, {'train/loss': step, 'train/mse': step})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(run.path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.kill()
    process.wait()
    steps = run.history("train/loss")[0]
    assert steps == list(range(len(steps)))
    assert all("torn last line" in problem for problem in run.problems())
