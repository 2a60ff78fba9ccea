"""What SLURM says of a cluster, judged by plain functions."""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.doctor.findings import Finding, ok, one_line, problem, run_program, warning
from harness.launch.planning import Plan
from harness.slurm import probe as errand
from harness.slurm.profile import Profile, slurm_parameters
from harness.spec.resources import Resources
from harness.text import count

SUBMITIT_MINUTES = 10  # with a limit up to this, submitit takes each USR2 for the time limit


def classes(plan: Plan | None) -> dict[str, Resources]:
    """Return each class of resources that a study asks for, under a name for people; without one the profile's own."""
    if plan is None:
        return {"the profile": Resources()}
    found: dict[Resources, list[str]] = {}
    for planned in plan.runs:
        found.setdefault(planned.run.resources, []).append(planned.run.arm)
    return {", ".join(dict.fromkeys(arms)): resources for resources, arms in found.items()}


@dataclass(frozen=True)
class Slurm:
    """What `scontrol show` and `sacctmgr` say, as text by key."""

    config: Mapping[str, str]
    partitions: Mapping[str, Mapping[str, str]]
    nodes: Sequence[Mapping[str, str]]
    associations: Sequence[Mapping[str, str]] | None  # of this user; None where nobody could be asked

    @classmethod
    def ask(cls) -> tuple[Slurm | None, list[Finding]]:
        """Ask SLURM; what does not answer becomes a finding."""
        said = {name: run_program("scontrol", *command.split()) for name, command in _QUESTIONS.items()}
        queue = run_program("squeue", "--me", "--noheader")
        for done in (*said.values(), queue):
            if done.returncode:
                return None, [problem(f"SLURM does not answer: {one_line(done.stderr)}; ask who runs the cluster")]
        config = read_config(said["config"].stdout)
        findings = [ok(f"SLURM {config.get('SLURM_VERSION', '')} answers (cluster {config.get('ClusterName', '?')})")]
        findings.append(_check_sacct())
        who = ("show", "assoc", f"user={getpass.getuser()}", "format=account,partition,qos,defaultqos")
        assoc = run_program("sacctmgr", "--noheader", "--parsable2", *who)
        keys = ("account", "partition", "qos", "default_qos")
        associations = [dict(zip(keys, line.split("|"), strict=True)) for line in assoc.stdout.splitlines()]
        partitions = {one["PartitionName"]: one for one in read_records(said["partitions"].stdout)}
        nodes = read_records(said["nodes"].stdout)
        return cls(config, partitions, nodes, None if assoc.returncode else associations), findings


_QUESTIONS = {"config": "show config", "partitions": "show partition --oneliner", "nodes": "show node --oneliner"}


def read_config(text: str) -> dict[str, str]:
    """Read `scontrol show config`: one `Key = value` a line."""
    lines = (line.partition("=") for line in text.splitlines() if " = " in line)
    return {key.strip(): value.strip() for key, _, value in lines}


def read_records(text: str) -> list[dict[str, str]]:
    """Read `scontrol show ... --oneliner`: a record a line, `Key=value` parted by spaces."""
    return [dict(re.findall(r"(?:^|(?<=\s))([A-Za-z_/]+)=(\S*)", line)) for line in text.splitlines() if "=" in line]


def minutes(limit: str) -> float:
    """Read a time limit of SLURM's in minutes: 30, 30:00, 12:00:00, 2-00:00:00, UNLIMITED."""
    if limit in ("UNLIMITED", "INFINITE", "NONE", "N/A", ""):
        return float("inf")
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:  # days-hours:minutes:seconds
        hours, minutes_, seconds = (*parts, 0, 0)[:3]
    else:  # [hours:]minutes[:seconds]
        hours, minutes_, seconds = parts if len(parts) == 3 else (0, *parts, 0)[:3]
    return int(days or 0) * 1440 + hours * 60 + minutes_ + seconds / 60


def gpus_of(gres: str) -> int:
    """Count the GPUs of a node's Gres: gpu:2, gpu:a100:4(S:0-1), gpu:a100:2,gpu:v100:2."""
    plain = re.sub(r"\([^)]*\)", "", gres)
    return sum(int(number) for number in re.findall(r"(?:^|,)gpu(?::[^:,]+)?:(\d+)(?=,|$)", plain))


_UNUSABLE = {"DOWN", "DRAIN", "DRAINED", "DRAINING", "ERROR", "FAIL", "FAILING", "MAINT", "NOT_RESPONDING", "UNKNOWN"}


def is_usable(state: str) -> bool:
    """Tell whether a node takes jobs, from states such as IDLE, MIXED+DRAIN, DOWN* or IDLE+CLOUD+POWERED_DOWN."""
    return not state.endswith("*") and _UNUSABLE.isdisjoint(state.split("+"))


