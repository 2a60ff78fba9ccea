"""`harness doctor`: what would go wrong in the queue is found before it, and each finding says what to do.

What SLURM says is read first (`Slurm.ask`) and judged afterwards by plain functions. One trivial job with the profile's
settings then looks at what cannot be seen from a login node: the compute node's Python, torch, GPU, files and network.
No torch here, but for a STUDY, whose data sets are loaded.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import errand
from harness.cluster import Profile, slurm_parameters
from harness.errors import HarnessError, LaunchError
from harness.launch import Plan, available_cores
from harness.records import STALE_SECONDS, replace_file
from harness.spec import Resources
from harness.tracking import store_uri
from harness.views import count, size

LITTLE_DISK_GIB = 5
SERVER_SECONDS = 5.0
SUBMITIT_MINUTES = 10  # with a limit up to this, submitit takes each USR2 for the time limit
QUESTION = "question.json"
SHARED_FILE_SYSTEMS = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "afs", "fuse.glusterfs")


@dataclass(frozen=True)
class Finding:
    level: Literal["ok", "warning", "problem"]
    said: str


def ok(said: str) -> Finding:
    return Finding("ok", said)


def warning(said: str) -> Finding:
    return Finding("warning", said)


def problem(said: str) -> Finding:
    return Finding("problem", said)


# -------------------------------------------------------------------------------------------------------- what is seen


def examine_here(plan: Plan | None, runs_folder: Path) -> Iterator[Finding]:
    """Look at this machine: Python, torch and its device, cores, memory, disk, MLflow's store, and a study's needs."""
    yield _python()
    yield from _torch(plan)
    yield from _cores_and_memory(plan)
    yield from _runs_folder(runs_folder, plan)
    yield from _store_here()
    if plan:
        yield from _data(plan)
        yield from _extractors(plan)


def examine_cluster(
    profile: Profile, plan: Plan | None, runs_folder: Path, *, timeout_seconds: float | None
) -> Iterator[Finding]:
    """Look at a cluster from its login node, cheap questions first.

    Args:
        timeout_seconds: how long to wait for the trivial job; None sends none.
    """
    yield _python()
    missing = [name for name in ("sbatch", "squeue", "scancel", "scontrol", "srun") if not shutil.which(name)]
    if missing:
        yield problem(f"{', '.join(missing)} not here: run this on the cluster's login node, or load its SLURM module")
        return
    slurm, findings = Slurm.ask()
    yield from findings
    if slurm is not None:
        judged = [
            *check_partition(slurm, profile, classes(plan)),
            *check_account(slurm, profile),
            *check_arrays(slurm, profile),
            *check_preemption(slurm, profile),
            *check_time_limits(profile, classes(plan)),
        ]
        yield from judged
        if all(one.level != "problem" for one in judged):  # else it would say the same in SLURM's words
            yield from _would_be_taken(profile, classes(plan))
    yield from _runs_folder(runs_folder, plan)
    yield from check_store(profile, store_uri(profile.tracking_uri), _file_system)
    if plan:
        yield from _data(plan)
        yield from _extractors(plan)
    if slurm is not None and timeout_seconds is not None:
        yield from _trivial_job(profile, plan, runs_folder, timeout_seconds)


def classes(plan: Plan | None) -> dict[str, Resources]:
    """Return each class of resources that a study asks for, under a name for people; without one the profile's own."""
    if plan is None:
        return {"the profile": Resources()}
    found: dict[Resources, list[str]] = {}
    for planned in plan.runs:
        found.setdefault(planned.run.resources, []).append(planned.run.arm)
    return {", ".join(dict.fromkeys(arms)): resources for resources, arms in found.items()}


# --------------------------------------------------------------------------------------------------------------- SLURM


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
        said = {name: _run("scontrol", *command.split()) for name, command in _QUESTIONS.items()}
        queue = _run("squeue", "--me", "--noheader")
        for done in (*said.values(), queue):
            if done.returncode:
                return None, [problem(f"SLURM does not answer: {_brief(done.stderr)}; ask who runs the cluster")]
        config = read_config(said["config"].stdout)
        findings = [ok(f"SLURM {config.get('SLURM_VERSION', '')} answers (cluster {config.get('ClusterName', '?')})")]
        findings.append(_check_sacct())
        who = ("show", "assoc", f"user={getpass.getuser()}", "format=account,partition,qos,defaultqos")
        assoc = _run("sacctmgr", "--noheader", "--parsable2", *who)
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
        done = _run("sbatch", "--test-only", *options, "--wrap=true")
        if done.returncode:
            yield problem(f"{who}: SLURM would not take such a job: {_brief(done.stderr)}; asked: {' '.join(options)}")


