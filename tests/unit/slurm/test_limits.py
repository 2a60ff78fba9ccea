"""The limits on a user's jobs are read from sacctmgr; what it says was recorded on the one-machine cluster (22.05)."""

from __future__ import annotations

import pytest

from harness.slurm import limits
from harness.slurm.limits import SubmitLimit
from harness.slurm.profile import Profile

pytestmark = pytest.mark.process  # programs that stand in for SLURM's

ASSOCIATIONS = "lab||normal|50\nlab|debug|normal|5\nroot||normal|\n"
QOS = "normal|\nhigh|20\nshort|3\n"


@pytest.fixture
def sacctmgr(fake_program):
    table = f"case $4 in assoc) printf '{ASSOCIATIONS}';; qos) printf '{QOS}';; user) echo lab;; esac"
    fake_program("sacctmgr", table)
    fake_program("scontrol", "echo PartitionName=main QoS=N/A; echo PartitionName=few QoS=short")
    fake_program("squeue", 'for task in 1 2 3 4; do echo "7_$task|PENDING||Priority|N/A|1$task"; done')


@pytest.mark.parametrize(
    ("profile", "limit"),
    [
        (Profile(), SubmitLimit(50, "MaxSubmitJobs of account lab")),
        (Profile(account="root"), None),
        (Profile(partition="debug"), SubmitLimit(5, "MaxSubmitJobs of account lab")),
        (Profile(qos="high"), SubmitLimit(20, "MaxSubmitJobsPerUser of qos high")),
        (Profile(partition="main,few"), SubmitLimit(3, "MaxSubmitJobsPerUser of qos short")),
    ],
)
def test_the_smallest_limit_that_holds_for_a_profiles_jobs_counts(sacctmgr, profile, limit):
    assert limits.read_submit_limit(profile) == limit


def test_the_room_is_what_the_queue_leaves_of_the_limit_and_unknown_without_one(sacctmgr, fake_program):
    assert limits.room_for_jobs(Profile()) == 46
    assert limits.room_for_jobs(Profile(partition="few")) == 0
    assert limits.room_for_jobs(Profile(account="root")) is None
    fake_program("sacctmgr", "exit 1")  # a cluster without slurmdbd
    assert limits.room_for_jobs(Profile()) is None