def check_partition(slurm: Slurm, profile: Profile, wanted: Mapping[str, Resources]) -> Iterator[Finding]:
    """Hold the partition and its nodes against what each class of runs asks for."""
    name = profile.partition
    if name is None:
        name = next((key for key, one in slurm.partitions.items() if one.get("Default") == "YES"), None)
    if name is None or name not in slurm.partitions:
        said = f"there is no partition {name}" if name else "no partition is named and this cluster has no default"
        yield problem(f"{said}; say partition: in the profile; choices: {', '.join(slurm.partitions)}")
        return
    partition = slurm.partitions[name]
    if partition.get("State") != "UP":
        others = [key for key, one in slurm.partitions.items() if one.get("State") == "UP"]
        yield problem(f"partition {name} is {partition.get('State')}: jobs would wait; up are: {', '.join(others)}")
    elif profile.partition:
        yield ok(f"partition {name} is up")
    else:
        yield ok(f"partition {name} is up; it is the default, the profile names none")
    for key, value in (("AllowAccounts", profile.account), ("AllowQos", profile.qos)):
        allowed = partition.get(key, "ALL")
        if value and allowed != "ALL" and value not in allowed.split(","):
            yield problem(f"partition {name} does not take {value}; its {key}: {allowed}")
    members = [node for node in slurm.nodes if name in node.get("Partitions", "").split(",")]
    usable = [node for node in members if is_usable(node["State"])]
    lost = [node["NodeName"] for node in members if not is_usable(node["State"])]
    if lost:
        yield warning(f"of the {count(len(members), 'node')} of {name}, down or drained are: {', '.join(lost[:8])}")
    limit = partition.get("MaxTime", "UNLIMITED")
    for who, resources in wanted.items():
        asked = slurm_parameters(resources, profile)
        if asked["timeout_min"] > minutes(limit):
            yield problem(
                f"{who}: time_minutes {asked['timeout_min']} is over {name}'s limit of {limit}; take "
                f"{minutes(limit):.0f} or less, for interrupted runs go on where they were"
            )
        yield from _check_nodes(name, members, usable, who, resources, asked)


def _check_nodes(
    name: str,
    members: Sequence[Mapping[str, str]],
    usable: Sequence[Mapping[str, str]],
    who: str,
    resources: Resources,
    asked: Mapping[str, Any],
) -> Iterator[Finding]:
    processes = resources.num_processes // resources.nodes
    need = {"core": asked["cpus_per_task"] * processes, "GPU": asked["gpus_per_node"] or 0, "GiB": asked["mem_gb"]}

    def has(node: Mapping[str, str]) -> dict[str, float]:
        cores = int(node.get("CPUEfctv") or node["CPUTot"])  # less those that SLURM keeps for itself, where it says so
        return {"core": cores, "GPU": gpus_of(node.get("Gres", "")), "GiB": int(node["RealMemory"]) / 1024}

    def fit(nodes: Sequence[Mapping[str, str]]) -> int:
        return sum(all(has(node)[what] >= number for what, number in need.items()) for node in nodes)

    def spell(amounts: Mapping[str, float]) -> str:
        things = [count(int(amounts[what]), what) for what in ("core", "GPU") if amounts[what]]
        return ", ".join([*things, f"{amounts['GiB']:.3g} GiB of memory"])

    spelt = spell(need)
    if fit(usable) >= resources.nodes:
        yield ok(f"{who}: {fit(usable)} of the {count(len(members), 'node')} of {name} have {spelt}")
    elif fit(members) >= resources.nodes:
        yield warning(f"{who}: jobs will wait: the nodes of {name} with {spelt} are down or drained now")
    else:
        most = {what: max((has(node)[what] for node in members), default=0) for what in need}
        yield problem(
            f"{who}: {count(resources.nodes, 'node')} with {spelt} asked for, {name} has {fit(members)}; its nodes "
            f"have at most {spell(most)}: change resources in the study, or cpus, memory_gib, gpus_per_node here"
        )