def _check_sacct() -> Finding:
    done = _run("sacct", "--noheader", "--allocations", "--format=jobid")
    if done.returncode == 0:
        return ok("sacct answers")
    return warning(
        f"sacct does not answer ({_brief(done.stderr)}): submitit cannot tell that a killed job has ended; run "
        "directories stay true, but ask who runs the cluster for slurmdbd"
    )


# --------------------------------------------------------------------------------------------------------------- files


def _runs_folder(folder: Path, plan: Plan | None) -> Iterator[Finding]:
    """Try whether the runs folder can be written, and hold its free space against what the checkpoints will take."""
    here = nearest(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=here) as scratch:
            replace_file(Path(scratch) / "renamed", "whole", durable=True)
    except OSError as error:
        yield problem(
            f"runs folder {folder}: cannot be written ({error.strerror}); take another by --runs or HARNESS_RUNS"
        )
        return
    free = shutil.disk_usage(here).free
    quota = quota_left(here)
    left, what = (quota, "of your quota") if quota is not None and quota < free else (free, "of the disk")
    sizes = [plan.checkpoint_bytes(planned) for planned in plan.runs] if plan else []
    need = sum(one for one in sizes if one)
    said = f"runs folder {folder}: can be written; {size(left)} {what} are free"
    if need > left:
        yield problem(f"{said}, but the checkpoints of the study take {size(need)}: `harness clean` shows what can go")
    elif left < LITTLE_DISK_GIB * 2**30:
        yield warning(f"{said}; that is little: `harness clean` shows what can go")
    elif plan and None in sizes:
        yield ok(f"{said}; what checkpoints will take, `harness calibrate {plan.study.path}` measures")
    else:
        yield ok(said + (f", the checkpoints of the study take {size(need)}" if need else ""))


