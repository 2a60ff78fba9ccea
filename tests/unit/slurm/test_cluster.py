"""What scontrol and sacctmgr print is read as clusters print it."""

from __future__ import annotations

import pytest

from harness.errors import LaunchError
from harness.slurm import cluster
from harness.slurm.profile import Profile

pytestmark = pytest.mark.process  # programs that stand in for SLURM's

CONFIG = """\
Configuration data as of 2026-11-22T19:27:34
AccountingStorageEnforce = none
MaxArraySize            = 101
SlurmctldParameters     = preempt_send_user_signal

Slurmctld(primary) at vm is UP
"""
NODES = """\
NodeName=n1 Arch=x86_64 CPUTot=8 Gres=gpu:2 NodeAddr=10.0.0.1 OS=Linux 6.18.44 #1 SMP PREEMPT_DYNAMIC @0  \
RealMemory=4000 State=IDLE ThreadsPerCore=1 Partitions=main,high  BootTime=2026-11-22T15:55:49
NodeName=n2 Arch=x86_64 CPUTot=8 Gres=gpu:2 NodeAddr=10.0.0.2 OS=Linux 6.18.44 #1 SMP PREEMPT_DYNAMIC @0  \
RealMemory=4000 State=IDLE+DRAIN ThreadsPerCore=1 Partitions=main,high  Reason=broken fan, ask Ada [root@2026-11-22]
"""


def test_what_slurm_says_is_read_by_key_though_values_have_spaces():
    nodes = cluster.parse_records(NODES)
    assert [(node["NodeName"], node["State"], node["RealMemory"], node["Partitions"]) for node in nodes] == [
        ("n1", "IDLE", "4000", "main,high"),
        ("n2", "IDLE+DRAIN", "4000", "main,high"),
    ]
    config = cluster.parse_config(CONFIG)
    assert (config["MaxArraySize"], config["SlurmctldParameters"]) == ("101", "preempt_send_user_signal")


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [
        ("00:10:00", 10),
        ("2-00:00:00", 2880),
        ("1-12", 2160),
        ("30", 30),
        ("30:30", 30.5),
        ("UNLIMITED", float("inf")),
    ],
)
def test_a_time_limit_is_read_in_each_of_slurms_spellings(limit, minutes):
    assert cluster.parse_time_limit(limit) == minutes


@pytest.mark.parametrize(
    ("gres", "number"),
    [
        ("(null)", 0),
        ("gpu:2", 2),
        ("gpu:8(S:0-1)", 8),
        ("gpu:a100:4(S:0-3),lscratch:3200", 4),
        ("gpu:a100:2,gpu:v100:2", 4),
    ],
)
def test_gpus_are_counted_in_what_clusters_call_them(gres, number):
    assert cluster.count_gpus(gres) == number


@pytest.mark.parametrize(
    ("state", "usable"),
    [
        ("IDLE", True),
        ("MIXED+RESERVED", True),
        ("IDLE+CLOUD+POWERED_DOWN", True),  # it is started for a job
        ("IDLE+DRAIN", False),
        ("DOWN*", False),
        ("IDLE*", False),
    ],
)
def test_a_node_is_usable_unless_it_is_down_drained_or_silent(state, usable):
    assert cluster.is_usable(state) == usable


def test_the_profile_goes_before_what_slurm_says_of_arrays(fake_program):
    assert cluster.max_array_size(Profile(max_array_size=9)) == 9
    fake_program("scontrol", "echo 'MaxArraySize            = 101'")
    assert cluster.max_array_size(Profile()) == 101
    fake_program("scontrol", "echo 'ClusterName = bench'")
    assert cluster.max_array_size(Profile()) == 1001


def test_the_first_of_several_nodes_is_met_at_its_address(fake_program):
    fake_program(
        "scontrol", 'case "$*" in *hostnames*) echo n1; echo n2;; *) echo NodeName=n1 NodeAddr=10.0.0.1;; esac'
    )
    assert cluster.first_node_address("n[1-2]") == "10.0.0.1"
    with pytest.raises(LaunchError):
        fake_program("scontrol", "exit 1")
        cluster.first_node_address("n[1-2]")


def test_a_cluster_without_accounts_is_told_apart_from_a_user_without_one(fake_program):
    fake_program("scontrol", "exit 0")
    assert cluster.read_cluster_info().associations is None  # no sacctmgr
    fake_program("sacctmgr", "exit 0")
    assert cluster.read_cluster_info().associations == []
    fake_program("sacctmgr", "echo 'physics||normal,long|normal'")
    assert cluster.read_cluster_info().associations == [
        {"account": "physics", "partition": "", "qos": "normal,long", "defaultqos": "normal"}
    ]
