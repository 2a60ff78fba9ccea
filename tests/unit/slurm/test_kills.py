"""A killed task: what slurmstepd writes into the log, and what the shell lines of the batch script do."""

from __future__ import annotations

import os
import subprocess

import pytest

from harness.slurm.kills import REQUEUE_WHEN_KILLED, reports_out_of_memory

pytestmark = pytest.mark.process  # programs that stand in for SLURM's


@pytest.mark.parametrize(
    ("exit_code", "state", "outages", "requeued"),
    [
        (137, "RUNNING", 0, True),
        (137, "RUNNING", 3, True),
        (137, "COMPLETING", 0, False),
        (1, "RUNNING", 0, False),
        (0, "RUNNING", 0, False),
    ],
)
def test_a_job_is_requeued_when_its_task_was_killed_and_slurm_is_not_ending_it(
    fake_program, tmp_path, exit_code, state, outages, requeued
):
    calls = tmp_path / "calls"
    calls.touch()
    fake_program("sleep", f"echo >>{tmp_path}/pauses")
    outage = f"[ {outages} -gt 0 ] && [ $(cat {tmp_path}/pauses 2>/dev/null | wc -l) -lt {outages} ] && exit 1"
    fake_program("scontrol", f'{outage}; [ "$1" = show ] && echo JobState={state} || echo "$@" >>{calls}')
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


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.batch cgroup.",
        "slurmstepd: error: Exceeded job memory limit at some point.",
        "slurmstepd: error: Job 7 exceeded memory limit (4100 > 4096), being killed",
        "srun: error: n1: task 0: Out Of Memory\nslurmstepd: error: task_p_post_term: OUT_OF_MEMORY",
    ],
)
def test_a_kill_for_memory_is_recognised(line):
    assert reports_out_of_memory(f"submitit INFO\n{line}\n")


@pytest.mark.parametrize(
    "line",
    [
        "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***",
        "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***",
        "srun: error: n1: task 0: Killed",
        "",
    ],
)
def test_other_ends_are_none(line):
    assert not reports_out_of_memory(line)
