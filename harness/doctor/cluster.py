"""Check SLURM's description of a cluster (harness.slurm.cluster) against a profile and the runs' resources.

All but `ask_slurm` are pure functions of SLURM's output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness.doctor.findings import Finding, ok, one_line, problem, warning
from harness.errors import LaunchError
from harness.launch.planning import Plan, on_cluster
from harness.launch.processes import unusable_path
from harness.slurm.cluster import ClusterInfo, count_gpus, is_usable, parse_time_limit, read_cluster_info
from harness.slurm.jobs import current_user, live_jobs, read_accounting
from harness.slurm.profile import Profile, slurm_parameters
from harness.spec.resources import Resources
from harness.text import count

SUBMITIT_MINUTES = 10  # with a limit up to this, submitit takes each USR2 for the time limit


def resource_classes(plan: Plan | None) -> dict[str, Resources]:
    """Return each class of resources in a study with the arms that request it; without a study the profile's own."""
    if plan is None:
        return {"the profile": Resources()}
    arms: dict[Resources, list[str]] = {}
    for planned in plan.runs:
        arms.setdefault(planned.run.resources, []).append(planned.run.arm)
    return {", ".join(dict.fromkeys(names)): resources for resources, names in arms.items()}


def ask_slurm() -> tuple[ClusterInfo | None, list[Finding]]:
    """Query SLURM for the cluster's description; a program that does not answer becomes a finding."""
    try:
        info = read_cluster_info()
        live_jobs()
    except LaunchError as error:
        return None, [problem(f"SLURM does not answer: {one_line(str(error))}; ask the cluster's administrators")]
    version, name = info.config.get("SLURM_VERSION", ""), info.config.get("ClusterName", "?")
    return info, [ok(f"SLURM {version} answers (cluster {name})"), _check_accounting()]


def _check_accounting() -> Finding:
    try:
        read_accounting([])
    except LaunchError as error:
        return warning(
            f"{one_line(str(error))}: without it submitit cannot detect that a killed job has ended; run directories "
            "stay correct, but ask the cluster's administrators for slurmdbd"
        )
    return ok("sacct answers")


def check_path(runs_folder: Path, cluster: str) -> Iterator[Finding]:
    """Check that the path of the runs folder can be written where jobs are started from it."""
    if reason := unusable_path(runs_folder, cluster):
        yield problem(reason)


def check_partition(slurm: ClusterInfo, profile: Profile, classes: Mapping[str, Resources]) -> Iterator[Finding]:
    """Check the partition and its nodes against the request of each class of runs."""
    several = (profile.partition or slurm.default_partition or "").split(",")
    for name in several:
        yield from _check_one_partition(slurm, profile, classes, name)


def _check_one_partition(
    slurm: ClusterInfo, profile: Profile, classes: Mapping[str, Resources], name: str
) -> Iterator[Finding]:
    if name not in slurm.partitions:
        why = f"there is no partition {name}" if name else "no partition is given and this cluster has no default"
        yield problem(f"{why}; set partition: in the profile; choices: {', '.join(slurm.partitions)}")
        return
    partition = slurm.partitions[name]
    yield _check_is_up(name, slurm, profile)
    for key, value in (("AllowAccounts", profile.account), ("AllowQos", profile.qos)):
        allowed = partition.get(key, "ALL")
        if value and allowed != "ALL" and value not in allowed.split(","):
            yield problem(f"partition {name} does not accept {value}; its {key}: {allowed}")
    members = [node for node in slurm.nodes if name in node.get("Partitions", "").split(",")]
    unusable = [node["NodeName"] for node in members if not is_usable(node["State"])]
    if unusable:
        yield warning(f"down or drained of the {count(len(members), 'node')} of {name}: {', '.join(unusable[:8])}")
    limit = partition.get("MaxTime", "UNLIMITED")
    for arms, resources in classes.items():
        parameters = slurm_parameters(resources, profile)
        if parameters["timeout_min"] > parse_time_limit(limit):
            yield problem(
                f"{arms}: time_minutes {parameters['timeout_min']} is over {name}'s limit of {limit}; set "
                f"{parse_time_limit(limit):.0f} or less: runs resume after each time limit"
            )
        yield _check_nodes(name, members, arms, resources, profile)


def _check_is_up(name: str, slurm: ClusterInfo, profile: Profile) -> Finding:
    state = slurm.partitions[name].get("State")
    if state != "UP":
        up = [name for name, record in slurm.partitions.items() if record.get("State") == "UP"]
        return problem(f"partition {name} is {state}: jobs would wait; partitions that are up: {', '.join(up)}")
    return ok(f"partition {name} is up" + ("" if profile.partition else "; it is the default, the profile gives none"))


def _check_nodes(
    partition: str,
    members: Sequence[Mapping[str, str]],
    arms: str,
    resources: Resources,
    profile: Profile,
) -> Finding:
    processes_per_node = resources.num_processes // resources.nodes
    needed = {
        "core": slurm_parameters(resources, profile)["cpus_per_task"] * processes_per_node,
        "GPU": profile.gpus(resources)[0],
        "GiB": profile.resolve(resources, "memory_gib"),
    }
    fitting = [node for node in members if all(_capacity(node)[unit] >= number for unit, number in needed.items())]
    usable = [node for node in fitting if is_usable(node["State"])]
    if len(usable) >= resources.nodes:
        size = count(len(members), "node")
        return ok(f"{arms}: {len(usable)} of the {size} of {partition} have {_describe(needed)}")
    if len(fitting) >= resources.nodes:
        return warning(
            f"{arms}: jobs will wait: the nodes of {partition} with {_describe(needed)} are down or drained now"
        )
    largest = {unit: max((_capacity(node)[unit] for node in members), default=0) for unit in needed}
    return problem(
        f"{arms}: {count(resources.nodes, 'node')} with {_describe(needed)} requested, {partition} has {len(fitting)}; "
        f"its nodes have at most {_describe(largest)}: change resources in the study, or cpus, memory_gib, "
        "gpus_per_node in the profile"
    )


