"""Detect out-of-memory kills in a job's log, and requeue a killed job from its batch script."""

from __future__ import annotations

import re

from harness.slurm.profile import REMOVE_SCRATCH, REMOVE_STAGE

_OUT_OF_MEMORY = re.compile(r"[Ee]xceeded (job|step) memory|[Ee]xceeded memory limit|oom[-_ ]kill|OUT_OF_MEMORY")


def reports_out_of_memory(job_log: str) -> bool:
    """Return whether slurmstepd reported an out-of-memory kill in a job's log.

    The patterns match slurmstepd 17 to 24: `slurmstepd: error: Detected 1 oom_kill event in StepId=7.0`,
    `Exceeded job memory limit`. The accounting does not help: for a batch job whose step was killed so, SLURM 22.05
    reports FAILED, and only later versions OUT_OF_MEMORY.
    """
    return _OUT_OF_MEMORY.search(job_log) is not None


# A task that was killed (usually out of memory) ends only its step: the batch script is still alive and can requeue the
# job. A job that SLURM is ending already is no longer RUNNING. The last task of an array has the id of the whole array,
# which must not be requeued for it. While SLURM does not answer, it is asked again.
REQUEUE_WHEN_KILLED = (
    "harness_at_the_end() {",
    "    local code=$? job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} state pause",
    "    job=${job:-$SLURM_JOB_ID}",
    '    if [ "$code" -gt 128 ]; then',
    "        for pause in 1 5 15 30 60 120; do",
    '            if state=$(scontrol show job "$job"); then',
    "                [[ $state == *JobState=RUNNING* ]] || break",
    '                echo "killed (exit code $code): requeued" && scontrol requeue "$job" && break',
    "            fi",
    '            sleep "$pause"',
    "        done",
    "    fi",
    *(f"    {line}" for line in REMOVE_STAGE),
    f"    {REMOVE_SCRATCH}",
    "}",
    "trap harness_at_the_end EXIT",
)
"""Shell lines of a batch script that requeue the job if its task was ended by a signal, and remove its scratch."""
