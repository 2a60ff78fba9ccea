"""What SLURM says is taken as it is; where it says nothing, the error tells what is missing."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from harness.errors import LaunchError
from harness.slurm import commands, profile


def test_without_jobs_slurm_is_not_asked(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commands.read_queue([]) == {}


def test_a_machine_without_slurm_is_told_apart_from_an_empty_queue(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LaunchError, match="squeue is not on this machine"):
        commands.read_queue(["7_0"])


def test_the_profile_goes_before_what_slurm_says_of_arrays(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commands.max_array_size(profile.Profile(max_array_size=9)) == 9


def test_a_task_of_an_array_is_named_so_that_it_alone_is_meant(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    assert commands.this_job() is None
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert commands.this_job() == "12"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert commands.this_job() == "12_3"


def test_a_successor_inherits_nothing_of_its_job_but_where_slurm_is(monkeypatch):
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "1")
    monkeypatch.setenv("SBATCH_PARTITION", "high")
    monkeypatch.setenv("HARNESS_SNAPSHOT", "abc")
    kept = commands.outside_a_job()
    assert kept["SLURM_CONF"] == "/etc/slurm.conf"
    assert kept["HARNESS_SNAPSHOT"] == "abc"
    assert not {"SLURM_MEM_PER_CPU", "SBATCH_PARTITION"} & set(kept)


@pytest.mark.slurm
def test_a_job_is_followed_from_its_wait_to_its_end(slurm, tmp_path):
    command = ["sbatch", "--parsable", "--array=0-1", "--hold", "--output=/dev/null", "--wrap=exit 3"]
    number = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    names = [f"{number}_0", f"{number}_1"]
    waiting = commands.read_queue(names)
    assert {(job.state, job.reason, job.live) for job in waiting.values()} == {("PENDING", "JobHeldUser", True)}
    commands.cancel([names[1]])
    subprocess.run(["scontrol", "release", number], check=True)
    deadline = time.monotonic() + 60
    found = waiting
    while names[0] not in found or any(job.live for job in found.values()):  # sacct may lag behind squeue
        assert time.monotonic() < deadline
        time.sleep(0.2)
        found = commands.read_queue(names)
    assert (found[names[0]].state, found[names[0]].exit_code, found[names[0]].restarts) == ("FAILED", "3:0", 0)
    assert names[1] not in found  # accounting never hears of a task that is cancelled while its array waits
    commands.cancel(names)  # again, and nothing happens
