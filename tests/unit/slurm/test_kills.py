"""What the lines of shell in a batch script do when the job's task was killed."""

from __future__ import annotations

import os
import subprocess

import pytest

from harness.slurm.kills import REQUEUE_WHEN_KILLED


@pytest.mark.parametrize(
    ("exit_code", "state", "requeued"),
    [(137, "RUNNING", True), (137, "COMPLETING", False), (1, "RUNNING", False), (0, "RUNNING", False)],
)
def test_a_job_is_requeued_when_its_task_was_killed_and_slurm_is_not_ending_it(
    fake_program, tmp_path, exit_code, state, requeued
):
    calls = tmp_path / "calls"
    calls.touch()
    fake_program("scontrol", f'[ "$1" = show ] && echo JobState={state} || echo "$@" >>{calls}')
    script = "\n".join([*REQUEUE_WHEN_KILLED, f"exit {exit_code}"])
    environment = os.environ | {
        "PATH": f"{os.environ['PATH']}:{os.defpath}",
        "SLURM_JOB_ID": "12",
        "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "3",
    }
    result = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == exit_code
    assert calls.read_text() == ("requeue 12_3\n" if requeued else "")
