"""Views and watchers share SLURM's answers: each question is asked once in half a minute, and no answer is stretched.

Programs that count their calls stand in for SLURM's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import PACKAGE_ROOT
from harness.cli import status_view
from harness.launch import states
from harness.launch.claims import read_submission
from harness.records.directory import RunDirectory
from harness.records.layout import SubmissionLayout
from harness.records.status import Status, is_active
from harness.slurm import jobs, recent
from harness.slurm.commands import NoAnswer

pytestmark = pytest.mark.process

PENDING = "7_0|PENDING||Priority|N/A|17"
RUNNING = "8|RUNNING|n1|None|2026-01-01T00:00:00|8"


@pytest.fixture
def calls(tmp_path, fake_program, monkeypatch) -> list[str]:
    """Return a list of the calls of squeue and sacct so far, which stand in for those of a queue of two jobs."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    for name in ("SLURM_CONF", "SLURM_CLUSTERS"):
        monkeypatch.delenv(name, raising=False)

    class Calls(list):
        def __eq__(self, other: object) -> bool:
            path = tmp_path / "calls"
            return (path.read_text().split() if path.exists() else []) == other

        __hash__ = None

    answer(fake_program, tmp_path, f"echo '{PENDING}'; echo '{RUNNING}'")
    return Calls()


def answer(fake_program, tmp_path: Path, squeue: str) -> None:
    fake_program("squeue", f"echo squeue >>{tmp_path}/calls; {squeue}")
    fake_program("sacct", f"echo sacct >>{tmp_path}/calls")


def age(tmp_path: Path, seconds: float) -> None:
    """Let the answers in the cache be so old."""
    for path in (tmp_path / "cache" / "slurm").glob("queue-*.json"):
        content = json.loads(path.read_text())
        content["asked_seconds"] -= seconds
        path.write_text(json.dumps(content))


def test_forty_looks_of_two_processes_ask_squeue_and_sacct_once(calls, tmp_path):
    for _ in range(20):
        assert recent.read_recent_queue(["7_0"])["7_0"].reason == "Priority"
    program = "from harness.slurm.recent import read_recent_queue\nfor _ in range(20): read_recent_queue(['7_0'])"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE_ROOT)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert calls == ["sacct", "squeue"]
    age(tmp_path, recent.RECENT_SECONDS)
    assert recent.read_recent_queue(["7_0"])["7_0"] == jobs.JobInfo(
        "7_0", "PENDING", reason="Priority", live=True, number="17"
    )
    assert calls == ["sacct", "squeue"] * 2


def test_a_job_that_was_not_asked_for_is_asked_for_and_then_both_are_known(calls):
    recent.read_recent_queue(["7_0"])
    assert recent.read_recent_queue(["8"])["8"].state == "RUNNING"  # not absent, though an answer is there
    for _ in range(3):
        assert set(recent.read_recent_queue(["7_0", "8"])) == {"7_0", "8"}
    assert calls == ["sacct", "squeue"] * 2


def test_a_cancel_makes_the_answer_old(calls, fake_program, tmp_path):
    recent.read_recent_queue(["7_0"])
    recent.forget_recent_queue()
    answer(fake_program, tmp_path, "")
    assert recent.read_recent_queue(["7_0"]) == {}


def test_a_failure_is_an_answer_for_as_long_and_then_slurm_is_asked_again(calls, fake_program, tmp_path):
    answer(fake_program, tmp_path, "echo down >&2; exit 1")
    for _ in range(5):
        with pytest.raises(NoAnswer, match="squeue failed: down"):
            recent.read_recent_queue(["7_0"])
    assert calls == ["sacct", "squeue"]
    answer(fake_program, tmp_path, f"echo '{PENDING}'")
    age(tmp_path, recent.RECENT_SECONDS)
    assert set(recent.read_recent_queue(["7_0"])) == {"7_0"}


def test_another_cluster_is_asked_itself(calls, monkeypatch):
    recent.read_recent_queue(["7_0"])
    for name in ("SLURM_CONF", "SLURM_CLUSTERS"):
        monkeypatch.setenv(name, "elsewhere")
        recent.read_recent_queue(["7_0"])
    assert calls == ["sacct", "squeue"] * 3


