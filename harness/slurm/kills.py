"""What SLURM writes and does when it kills a job's process, which its programs do not say afterwards."""

from __future__ import annotations

import re

_OUT_OF_MEMORY = re.compile(r"[Ee]xceeded (job|step) memory|[Ee]xceeded memory limit|oom[-_ ]kill|OUT_OF_MEMORY")


def says_out_of_memory(job_log: str) -> bool:
    """Tell whether slurmstepd noted in a job's log that it killed for memory.

    The words are slurmstepd's own, of versions 17 to 24: `slurmstepd: error: Detected 1 oom_kill event in StepId=7.0`,
    `Exceeded job memory limit`. The accounting does not help: of a batch job whose step was killed so, SLURM 22.05 says
    FAILED, and only later versions OUT_OF_MEMORY.
    """
    return _OUT_OF_MEMORY.search(job_log) is not None


# A task that was killed (out of memory, as a rule) ends its step alone: the batch script lives, and can have the job
# begin again. One that SLURM is ending already, for whatever reason, is no longer RUNNING. An array's last task bears
# the number of the whole array, which must not be requeued for it.
REQUEUE_WHEN_KILLED = (
    "harness_requeue_the_killed() {",
    "    local code=$? job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
    "    job=${job:-$SLURM_JOB_ID}",
    '    if [ "$code" -gt 128 ] && scontrol show job "$job" | grep -q "JobState=RUNNING"; then',
    '        echo "killed (exit code $code): requeued" && scontrol requeue "$job"',
    "    fi",
    "}",
    "trap harness_requeue_the_killed EXIT",
)
"""Shell lines of a batch script: have the job begin again when its task was ended by a signal."""
