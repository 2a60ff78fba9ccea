"""Only what nothing needs any more can go."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.records import disk
from harness.records.directory import RunDirectory
from harness.records.status import Status


@pytest.fixture
def done_run(tiny_run: Callable[..., Path]) -> RunDirectory:
    """Return a done run with checkpoints of steps 4, 8 and 12."""
    directory = RunDirectory(tiny_run())
    (directory.path / "checkpoints").mkdir()
    for step in (4, 8, 12):
        content = b"x" * 100 * step
        name = f"step-{step:08d}-{hashlib.sha256(content).hexdigest()}.pt"
        (directory.path / "checkpoints" / name).write_bytes(content)
    directory.set_status(Status("done", 12, 12, 1))
    return directory


def removable_steps(directory: RunDirectory) -> list[int]:
    return sorted(int(one.path.name[5:13]) for one in disk.removable(directory))


def leave_behind(path: Path, seconds: float) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"half")
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_of_a_done_run_all_checkpoints_but_the_last_can_go(done_run):
    assert removable_steps(done_run) == [4, 8]
    assert disk.remove(done_run) == 1200
    assert removable_steps(done_run) == []
    assert len(list((done_run.path / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("state", ["interrupted", "failed", "queued"])
def test_a_run_that_may_go_on_keeps_its_checkpoints(done_run, state):
    done_run.set_status(Status(state, 8, 12, 1))
    assert disk.removable(done_run) == []


def test_what_a_study_wants_kept_is_kept(done_run):
    facts = done_run.studies()["tiny"]
    done_run.add_to_study("tiny", facts | {"records": facts["records"] | {"keep_every": 8}})
    assert removable_steps(done_run) == [4]


def test_the_best_checkpoint_is_kept(done_run):
    text = '{"metric": "eval/nll_bpd of x", "scores": {"4": 1.0, "8": 0.5, "6": 0.1, "12": 0.7}}'
    (done_run.path / "checkpoints" / disk.SCORES).write_text(text)
    assert removable_steps(done_run) == [4]


def test_when_the_last_checkpoint_is_damaged_the_one_before_it_stays(done_run):
    [last] = (done_run.path / "checkpoints").glob("step-00000012-*")
    last.write_bytes(b"damaged")
    assert disk.removable(done_run) == []


def test_a_run_at_work_is_not_touched(done_run):
    with done_run.lock():
        assert disk.removable(done_run) == []


def test_what_a_killed_job_left_can_go_once_it_is_old(tiny_run):
    directory = RunDirectory(tiny_run())
    old = [
        leave_behind(directory.path / "checkpoints" / "step-00000004.tmp", 2 * disk.LEFTOVER_SECONDS),
        leave_behind(directory.path / ".status.json.12.34", 2 * disk.LEFTOVER_SECONDS),
        leave_behind(directory.path / "arrays" / ".eval.npz", 2 * disk.LEFTOVER_SECONDS),
    ]
    leave_behind(directory.path / ".spec.json.12.34", 0)
    assert sorted(one.path for one in disk.removable(directory)) == sorted(old)
    assert disk.remove(directory) == 12
    assert (directory.path / "spec.json").exists()


def test_usage_is_told_by_kind(done_run):
    leave_behind(done_run.path / "samples" / "a.png", 0)
    leave_behind(done_run.path / "journal-0001.jsonl", 0)
    used = disk.usage([done_run.path])
    assert (used["checkpoints"], used["samples"], used["journals"]) == (2400, 4, 4)
    assert used["other"] > 0
    assert disk.usage([]) == {}


# -- beside the runs


def write(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def age(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (time.time() - 2 * disk.LEFTOVER_SECONDS,) * 2)


@pytest.fixture
def beside(done_run) -> Path:
    """Give the done run's folder code that it used and code that it did not, and a submission that it was part of."""
    runs_folder = done_run.path.parent
    done_run.write_environment(1, {"code_snapshot": "aaaa"})
    done_run.write_environment(2, {"code_snapshot": "bbbb"})
    for name in ("aaaa", "bbbb", "cccc"):
        write(runs_folder / ".code" / name / "harness" / "a.py")
    for stamp in ("20260101-000000-1", "20260102-000000-1"):
        write(runs_folder / ".jobs" / "tiny" / stamp / "claims" / done_run.key, "17_0")
        write(runs_folder / ".jobs" / "tiny" / stamp / "17_0_log.out")
    age(runs_folder / ".code")
    age(runs_folder / ".jobs")
    return runs_folder


def folders(runs_folder: Path) -> list[str]:
    return sorted(one.path.name for one in disk.removable_folders(runs_folder))


def test_code_that_no_attempt_ran_on_and_jobs_of_done_runs_can_go(beside):
    assert folders(beside) == ["20260101-000000-1", "20260102-000000-1", "cccc"]
    assert sum(map(disk.remove_folder, disk.removable_folders(beside))) == 1 + 2 * (4 + 1)
    assert folders(beside) == []
    assert sorted(path.name for path in (beside / ".code").iterdir()) == ["aaaa", "bbbb"]


def test_what_a_killed_import_left_can_go(beside):
    write(beside / ".import-12" / "runs" / "x" / "spec.json")
    assert ".import-12" not in folders(beside)
    age(beside / ".import-12")
    assert ".import-12" in folders(beside)


def test_of_a_run_that_failed_the_last_log_stays(beside, done_run):
    done_run.set_status(Status("failed", 7, 12, 1))
    assert folders(beside) == ["20260101-000000-1", "cccc"]


def test_while_a_run_waits_neither_its_jobs_nor_code_go_since_it_has_not_said_which_it_needs(beside, done_run):
    done_run.set_status(Status("queued", 0, 12, 0))
    assert folders(beside) == []


def test_a_submission_and_a_copy_of_code_that_are_young_stay(beside):
    (beside / ".code" / "cccc").touch()
    for folder in (beside / ".jobs" / "tiny").iterdir():
        (folder / "17_0_log.out").touch()
    assert folders(beside) == []