@pytest.mark.parametrize("content", ["", "[1]", '{"asked_seconds": 1e12}', '{"jobs": {"7_0": {"x": 1}}}'])
def test_a_file_that_is_no_answer_is_none(calls, tmp_path, content):
    recent.read_recent_queue(["7_0"])
    [path] = (tmp_path / "cache" / "slurm").glob("queue-*.json")
    path.write_text(content)
    assert set(recent.read_recent_queue(["7_0"])) == {"7_0"}
    assert calls == ["sacct", "squeue"] * 2


def test_a_file_of_somebody_else_is_no_answer_and_ours_is_for_nobody_else_to_read(calls, tmp_path, monkeypatch):
    recent.read_recent_queue(["7_0"])
    [path] = (tmp_path / "cache" / "slurm").glob("queue-*.json")
    assert path.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    assert recent._read(path) == recent._Answer()


def test_while_another_process_asks_the_last_answer_will_do_unless_that_process_was_killed(calls, tmp_path):
    recent.read_recent_queue(["7_0"])
    age(tmp_path, recent.RECENT_SECONDS)
    mark = recent._answer_path().with_suffix(".asking")
    mark.touch()
    assert set(recent.read_recent_queue(["7_0"])) == {"7_0"}
    assert calls == ["sacct", "squeue"]
    assert "8" in recent.read_recent_queue(["8"])  # which that answer says nothing of
    age(tmp_path, recent.RECENT_SECONDS)
    os.utime(mark, (0, time.time() - 1000))
    recent.read_recent_queue(["7_0"])
    assert calls == ["sacct", "squeue"] * 3
    assert not mark.exists()


def test_where_no_cache_can_be_written_slurm_is_asked(calls, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    assert set(recent.read_recent_queue(["7_0"])) == set(recent.read_recent_queue(["7_0"])) == {"7_0"}
    assert calls == ["sacct", "squeue"] * 2


# --------------------------------------------------------------------------------------------------- who asks for them


@pytest.fixture
def killed(tmp_path, tiny_study) -> RunDirectory:
    """Return a run whose process was killed, of job 7_0."""
    [run] = tiny_study("")
    directory = RunDirectory(tmp_path / "runs" / run.run_key)
    directory.register(run)
    directory.set_status(Status("interrupted", cause="killed"))
    layout = SubmissionLayout(tmp_path / "runs" / ".jobs" / "tiny" / "20260101")
    layout.claims_folder.mkdir(parents=True)
    layout.claim_path(directory.key).write_text("7_0")
    layout.submission_path.write_text(json.dumps({"cluster": "slurm", "runs": [directory.key], "profile": {}}))
    read_submission.cache_clear()
    return directory


def test_a_watch_of_a_study_asks_once_and_a_submission_asks_itself(calls, killed):
    for _ in range(40):
        [row] = status_view.status_rows([killed])
    assert (row.state, row.is_active) == ("queued", True)
    assert calls == ["sacct", "squeue"]
    for _ in range(2):
        states.read_run_states([killed.path])
    assert calls == ["sacct", "squeue"] * 3


def test_a_crashed_run_is_over_when_slurm_has_no_job_of_it_and_not_while_it_is_requeued_or_slurm_is_silent(
    calls, killed, fake_program, tmp_path
):
    def shown() -> str:
        recent.forget_recent_queue()
        [state] = states.shown_states([killed]).values()
        return state

    assert shown() == "queued"  # SLURM has requeued it
    answer(fake_program, tmp_path, "exit 1")
    assert shown() == "unknown" and is_active("unknown")
    assert status_view.status_rows([killed])[0].is_active
    answer(fake_program, tmp_path, "")
    assert shown() == "interrupted" and not is_active("interrupted")
    killed.set_status(Status("queued"))
    assert shown() == "interrupted"  # its job was cancelled before it began
    assert not status_view.status_rows([killed])[0].is_active
