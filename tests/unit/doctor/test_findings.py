"""`harness doctor`: each thing that goes wrong on clusters is found before the queue, and the finding says what to do.

What SLURM says was recorded: of the one-machine cluster (22.05), and of GPU nodes as their owners document them.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.doctor import cluster, machine, probe, store, submission
from harness.launch import planning
from harness.slurm.cluster import ClusterInfo, parse_config, parse_records
from harness.slurm.limits import SubmitLimit
from harness.slurm.profile import Profile
from harness.spec.resources import Resources
from harness.study.expand import load_study

CONFIG = """\
Configuration data as of 2026-11-22T19:27:34
AccountingStorageEnforce = none
AccountingStorageType   = accounting_storage/slurmdbd
ClusterName             = bench
JobRequeue              = 1
MaxArraySize            = 1001
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SLURM_VERSION           = 22.05.8
SlurmctldParameters     = preempt_send_user_signal

Slurmctld(primary) at vm is UP
"""
PARTITION = (
    "PartitionName={name} AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default={default} QoS=N/A "
    "DefaultTime=00:10:00 DisableRootJobs=NO ExclusiveUser=NO GraceTime={grace} Hidden=NO MaxNodes=UNLIMITED "
    "MaxTime={limit} MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=n[1-2] PriorityJobFactor=1 PriorityTier=1 "
    "RootOnly=NO ReqResv=NO OverSubscribe=NO OverTimeLimit=NONE PreemptMode={mode} State={state} TotalCPUs=16 "
    "TotalNodes=2 SelectTypeParameters=NONE JobDefaults=(null) DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED "
    "TRES=cpu=16,mem=8000M,node=2,billing=16,gres/gpu=4\n"
)
NODES = """\
NodeName=n1 Arch=x86_64 CoresPerSocket=1  CPUAlloc=0 CPUEfctv=8 CPUTot=8 CPULoad=0.34 AvailableFeatures=(null) \
ActiveFeatures=(null) Gres=gpu:2 NodeAddr=127.0.0.1 NodeHostName=vm Port=18831 Version=22.05.8 OS=Linux 6.18.44 #1 SMP \
PREEMPT_DYNAMIC @0  RealMemory=4000 AllocMem=0 FreeMem=23139 Sockets=8 Boards=1 State=IDLE ThreadsPerCore=1 TmpDisk=0 \
Weight=1 Owner=N/A MCS_label=N/A Partitions=main,high  BootTime=2026-11-22T15:55:49 CfgTRES=cpu=8,mem=4000M,billing=8
NodeName=n2 Arch=x86_64 CoresPerSocket=1  CPUAlloc=0 CPUEfctv=8 CPUTot=8 CPULoad=2.79 AvailableFeatures=(null) \
ActiveFeatures=(null) Gres=gpu:2 NodeAddr=127.0.0.1 NodeHostName=vm Port=18832 Version=22.05.8 OS=Linux 6.18.44 #1 SMP \
PREEMPT_DYNAMIC @0  RealMemory=4000 AllocMem=0 FreeMem=21129 Sockets=8 Boards=1 State=IDLE+DRAIN ThreadsPerCore=1 \
TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A Partitions=main,high  BootTime=2026-11-22T15:55:49 CfgTRES=cpu=8,mem=4000M \
Reason=broken fan, ask Ada [root@2026-11-22T19:45:43]
"""
SMALL = {"the runs": Resources(cpus=2, memory_gib=1, time_minutes=60)}


def a_partition(name="main", default="YES", grace="10", limit="UNLIMITED", mode="REQUEUE", state="UP") -> str:
    return PARTITION.format(name=name, default=default, grace=grace, limit=limit, mode=mode, state=state)


def a_slurm(*partitions: str, config: str = CONFIG, associations=None) -> ClusterInfo:
    records = parse_records("".join(partitions or [a_partition(), a_partition("high", "NO", "0", mode="OFF")]))
    by_name = {record["PartitionName"]: record for record in records}
    own = [{"account": "root", "partition": "", "qos": "normal,long", "defaultqos": ""}]
    return ClusterInfo(
        parse_config(config), by_name, parse_records(NODES), own if associations is None else associations
    )


def messages(findings, level: str) -> str:
    return "\n".join(finding.message for finding in findings if finding.level == level)


def run_cli(*arguments: str | Path):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


# ------------------------------------------------------------------------------------------------------------- quotas


@pytest.mark.parametrize(
    ("text", "device", "left"),
    [
        (
            "Filesystem blocks quota limit grace files\n/dev/sdb1 100 80000 100000  50 80 100\n",
            "/dev/sdb1",
            79900 * 1024,
        ),
        ("/dev/sdb1 100000* 80000 100000 7days 50 80 100\n", "/dev/sdb1", 0),
        ("/dev/sdb1 100 80000 100000  50 80 100\n", "/dev/sdc1", None),
        ("       /lustre/home\n  1000       0    3000       -     10      0      0       -\n", None, 2000 * 1024),
        ("       /lustre/home   1000       0       0       -     10      0      0       -\n", None, None),
    ],
)
def test_a_quota_is_what_is_left_of_the_soft_limit_else_of_the_hard_one(text, device, left):
    assert machine.parse_quota(text, device) == left


# --------------------------------------------------------------------------------------------------------------- SLURM


def test_a_partition_that_is_not_there_is_a_problem_with_the_choices():
    findings = list(cluster.check_partition(a_slurm(), Profile(partition="gpu"), SMALL))
    assert messages(findings, "problem") == (
        "there is no partition gpu; set partition: in the profile; choices: main, high"
    )


def test_of_several_partitions_each_is_checked():
    several = Profile(partition="main,high")
    assert messages(cluster.check_partition(a_slurm(), several, SMALL), "problem") == ""
    assert messages(cluster.check_partition(a_slurm(), several, SMALL), "ok").count("partition ") == 2
    wrong = Profile(partition="main,none")
    assert "there is no partition none" in messages(cluster.check_partition(a_slurm(), wrong, SMALL), "problem")


def test_a_partition_that_is_down_is_a_problem_and_those_that_are_up_are_named():
    slurm = a_slurm(a_partition(state="DOWN"), a_partition("high", "NO"))
    findings = list(cluster.check_partition(slurm, Profile(partition="main"), SMALL))
    assert messages(findings, "problem") == "partition main is DOWN: jobs would wait; partitions that are up: high"


def test_a_drained_node_is_named_and_the_rest_suffices():
    findings = list(cluster.check_partition(a_slurm(), Profile(), SMALL))
    assert messages(findings, "problem") == ""
    assert messages(findings, "warning") == "down or drained of the 2 nodes of main: n2"
    assert "the runs: 1 of the 2 nodes of main have 2 cores, 1 GiB of memory" in messages(findings, "ok")


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ({"memory_gib": 16}, "problem", "at most 8 cores, 2 GPUs, 3.91 GiB of memory"),
        ({"cpus": 9}, "problem", "1 node with 9 cores"),
        ({"gpus_per_node": 4}, "problem", "8 cores, 4 GPUs, 1 GiB of memory requested, main has 0"),
        ({"nodes": 3}, "problem", "3 nodes with 2 cores"),
        ({"nodes": 2}, "warning", "jobs will wait"),
        ({"time_minutes": 61}, "problem", "time_minutes 61 is over main's limit of 01:00:00; set 60 or less"),
    ],
)
def test_what_no_node_has_and_no_limit_allows_is_a_problem_with_the_figures(change, level, words):
    resources = {"the runs": Resources(**{**SMALL["the runs"].model_dump(exclude_unset=True), **change})}
    findings = cluster.check_partition(a_slurm(a_partition(limit="01:00:00")), Profile(), resources)
    assert words in messages(findings, level)


def test_account_and_qos_that_are_not_yours_are_problems_where_slurm_enforces_them():
    enforcing = a_slurm(config=CONFIG.replace("Enforce = none", "Enforce = associations,limits"))
    wrong = list(cluster.check_account(enforcing, Profile(account="physics")))
    assert (
        messages(wrong, "problem") == "account physics is not one of yours: set account in the profile; choices: root"
    )
    wrong = list(cluster.check_account(enforcing, Profile(qos="urgent")))
    assert messages(wrong, "problem") == "qos urgent is not one that you may use there; choices: long, normal"
    assert "physics" in messages(cluster.check_account(a_slurm(), Profile(account="physics")), "warning")
    assert messages(cluster.check_account(enforcing, Profile(account="root", qos="long")), "ok")
    assert "no account" in messages(cluster.check_account(a_slurm(associations=[]), Profile()), "warning")
    silent = replace(a_slurm(), associations=None)
    assert "sacctmgr does not answer" in messages(cluster.check_account(silent, Profile()), "warning")


def test_an_array_limit_over_the_clusters_is_a_problem():
    assert "over the cluster's 1001" in messages(
        [cluster.check_arrays(a_slurm(), Profile(max_array_size=2000))], "problem"
    )
    assert messages([cluster.check_arrays(a_slurm(), Profile())], "ok") == "arrays are split at 1001 jobs"
    assert (
        messages([cluster.check_arrays(a_slurm(), Profile(max_array_size=100))], "ok") == "arrays are split at 100 jobs"
    )


@pytest.mark.parametrize(("mode", "profile"), [("CANCEL", "requeue"), ("REQUEUE", "cancel")])
def test_a_profile_that_is_wrong_about_preemption_is_a_problem(mode, profile):
    findings = cluster.check_preemption(a_slurm(a_partition(mode=mode)), Profile(preempt_mode=profile))
    assert f"preempt_mode: {mode.lower()}" in messages(findings, "problem")


@pytest.mark.parametrize(
    ("slurm", "lacking"),
    [
        (a_slurm(a_partition(grace="0")), "GraceTime > 0"),
        (
            a_slurm(config=CONFIG.replace("preempt_send_user_signal", "")),
            "SlurmctldParameters=preempt_send_user_signal",
        ),
    ],
)
def test_a_preempted_job_that_would_hear_nothing_is_a_warning(slurm, lacking):
    findings = list(cluster.check_preemption(slurm, Profile()))
    assert "gets no USR2" in messages(findings, "warning")
    assert lacking in messages(findings, "warning")


def test_a_partition_that_is_never_preempted_needs_no_signal():
    findings = list(cluster.check_preemption(a_slurm(), Profile(partition="high")))
    assert [finding.level for finding in findings] == ["ok"]


def test_limits_of_ten_minutes_and_less_are_a_warning():
    for minutes, warned in ((10, True), (11, False)):
        findings = cluster.check_time_limits(Profile(), {"the runs": Resources(time_minutes=minutes)})
        assert bool(messages(findings, "warning")) == warned


# ----------------------------------------------------------------------------------------------------- store and server


def test_a_sqlite_store_does_not_fit_compute_nodes_that_would_write_it():
    profile = Profile(compute_nodes_reach_server=True)
    findings = store.check_store(profile, "sqlite:////home/me/mlflow.db", lambda path: "ext4")
    assert "profile and store do not match" in messages(findings, "problem")


def test_a_sqlite_store_on_a_shared_file_system_is_a_warning():
    for kind, level in (("ext4", "ok"), ("nfs4", "warning"), ("lustre", "warning")):
        (finding,) = store.check_store(Profile(), "sqlite:////home/me/mlflow.db", lambda path, kind=kind: kind)
        assert finding.level == level


def test_a_server_is_asked_for_its_health():
    class Health(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_port}"
    assert messages(store.check_store(Profile(), uri), "ok") == f"the tracking server {uri} answers"
    server.shutdown()
    server.server_close()
    assert "does not answer from here" in messages(store.check_store(Profile(), uri), "problem")


# ------------------------------------------------------------------------------------------------------ the probe job

ANSWER = {
    "host": "n1",
    "time": 105.0,
    "python": "3.11.7",
    "torch": "2.13.0",
    "torch_seconds": 3.0,
    "gpus": ["NVIDIA H200"],
    "missing": [],
    "server_error": None,
}


@pytest.mark.parametrize(
    ("change", "profile", "level", "words"),
    [
        ({}, {"gpus_per_node": 1}, "ok", "GPUs of the job: NVIDIA H200"),
        ({"gpus": []}, {"gpus_per_node": 1}, "problem", "torch sees no CUDA device on n1"),
        ({"torch": None, "torch_error": "No module named 'torch'"}, {}, "problem", "add modules: or setup:"),
        ({"torch_seconds": 90.0}, {}, "warning", "imported in 90 s: slow"),
        ({"time": 130.0}, {}, "warning", "differs from ours by 20 s"),
        ({"time": 10.0}, {}, "problem", "differs from ours by 90 s"),
        ({"missing": ["/data"]}, {}, "problem", "n1 does not see /data"),
        ({"server_error": "timed out"}, {"compute_nodes_reach_server": True}, "problem", "reach_server: false"),
        ({"server_error": ""}, {}, "ok", "compute_nodes_reach_server: true makes"),
    ],
)
def test_what_the_probe_job_saw_is_judged(change, profile, level, words):
    findings = probe.check_answer(ANSWER | change, Profile(**profile), Resources(), (100.0, 110.0))
    assert words in messages(findings, level)


def test_a_job_that_saw_nothing_wrong_is_ok_all_over():
    findings = probe.check_answer(ANSWER, Profile(gpus_per_node=1), Resources(), (100.0, 110.0))
    assert {finding.level for finding in findings} == {"ok"}


# -------------------------------------------------------------------------------------------------------- this machine


# ------------------------------------------------------------------------------------------------------- a live cluster


# ---------------------------------------------------------------------------------------------------- what submit meets


def test_more_jobs_than_may_be_in_the_queue_are_a_warning_with_the_command_that_brings_them(tmp_path, tiny_study):
    tiny_study("replicates: 5\n")
    plan = planning.plan(load_study(tmp_path / "tiny.yaml"), tmp_path / "runs")
    limit = SubmitLimit(4, "MaxSubmitJobs of account lab")
    finding = submission.check_number_of_jobs(limit, Profile(), plan)
    assert finding.level == "warning"
    watch = f"`harness submit {tmp_path}/tiny.yaml --cluster slurm --watch --runs {tmp_path}/runs`"
    assert finding.message.startswith(
        "up to 4 jobs of yours may be in the queue (MaxSubmitJobs of account lab), and the study has 5 jobs to submit: "
        f"{watch}"
    )
    for fewer in (Profile(pack=2), Profile(chain=5)):
        assert submission.check_number_of_jobs(limit, fewer, plan).level == "ok"
    assert submission.check_number_of_jobs(limit, Profile(), None).level == "ok"


def test_a_cluster_that_enforces_no_limits_has_only_its_own(monkeypatch):
    monkeypatch.setattr(submission, "read_submit_limit", lambda profile: SubmitLimit(1, "MaxSubmitJobs of account lab"))
    for enforced, name in (("none", "MaxJobCount of the whole cluster"), ("associations,limits", "MaxSubmitJobs")):
        slurm = a_slurm(config=CONFIG.replace("= none", f"= {enforced}") + "MaxJobCount = 10000\n")
        [finding] = submission.check_limits(slurm, Profile(), None)
        assert (finding.level, name in finding.message) == ("ok", True)


@pytest.mark.process
def test_a_module_that_cannot_be_loaded_is_a_warning_with_its_name_and_why(monkeypatch):
    function = '() { [ "$1 $2" != "load cuda/99" ] || { echo "no cuda/99" >&2; return 1; }; }'
    monkeypatch.setenv("BASH_FUNC_module%%", function)
    [finding] = submission.check_modules(Profile(modules=("gcc", "cuda/99", "python")))
    assert finding.level == "warning"
    assert finding.message.startswith("`module load cuda/99` fails on this machine (no cuda/99)")
    assert "`module avail cuda`" in finding.message
    [finding] = submission.check_modules(Profile(modules=("gcc", "cuda/12")))
    assert (finding.level, finding.message) == ("ok", "modules that can be loaded here: gcc, cuda/12")
    assert list(submission.check_modules(Profile())) == []


def test_the_cache_is_judged_by_the_quota_where_that_is_less_than_the_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    for left, level in ((2**20, "warning"), (None, "ok"), (2**60, "ok")):
        monkeypatch.setattr(machine, "quota_left", lambda folder, left=left: left)
        [finding] = machine.check_cache()
        assert finding.level == level
        assert ("of your quota" in finding.message) == (left == 2**20)
