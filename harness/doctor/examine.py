"""`harness doctor`: find problems before jobs are queued; each finding says what to do.

SLURM's description is read first and then checked by pure functions (cluster.py). One probe job with the profile's
settings then examines what cannot be seen from a login node (probe.py): the compute node's Python, torch, GPU, files
and network. torch is loaded only for a STUDY, to load its data sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from harness.doctor.cluster import (
    ask_slurm,
    check_account,
    check_arrays,
    check_idle_gpus,
    check_partition,
    check_path,
    check_preemption,
    check_time_limits,
    resource_classes,
)
from harness.doctor.findings import Finding, problem, warning
from harness.doctor.machine import (
    check_cache,
    check_cores_and_memory,
    check_data,
    check_extractors,
    check_python,
    check_runs_folder,
    check_torch,
    file_system,
)
from harness.doctor.probe import run_node_probe
from harness.doctor.store import check_local_store, check_store
from harness.doctor.submission import check_jobs, check_limits, check_modules
from harness.launch.planning import Plan
from harness.records.nodes import bad_nodes
from harness.slurm.commands import missing_programs
from harness.slurm.profile import Profile
from harness.tracking.store import store_uri


def examine_machine(plan: Plan | None, runs_folder: Path) -> Iterator[Finding]:
    """Examine this machine: Python, torch and its device, cores, memory, disk, MLflow's store, and a study's needs."""
    yield check_python()
    yield check_torch(plan)
    yield check_cores_and_memory(plan)
    yield from check_path(runs_folder, "local")
    yield from check_runs_folder(runs_folder, plan)
    yield from check_cache()
    yield from check_local_store()
    if plan:
        yield from check_data(plan)
        yield from check_extractors(plan)


def examine_cluster(
    profile: Profile, plan: Plan | None, runs_folder: Path, *, timeout_seconds: float | None
) -> Iterator[Finding]:
    """Examine a cluster from its login node, cheap questions first.

    Args:
        timeout_seconds: how long to wait for the probe job; None submits none.
    """
    yield check_python()
    if missing := missing_programs():
        yield problem(f"{', '.join(missing)} not found; run this on a login node or load the SLURM module")
        return
    slurm, findings = ask_slurm()
    yield from findings
    if slurm is not None:
        classes = resource_classes(plan)
        findings = [
            *check_partition(slurm, profile, classes),
            *check_account(slurm, profile),
            check_arrays(slurm, profile),
            *check_limits(slurm, profile, plan),
            *check_preemption(slurm, profile),
            *check_time_limits(profile, classes),
            *check_idle_gpus(profile, plan),
        ]
        yield from findings
        if all(finding.level != "problem" for finding in findings):  # else it would report the same problem again
            yield from check_jobs(profile, classes, plan)
    yield from check_modules(profile)
    unusable = list(check_path(runs_folder, "slurm"))
    yield from unusable
    yield from check_runs_folder(runs_folder, plan)
    yield from check_cache()
    yield from (warning(node.describe(runs_folder)) for node in bad_nodes(runs_folder))
    yield from check_store(profile, store_uri(profile.tracking_uri), file_system)
    if plan:
        yield from check_data(plan)
        yield from check_extractors(plan)
    if slurm is not None and timeout_seconds is not None and not unusable:
        yield from run_node_probe(profile, plan, runs_folder, timeout_seconds)