def nearest(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def quota_left(folder: Path) -> int | None:
    """Return the bytes that the user's quota leaves there; None where no tool knows of one."""
    if shutil.which("lfs"):
        done = _run("lfs", "quota", "-q", "-u", getpass.getuser(), str(folder))
        if done.returncode == 0 and (left := read_quota(done.stdout, None)) is not None:
            return left
    if shutil.which("quota"):
        source = _run("df", "--output=source", str(folder)).stdout.split()[-1:]
        return read_quota(_run("quota", "-w").stdout, source[0] if source else "")
    return None


def read_quota(text: str, source: str | None) -> int | None:
    """Read `quota -w` or `lfs quota -q`: file system, used, quota and limit in KiB; 0 is no limit, * marks excess."""
    for line in re.sub(r"\n\s+(?=\d)", " ", text).splitlines():  # a long name stands on a line of its own
        words = line.split()
        numbers = [word.strip("*[]") for word in words[1:4]]
        if len(numbers) == 3 and all(map(str.isdigit, numbers)) and source in (None, words[0]):
            used, soft, hard = map(int, numbers)
            limit = soft or hard
            return max(0, limit - used) * 1024 if limit else None
    return None


def _file_system(path: Path) -> str:
    """Return the kind of file system that a path lies on: ext4, nfs4, lustre."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    path = nearest(path.parent).resolve()
    above = [(len(where), kind) for where, kind in mounts if path.is_relative_to(where)]
    return max(above, default=(0, "unknown"))[1]


def _data(plan: Plan) -> Iterator[Finding]:
    from harness.registry import make_dataset

    for data, root in dict.fromkeys((planned.run.spec.data, planned.run.data_root) for planned in plan.runs):
        try:
            found = make_dataset(data, root)
        except HarnessError as error:
            yield problem(f"data: {_brief(str(error))}")
        else:
            yield ok(
                f"data {data.name}: {len(found.train.images)} images to train on, {len(found.test.images)} to test"
            )


def _extractors(plan: Plan) -> Iterator[Finding]:
    weights = os.environ.get("HARNESS_INCEPTION_WEIGHTS")
    wanted = {
        getattr(evaluation, part).extractor
        for planned in plan.runs
        for evaluation in planned.run.evaluations
        for part in ("fidelity", "sweep", "skip")
        if getattr(evaluation, part)
    }
    if weights and not Path(weights).is_file():
        yield problem(f"HARNESS_INCEPTION_WEIGHTS names {weights}, which is not there: mend or unset it")
    elif "inception" in wanted:
        yield ok(f"Inception's weights: {weights}")
    elif wanted:
        yield ok(f"extractors: {', '.join(sorted(wanted))}; Inception is not asked for")


# --------------------------------------------------------------------------------------------------------- the tracking


def check_store(profile: Profile, uri: str, file_system: Callable[[Path], str] = _file_system) -> Iterator[Finding]:
    """Hold MLflow's store against who would write it: jobs never write SQLite over a shared file system."""
    if uri.startswith(("http://", "https://")):
        error = server_error(uri)
        if error:
            yield problem(
                f"the tracking server {uri} does not answer from here ({error}): start it, or mend tracking_uri"
            )
        else:
            yield ok(f"the tracking server {uri} answers")
        return
    if not uri.startswith("sqlite:"):
        yield warning(
            f"store {_without_password(uri)}: not a server; only compute nodes that reach its database can write it"
        )
        return
    if profile.compute_nodes_reach_server:
        yield problem(
            f"profile and store do not fit: jobs would write {uri} from the compute nodes, and SQLite does not bear "
            "that; name a server in tracking_uri, or say compute_nodes_reach_server: false and run "
            "`harness sync --watch` here"
        )
        return
    kind = file_system(Path(uri.removeprefix("sqlite:///")))
    if kind in SHARED_FILE_SYSTEMS:
        yield warning(
            f"store {uri} lies on a shared file system ({kind}), where SQLite's locks may fail: write it from this "
            "node alone (`harness sync --watch`), or move it to a local disk by MLFLOW_TRACKING_URI, or start a server"
        )
    else:
        yield ok(f"store {uri}: jobs do not write it, `harness sync --watch` on this node carries their records there")


def server_error(uri: str) -> str:
    """Ask a tracking server for its health; return what is wrong, nothing when it answers."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SERVER_SECONDS) as answer:
            return "" if answer.status == 200 else f"status {answer.status}"
    except (OSError, ValueError) as error:
        return _without_password(str(getattr(error, "reason", None) or error))


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)


def _store_here() -> Iterator[Finding]:
    try:
        uri = store_uri()
    except HarnessError as error:
        yield problem(str(error))
        return
    if uri.startswith(("http://", "https://")):
        yield from check_store(Profile(), uri)
        return
    path = Path(uri.removeprefix("sqlite:///"))
    if os.access(path if path.exists() else nearest(path.parent), os.W_OK):
        yield ok(f"MLflow's store: {_without_password(uri)}")
    else:
        yield problem(f"MLflow's store {path} cannot be written; name another in MLFLOW_TRACKING_URI=sqlite:///PATH.db")


# -------------------------------------------------------------------------------------------------------- this machine


def _python() -> Finding:
    return ok(f"python {platform.python_version()} at {sys.executable}")


def _torch(plan: Plan | None) -> Iterator[Finding]:
    began = time.monotonic()
    try:
        import torch
    except ImportError as error:
        yield problem(f"torch cannot be imported ({error}): pip install -e . in the environment of this python")
        return
    taken = time.monotonic() - began
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    said = f"torch {torch.__version__}, imported in {taken:.1f} s; {', '.join(gpus) or 'no CUDA device, so the CPU'}"
    wish = {planned.run.resources.device for planned in plan.runs} if plan else set()
    if "cuda" in wish and not gpus:
        yield problem(f"{said}; but the study says resources.device: cuda; take auto or cpu, or another machine")
    else:
        yield ok(said)


def _cores_and_memory(plan: Plan | None) -> Iterator[Finding]:
    import psutil

    cores, free = available_cores(), psutil.virtual_memory().available
    said = f"{count(cores, 'core')}, {size(free)} of memory free"
    need = max((planned.run.resources.memory_gib for planned in plan.to_do), default=0) if plan else 0
    if need * 2**30 > free:
        yield warning(f"{said}; a run of the study says that it needs {need:g} GiB: close what else is open")
    else:
        yield ok(said)


# ------------------------------------------------------------------------------------------------------ the trivial job


def _trivial_job(profile: Profile, plan: Plan | None, runs_folder: Path, timeout_seconds: float) -> Iterator[Finding]:
    """Send one job of a few seconds with the settings of the real ones, and hold what it sees against what we see."""
    # As a real job would be: the first class of the study that wants a GPU, if there is one.
    resources = max(classes(plan).values(), key=lambda one: profile.need(one, "gpus_per_node"))
    uri = store_uri(profile.tracking_uri)
    roots = {planned.run.data_root or os.environ.get("HARNESS_DATA") for planned in plan.runs} if plan else set()
    weights = os.environ.get("HARNESS_INCEPTION_WEIGHTS")
    question = {
        "server": uri if uri.startswith("http") else None,
        "paths": sorted(str(Path(path).absolute()) for path in (*roots, weights) if path and Path(path).exists()),
    }
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=nearest(runs_folder), ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / QUESTION).write_text(json.dumps(question))
        began, clock = time.monotonic(), time.time()
        try:
            sent = errand.send("harness.doctor", folder, resources, profile, minutes=5, timeout_seconds=timeout_seconds)
        except LaunchError as error:
            yield problem(f"trivial job: {error}")
            return
        taken, now = time.monotonic() - began, time.time()
    if sent.answer:
        yield from check_answer(json.loads(sent.answer), profile, resources, taken, (clock, now))
    elif sent.waited_for:
        yield warning(
            f"trivial job {sent.job_id} was {sent.waited_for} after {timeout_seconds:.0f} s and is cancelled; nothing "
            "was seen of a compute node: --timeout waits longer"
        )
    elif sent.log:
        last = " | ".join(sent.log.splitlines()[-3:])
        yield problem(f"trivial job {sent.job_id} failed; the end of its log: {last}")
    else:
        yield problem(
            f"trivial job {sent.job_id} ended and left no file in {nearest(runs_folder)}: compute nodes must see the "
            "runs folder; take one on the shared file system by HARNESS_RUNS"
        )


def check_answer(
    answer: Mapping[str, Any], profile: Profile, resources: Resources, taken: float, window: tuple[float, float]
) -> Iterator[Finding]:
    """Judge what the trivial job saw on its node.

    Args:
        taken: seconds from submission to answer.
        window: our clock's times of submission and answer, between which the job's clock must be.
    """
    host = answer["host"]
    yield ok(f"trivial job: answered from {host} after {taken:.0f} s; it sees and writes the runs folder")
    skew = max(window[0] - answer["time"], answer["time"] - window[1], 0.0)
    if skew > 5:
        said = f"the clock of {host} differs from ours by {skew:.0f} s: ask who runs the cluster for NTP"
        # Locks are told from abandoned ones by the age of their heartbeat.
        yield (problem if skew > STALE_SECONDS / 2 else warning)(f"{said}; locks of runs go by the clock")
    if answer["torch"] is None:
        yield problem(
            f"torch cannot be imported on {host}: {answer['torch_error']}; name modules: or setup: in the profile"
        )
    else:
        seconds = answer["torch_seconds"]
        said = f"python {answer['python']} and torch {answer['torch']} on {host}, imported in {seconds:.0f} s"
        yield (
            warning(f"{said}: slow; an environment on a faster file system starts jobs sooner")
            if seconds > 60
            else ok(said)
        )
        gpus, need = answer["gpus"], profile.need(resources, "gpus_per_node")
        if need and not gpus:
            yield problem(
                f"torch sees no CUDA device on {host}, though gpus_per_node is {need}: load CUDA by modules:, or "
                "install a torch that is built for the driver there"
            )
        elif gpus:
            yield ok(f"GPUs that the job was given: {', '.join(gpus)}")
    for path in answer["missing"]:
        yield problem(f"{host} does not see {path}: copy it to the shared file system")
    if answer["server_error"] and profile.compute_nodes_reach_server:
        yield problem(
            f"{host} does not reach the tracking server ({answer['server_error']}): say compute_nodes_reach_server: "
            "false and run `harness sync --watch` on the login node"
        )
    elif answer["server_error"] == "" and not profile.compute_nodes_reach_server:
        yield ok(f"{host} reaches the tracking server: compute_nodes_reach_server: true would spare `harness sync`")


def look_around(folder: Path) -> None:
    """Be the trivial job: write down what this node is like."""
    question = json.loads((folder / QUESTION).read_text())
    seen: dict[str, Any] = {
        "host": platform.node(),
        "time": time.time(),
        "python": platform.python_version(),
        "missing": [path for path in question["paths"] if not Path(path).exists()],
        "server_error": server_error(question["server"]) if question["server"] else None,
    }
    began = time.monotonic()
    try:
        import torch

        seen["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        seen["torch"] = torch.__version__
    except Exception as error:
        seen |= {"torch": None, "torch_error": " ".join(str(error).split())[:300]}
    seen["torch_seconds"] = time.monotonic() - began
    replace_file(folder / errand.ANSWER, json.dumps(seen), durable=True)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: not here")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"{command[0]}: no answer within 30 s")


def _brief(text: str) -> str:
    return " ".join(text.split())[:400]


if __name__ == "__main__":
    look_around(Path(sys.argv[1]))