def check_account(slurm: Slurm, profile: Profile) -> Iterator[Finding]:
    """Hold account and qos against what the user may use."""
    enforced = "associations" in slurm.config.get("AccountingStorageEnforce", "")
    refuse = problem if enforced else warning
    if slurm.associations is None:
        yield warning("sacctmgr does not answer, so account and qos could not be looked up; the trivial job will tell")
        return
    accounts = sorted({one["account"] for one in slurm.associations})
    if not accounts:
        yield refuse(f"user {getpass.getuser()} has no account in SLURM; ask who runs the cluster to add one")
        return
    if profile.account and profile.account not in accounts:
        yield refuse(f"account {profile.account} is not one of yours; choices: {', '.join(accounts)}")
        return
    mine = [one for one in slurm.associations if not profile.account or one["account"] == profile.account]
    allowed = sorted({qos for one in mine for qos in one["qos"].split(",") if qos})
    if profile.qos and profile.qos not in allowed:
        yield refuse(f"qos {profile.qos} is not one that you may use there; choices: {', '.join(allowed) or 'none'}")
        return
    chosen = profile.account or f"your default of {', '.join(accounts)}"
    yield ok(f"account: {chosen}; qos: {profile.qos or 'the default'}, of {', '.join(allowed) or 'none'}")


def check_arrays(slurm: Slurm, profile: Profile) -> Iterator[Finding]:
    """Hold the profile's array limit against the cluster's."""
    limit = int(slurm.config.get("MaxArraySize", 1001))
    if limit < 2:
        yield problem("MaxArraySize is below 2: this cluster takes no job arrays; ask who runs it")
    elif profile.max_array_size and profile.max_array_size > limit:
        yield problem(f"max_array_size {profile.max_array_size} is over the cluster's {limit}: leave it out")
    else:
        yield ok(f"arrays are split at {min(profile.max_array_size or limit, limit)} jobs")


def check_preemption(slurm: Slurm, profile: Profile) -> Iterator[Finding]:
    """Say what becomes of a preempted job, and whether it is told beforehand."""
    if slurm.config.get("JobRequeue") == "0":
        yield warning(
            "JobRequeue is 0: SLURM does not restart jobs by itself; `export SBATCH_REQUEUE=1` before submitting asks "
            "for it, else submit again after an interruption"
        )
    name = profile.partition or next((key for key, one in slurm.partitions.items() if one.get("Default") == "YES"), "")
    partition = slurm.partitions.get(name, {})
    kind = slurm.config.get("PreemptType", "preempt/none")
    mode = partition.get("PreemptMode", "OFF")
    if kind == "preempt/none" or (mode == "OFF" and kind == "preempt/partition_prio"):
        yield ok(f"jobs of partition {name or '?'} are not preempted")
        return
    actual = {"CANCEL": "cancel", "REQUEUE": "requeue"}.get(mode.split(",")[0])
    if actual == "cancel" and profile.preempt_mode == "requeue":
        yield problem(f"{name} cancels preempted jobs for good: say preempt_mode: cancel in the profile")
    elif actual == "requeue" and profile.preempt_mode == "cancel":
        yield problem(f"{name} requeues preempted jobs: say preempt_mode: requeue in the profile, or they run twice")
    else:
        yield ok(f"preempted jobs of {name}: {mode}, as the profile says")
    told = "preempt_send_user_signal" in slurm.config.get("SlurmctldParameters", "")
    grace = int(partition.get("GraceTime", "0"))
    if not (told and grace):
        lacking = " and ".join(
            [*(["SlurmctldParameters=preempt_send_user_signal"] * (not told)), *(["GraceTime > 0"] * (not grace))]
        )
        yield warning(
            f"a preempted job gets no USR2 and so goes back to its last checkpoint: ask who runs the cluster for "
            f"{lacking}, or have records.checkpoint_every_seconds small"
        )


def check_time_limits(profile: Profile, wanted: Mapping[str, Resources]) -> Iterator[Finding]:
    """Find limits so short that submitit cannot tell a preemption from the limit."""
    for who, resources in wanted.items():
        limit = profile.need(resources, "time_minutes")
        if limit <= SUBMITIT_MINUTES:
            yield warning(
                f"{who}: time_minutes {limit}: up to {SUBMITIT_MINUTES}, submitit takes each preemption for a timeout "
                f"and gives up after a few; take {SUBMITIT_MINUTES + 1} or more"
            )


def _would_be_taken(profile: Profile, wanted: Mapping[str, Resources]) -> Iterator[Finding]:
    """Ask SLURM itself, which knows rules of the house that no table shows; nothing is submitted."""
    for who, resources in wanted.items():
        options = errand.sbatch_options(resources, profile)
        done = run_program("sbatch", "--test-only", *options, "--wrap=true")
        if done.returncode:
            yield problem(
                f"{who}: SLURM would not take such a job: {one_line(done.stderr)}; asked: {' '.join(options)}"
            )


def _check_sacct() -> Finding:
    done = run_program("sacct", "--noheader", "--allocations", "--format=jobid")
    if done.returncode == 0:
        return ok("sacct answers")
    return warning(
        f"sacct does not answer ({one_line(done.stderr)}): submitit cannot tell that a killed job has ended; run "
        "directories stay true, but ask who runs the cluster for slurmdbd"
    )
