"""Examine a compute node by a probe job, which runs `python -m harness.doctor.probe FOLDER` there."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.doctor.cluster import resource_classes
from harness.doctor.findings import Finding, ok, problem, warning
from harness.doctor.machine import nearest_folder
from harness.doctor.store import server_error
from harness.errors import LaunchError
from harness.launch.planning import Plan
from harness.metrics.weights import WEIGHTS
from harness.records.files import replace_file
from harness.records.lock import STALE_SECONDS
from harness.slurm.probe import ANSWER, ProbeResult, run_probe_job
from harness.slurm.profile import Profile
from harness.spec.resources import Resources
from harness.tracking.store import store_uri

QUESTION = "question.json"
SLOW_IMPORT_SECONDS = 60


def run_node_probe(profile: Profile, plan: Plan | None, runs_folder: Path, timeout_seconds: float) -> Iterator[Finding]:
    """Submit a job of a few seconds with the settings of the real jobs, and check what it reports of its node."""
    # Like a real job: the first class of the study with the most GPUs.
    resources = max(resource_classes(plan).values(), key=lambda resources: profile.gpus(resources)[0])
    uri = store_uri(profile.tracking_uri)
    roots = {planned.run.data_root or os.environ.get("HARNESS_DATA") for planned in plan.runs} if plan else set()
    weights = [os.environ.get(published.variable) for published in WEIGHTS.values()]
    question = {
        "server": uri if uri.startswith("http") else None,
        "paths": sorted(str(path.absolute()) for path in _expanded((*roots, *weights)) if path.exists()),
    }
    with tempfile.TemporaryDirectory(
        prefix=".doctor-", dir=nearest_folder(runs_folder), ignore_cleanup_errors=True
    ) as name:
        folder = Path(name)
        (folder / QUESTION).write_text(json.dumps(question))
        submitted = time.time()
        try:
            result = run_probe_job(
                "harness.doctor.probe", folder, resources, profile, minutes=5, timeout_seconds=timeout_seconds
            )
        except LaunchError as error:
            yield problem(f"probe job: {error}")
            return
        answered = time.time()
    if result.answer:
        yield from check_answer(json.loads(result.answer), profile, resources, (submitted, answered))
    else:
        yield _explain_no_answer(result, timeout_seconds, nearest_folder(runs_folder))


def _expanded(paths: Iterable[str | None]) -> Iterator[Path]:
    """Expand ~, which a compute node's file system does not know, in those paths that are given."""
    for path in filter(None, paths):
        with contextlib.suppress(RuntimeError):  # no such user: `check_data` and `check_extractors` report it
            yield Path(path).expanduser()


def _explain_no_answer(result: ProbeResult, timeout_seconds: float, folder: Path) -> Finding:
    if result.state_at_timeout:
        return warning(
            f"probe job {result.job_id} was {result.state_at_timeout} after {timeout_seconds:.0f} s and was "
            "cancelled; no compute node was examined: --timeout waits longer"
        )
    if result.setup_failed and result.log:
        end = " | ".join(result.log.splitlines()[-3:])
        return problem(
            f"probe job {result.job_id} ended in the profile's modules: and setup:, as all jobs would; the end of its "
            f"log: {end}"
        )
    if result.log:
        end = " | ".join(result.log.splitlines()[-3:])
        return problem(f"probe job {result.job_id} failed; the end of its log: {end}")
    return problem(
        f"probe job {result.job_id} ended and left no file in {folder}: compute nodes must see the runs folder; "
        "set HARNESS_RUNS to a folder on the shared file system"
    )


def check_answer(
    answer: Mapping[str, Any], profile: Profile, resources: Resources, window: tuple[float, float]
) -> Iterator[Finding]:
    """Check the probe job's answer.

    Args:
        answer: written by `collect_node_info` on the node.
        window: times of submission and answer by this machine's clock, between which the job's clock must be.
    """
    host = answer["host"]
    yield ok(f"probe job: answered from {host} after {window[1] - window[0]:.0f} s; it can write the runs folder")
    yield from _check_clock(answer, window)
    yield from _check_torch(answer, profile.gpus(resources)[0])
    for path in answer["missing"]:
        yield problem(f"{host} does not see {path}: copy it to the shared file system")
    if answer["server_error"] and profile.compute_nodes_reach_server:
        yield problem(
            f"{host} does not reach the tracking server ({answer['server_error']}): set compute_nodes_reach_server: "
            "false and run `harness sync --watch` on the login node"
        )
    elif answer["server_error"] == "" and not profile.compute_nodes_reach_server:
        yield ok(
            f"{host} reaches the tracking server: compute_nodes_reach_server: true makes `harness sync` unnecessary"
        )


def _check_clock(answer: Mapping[str, Any], window: tuple[float, float]) -> Iterator[Finding]:
    skew = max(window[0] - answer["time"], answer["time"] - window[1], 0.0)
    if skew > 5:
        # Abandoned locks are recognised by the age of their heartbeat.
        level = problem if skew > STALE_SECONDS / 2 else warning
        yield level(
            f"the clock of {answer['host']} differs from ours by {skew:.0f} s: ask the administrators for NTP; locks "
            "of runs depend on the clock"
        )


def _check_torch(answer: Mapping[str, Any], gpus_per_node: int) -> Iterator[Finding]:
    host, seconds, gpus = answer["host"], answer["torch_seconds"], answer.get("gpus")
    if answer["torch"] is None:
        yield problem(
            f"torch cannot be imported on {host}: {answer['torch_error']}; add modules: or setup: to the profile"
        )
        return
    imported = f"python {answer['python']} and torch {answer['torch']} on {host}, imported in {seconds:.0f} s"
    if seconds > SLOW_IMPORT_SECONDS:
        yield warning(f"{imported}: slow; an environment on a faster file system starts jobs faster")
    else:
        yield ok(imported)
    if gpus:
        yield ok(f"GPUs of the job: {', '.join(gpus)}")
    elif gpus_per_node:
        yield problem(
            f"torch sees no CUDA device on {host}, though gpus_per_node is {gpus_per_node}: load CUDA by modules:, or "
            "install a torch that is built for the driver there"
        )


# -------------------------------------------------------------------------------------------------- on the compute node


def collect_node_info(folder: Path) -> None:
    """Run as the probe job: write a description of this node into the folder."""
    question = json.loads((folder / QUESTION).read_text())
    info: dict[str, Any] = {
        "host": platform.node(),
        "time": time.time(),
        "python": platform.python_version(),
        "missing": [path for path in question["paths"] if not Path(path).exists()],
        "server_error": server_error(question["server"]) if question["server"] else None,
    }
    start = time.monotonic()
    try:
        import torch

        info["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        info["torch"] = torch.__version__
    except Exception as error:
        info |= {"torch": None, "torch_error": " ".join(str(error).split())[:300]}
    info["torch_seconds"] = time.monotonic() - start
    replace_file(folder / ANSWER, json.dumps(info), durable=True)


if __name__ == "__main__":
    collect_node_info(Path(sys.argv[1]))