def _capacity(node: Mapping[str, str]) -> dict[str, float]:
    cores = int(node.get("CPUEfctv") or node["CPUTot"])  # less those that SLURM reserves for itself, if it says so
    return {"core": cores, "GPU": count_gpus(node.get("Gres", "")), "GiB": int(node["RealMemory"]) / 1024}


def _describe(amounts: Mapping[str, float]) -> str:
    """Return `8 cores, 2 GPUs, 4 GiB of memory`."""
    units = [count(int(amounts[unit]), unit) for unit in ("core", "GPU") if amounts[unit]]
    return ", ".join([*units, f"{amounts['GiB']:.3g} GiB of memory"])


def check_idle_gpus(profile: Profile, plan: Plan | None) -> Iterator[Finding]:
    """Find GPUs that jobs ask for and that no process of theirs would use."""
    if plan:
        yield from map(warning, on_cluster(plan, profile).idle_gpus())


def check_account(slurm: ClusterInfo, profile: Profile) -> Iterator[Finding]:
    """Check account and qos against what the user may use."""
    enforced = "associations" in slurm.config.get("AccountingStorageEnforce", "")
    refuse = problem if enforced else warning
    if slurm.associations is None:
        yield warning("sacctmgr does not answer, so account and qos were not checked; the probe job will show")
        return
    accounts = sorted({record["account"] for record in slurm.associations})
    if not accounts:
        yield refuse(f"user {current_user()} has no account in SLURM; ask the cluster's administrators to add one")
        return
    if profile.account and profile.account not in accounts:
        yield refuse(
            f"account {profile.account} is not one of yours: set account in the profile; choices: {', '.join(accounts)}"
        )
        return
    usable = [record for record in slurm.associations if not profile.account or record["account"] == profile.account]
    allowed = sorted({qos for record in usable for qos in record["qos"].split(",") if qos})
    if profile.qos and profile.qos not in allowed:
        yield refuse(f"qos {profile.qos} is not one that you may use there; choices: {', '.join(allowed) or 'none'}")
        return
    account = profile.account or f"your default of {', '.join(accounts)}"
    yield ok(f"account: {account}; qos: {profile.qos or 'the default'}, of {', '.join(allowed) or 'none'}")


def check_arrays(slurm: ClusterInfo, profile: Profile) -> Finding:
    """Check the profile's array limit against the cluster's."""
    limit = slurm.max_array_size
    if limit < 2:
        return problem("MaxArraySize is below 2: this cluster accepts no job arrays; ask its administrators")
    if profile.max_array_size and profile.max_array_size > limit:
        return problem(
            f"max_array_size {profile.max_array_size} is over the cluster's {limit}: remove it from the profile"
        )
    return ok(f"arrays are split at {min(profile.max_array_size or limit, limit)} jobs")


def check_preemption(slurm: ClusterInfo, profile: Profile) -> Iterator[Finding]:
    """Report what happens to a preempted job, and whether it gets a signal beforehand."""
    name = (profile.partition or slurm.default_partition or "").split(",")[0]
    if name not in slurm.partitions:  # `check_partition` says so
        return
    partition = slurm.partitions[name]
    preempt_type = slurm.config.get("PreemptType", "preempt/none")
    mode = partition.get("PreemptMode", "OFF")
    if preempt_type == "preempt/none" or (mode == "OFF" and preempt_type == "preempt/partition_prio"):
        yield ok(f"jobs of partition {name} are not preempted")
        return
    actual = {"CANCEL": "cancel", "REQUEUE": "requeue"}.get(mode.split(",")[0])
    if actual == "cancel" and profile.preempt_mode == "requeue":
        yield problem(
            f"{name} cancels preempted jobs and does not requeue them: set preempt_mode: cancel in the profile"
        )
    elif actual == "requeue" and profile.preempt_mode == "cancel":
        yield problem(f"{name} requeues preempted jobs: set preempt_mode: requeue in the profile, or they run twice")
    else:
        yield ok(f"preempted jobs of {name}: {mode}, as the profile says")
    missing = []
    if "preempt_send_user_signal" not in slurm.config.get("SlurmctldParameters", ""):
        missing.append("SlurmctldParameters=preempt_send_user_signal")
    if not int(partition.get("GraceTime", "0")):
        missing.append("GraceTime > 0")
    if missing:
        yield warning(
            "a preempted job gets no USR2 and resumes from its last periodic checkpoint: ask the administrators for "
            f"{' and '.join(missing)}, or set records.checkpoint_every_seconds to less"
        )


def check_time_limits(profile: Profile, classes: Mapping[str, Resources]) -> Iterator[Finding]:
    """Find time limits so short that submitit cannot distinguish a preemption from a timeout."""
    for arms, resources in classes.items():
        limit = profile.resolve(resources, "time_minutes")
        if limit <= SUBMITIT_MINUTES:
            yield warning(
                f"{arms}: time_minutes {limit}: up to {SUBMITIT_MINUTES}, submitit takes each preemption for a timeout "
                f"and gives up after a few; set {SUBMITIT_MINUTES + 1} or more"
            )
