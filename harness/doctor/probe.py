"""One trivial job that looks at what cannot be seen from a login node: `python -m harness.doctor.probe FOLDER`."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.doctor.cluster import classes
from harness.doctor.findings import Finding, ok, problem, warning
from harness.doctor.machine import nearest
from harness.doctor.store import server_error
from harness.errors import LaunchError
from harness.launch.planning import Plan
from harness.records.files import replace_file
from harness.records.lock import STALE_SECONDS
from harness.slurm import probe as errand
from harness.slurm.profile import Profile
from harness.spec.resources import Resources
from harness.tracking.store import store_uri

QUESTION = "question.json"


def run_trivial_job(
    profile: Profile, plan: Plan | None, runs_folder: Path, timeout_seconds: float
) -> Iterator[Finding]:
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
            sent = errand.run_probe_job(
                "harness.doctor.probe", folder, resources, profile, minutes=5, timeout_seconds=timeout_seconds
            )
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


if __name__ == "__main__":
    look_around(Path(sys.argv[1]))
