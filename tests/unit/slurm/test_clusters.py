"""Jobs on other clusters: each question goes to the clusters that know the job."""

import json
import os

import pytest

from harness.launch import claims, manage, states
from harness.records.directory import RunDirectory
from harness.records.layout import SubmissionLayout
from harness.records.status import Status
from harness.slurm.commands import addressing, run_slurm

PROGRAM = """#!/bin/bash
echo "$(basename $0) $*" >>"$TOLD"
[ "$(basename $0)" = squeue ] || exit 0
case "$*" in
    *--clusters=far*) echo "CLUSTER: far"; echo "7_0|PENDING||Priority|N/A|7" ;;
    *) echo "9_0|RUNNING|n1|None|2026-01-01T00:00:00|9" ;;
esac
"""


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Programs that note what they are asked, and a queue of each of two clusters."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("squeue", "sacct", "scancel", "scontrol", "sbatch"):
        (folder / name).write_text(PROGRAM)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    return lambda: (tmp_path / "told").read_text().splitlines()


def submitted(runs, study_run, job_id, **profile):
    directory = RunDirectory(runs / study_run.run_key)
    directory.register(study_run)
    directory.set_status(Status("queued"))
    layout = SubmissionLayout(runs / ".jobs" / "tiny" / f"of-{job_id}")
    layout.claims_folder.mkdir(parents=True)
    layout.claim_path(directory.key).write_text(job_id)
    layout.submission_path.write_text(json.dumps({"cluster": "slurm", "runs": [directory.key], "profile": profile}))
    return directory


@pytest.mark.process
def test_a_run_is_looked_up_and_cancelled_on_the_clusters_that_it_was_submitted_to(tmp_path, tiny_study, told):
    runs = tmp_path / "runs"
    near, far = tiny_study("replicates: 2\n")
    directories = [submitted(runs, near, "9_0"), submitted(runs, far, "7_0", clusters="far,farther")]
    claims.read_submission.cache_clear()
    found = states.read_run_states([directory.path for directory in directories])
    assert [found[directory.key].status.state for directory in directories] == ["queued", "queued"]
    assert [found[directory.key].job.job_id for directory in directories] == ["9_0", "7_0"]
    manage.cancel(directories)
    assert "scancel --clusters=far,farther --quiet 7_0" in told() and "scancel --quiet 9_0" in told()
    assert not [line for line in told() if line.startswith("scancel") and "7_0" in line and "9_0" in line]


@pytest.mark.process
def test_only_programs_that_ask_take_clusters_and_scontrol_only_one(told):
    with addressing("a,b"):
        run_slurm("scontrol", "show", "config")
        run_slurm("sbatch", "job.sh")
        with addressing("a"):
            run_slurm("scontrol", "show", "config")
    run_slurm("sacct", "--jobs=7")
    assert told() == [
        "scontrol show config",
        "sbatch job.sh",
        "scontrol --clusters=a show config",
        "sacct --jobs=7",
    ]
