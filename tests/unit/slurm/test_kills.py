"""What slurmstepd writes into a job's log when it kills for memory, and what it writes otherwise."""

from __future__ import annotations

import pytest

from harness.slurm.kills import says_out_of_memory


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
    assert says_out_of_memory(f"submitit INFO\n{line}\n")


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
    assert not says_out_of_memory(line)
