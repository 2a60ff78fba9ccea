"""Examine this machine: Python, torch, cores, memory, disk, data and feature extractors."""

from __future__ import annotations

import getpass
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness.data.cache import cache_root
from harness.data.folder import describe
from harness.doctor.findings import Finding, ok, one_line, problem, warning
from harness.errors import HarnessError
from harness.launch.planning import Plan
from harness.launch.processes import available_cores
from harness.metrics.weights import WEIGHTS, is_official, require_weights_file, weights_file
from harness.records.files import replace_file
from harness.spec.evaluation import WITH_FEATURES
from harness.text import count, harness_command, size

LITTLE_DISK_GIB = 5
LITTLE_CACHE_GIB = 1
TOOL_SECONDS = 30  # for quota, lfs and df, which may hang with their server
SHARED_FILE_SYSTEMS = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "afs", "fuse.glusterfs")


def check_runs_folder(folder: Path, plan: Plan | None) -> Iterator[Finding]:
    """Check that the runs folder can be written and has space for the checkpoints."""
    existing = nearest_folder(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=existing) as scratch:
            replace_file(Path(scratch) / "renamed", "whole", durable=True)
    except OSError as error:
        yield problem(
            f"runs folder {folder}: cannot be written ({error.strerror}); choose another by --runs or HARNESS_RUNS"
        )
        return
    free, of_what = free_space(existing)
    sizes = [plan.checkpoint_bytes(planned) for planned in plan.runs] if plan else []
    needed = sum(filter(None, sizes))
    clean = harness_command("clean", runs_folder=folder)
    state = f"runs folder {folder}: can be written; {size(free)} {of_what} are free"
    if needed > free:
        yield problem(
            f"{state}, but the checkpoints of the study take {size(needed)}: `{clean}` shows what can be deleted"
        )
    elif free < LITTLE_DISK_GIB * 2**30:
        yield warning(f"{state}; that is little: `{clean}` shows what can be deleted")
    elif plan and None in sizes:
        calibrate = harness_command("calibrate", plan.study.path, runs_folder=folder)
        yield ok(f"{state}; `{calibrate}` measures what checkpoints will take")
    else:
        yield ok(state + (f", the checkpoints of the study take {size(needed)}" if needed else ""))


def free_space(folder: Path) -> tuple[int, str]:
    """Return the bytes that are free for this user, and whether the disk or the quota sets the limit."""
    on_disk, quota = shutil.disk_usage(folder).free, quota_left(folder)
    return (quota, "of your quota") if quota is not None and quota < on_disk else (on_disk, "of the disk")


def nearest_folder(path: Path) -> Path:
    """Return the path itself, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def quota_left(folder: Path) -> int | None:
    """Return the bytes that are left of the user's quota; None where no tool reports one."""
    if shutil.which("lfs"):
        left = parse_quota(_run("lfs", "quota", "-q", "-u", getpass.getuser(), str(folder)), None)
        if left is not None:
            return left
    if shutil.which("quota"):
        device = _run("df", "--output=source", str(folder)).split()[-1:]
        return parse_quota(_run("quota", "-w"), device[0] if device else "")
    return None


def _run(*command: str) -> str:
    """Return a program's output; empty where it is missing or does not answer."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TOOL_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def parse_quota(text: str, device: str | None) -> int | None:
    """Parse `quota -w` or `lfs quota -q`: file system, used, quota and limit in KiB; 0 is no limit, * marks excess.

    Args:
        device: the file system whose line is used; None takes the first line.

    Returns:
        The bytes that are left; None where there is no limit.
    """
    for line in re.sub(r"\n\s+(?=\d)", " ", text).splitlines():  # a long name is on a line of its own
        words = line.split()
        numbers = [word.strip("*[]") for word in words[1:4]]
        if len(numbers) == 3 and all(map(str.isdigit, numbers)) and device in (None, words[0]):
            used, soft, hard = map(int, numbers)
            limit = soft or hard
            return max(0, limit - used) * 1024 if limit else None
    return None


def file_system(path: Path) -> str:
    """Return the type of file system of a path: ext4, nfs4, lustre."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    folder = nearest_folder(path.parent).resolve()
    matches = [(len(mount), kind) for mount, kind in mounts if folder.is_relative_to(mount)]
    return max(matches, default=(0, "unknown"))[1]


def check_data(plan: Plan) -> Iterator[Finding]:
    """Load each data set of a study, and account for what it holds."""
    from harness.datasets import make_dataset

    for data, root in dict.fromkeys((planned.run.spec.data, planned.run.data_root) for planned in plan.runs):
        try:
            dataset = make_dataset(data, root)
        except HarnessError as error:
            yield problem(f"data: {one_line(str(error))}")
        else:
            state = f"data {data.name}: {describe(dataset.account)}; digest {dataset.digest[:12]}"
            odd = dataset.account.get("num_ignored") or dataset.account.get("note") or dataset.account.get("duplicates")
            yield warning(state) if odd else ok(state)


def check_cache() -> Iterator[Finding]:
    """Check that the cache of scaled images, classifiers and features can be written, and has space."""
    try:
        root = cache_root()
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=nearest_folder(root)):
            pass
    except (HarnessError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        yield problem(f"the cache cannot be written ({reason}); set HARNESS_CACHE to a folder that can")
        return
    free, of_what = free_space(nearest_folder(root))
    state = f"cache {root}: can be written; {size(free)} {of_what} are free"
    if free < LITTLE_CACHE_GIB * 2**30:
        yield warning(
            f"{state}; that is little: HARNESS_CACHE names a folder elsewhere, such as scratch or project space"
        )
    else:
        yield ok(state)


def check_extractors(plan: Plan) -> Iterator[Finding]:
    """Read the weights of the feature extractors that a study's evaluations use."""
    extractors = {
        getattr(evaluation, part).extractor
        for planned in plan.runs
        for evaluation in planned.run.evaluations
        for part in WITH_FEATURES
        if getattr(evaluation, part)
    }
    for extractor in WEIGHTS:
        try:
            if extractor in extractors:
                yield _check_weights(extractor)
            else:
                weights_file(extractor)
        except HarnessError as error:
            yield problem(one_line(str(error)))
    if without := extractors - set(WEIGHTS):
        yield ok(f"extractors without weights from elsewhere: {', '.join(sorted(without))}")


def _check_weights(extractor: str) -> Finding:
    from harness.metrics.features import READERS

    path, network = require_weights_file(extractor), WEIGHTS[extractor].network
    READERS[extractor](path)
    official = is_official(extractor, path)
    if official is None:
        return ok(f"weights of {network}: {path} fit; no checksum of them is published")
    if official:
        return ok(f"weights of {network}: {path}")
    return warning(f"weights of {network}: {path} fit, but are not the published ones: numbers cannot be compared")


def check_python() -> Finding:
    """Report the Python version and path."""
    return ok(f"python {platform.python_version()} at {sys.executable}")


def check_torch(plan: Plan | None) -> Finding:
    """Import torch, and check its devices against a study's request."""
    start = time.monotonic()
    try:
        import torch
    except ImportError as error:
        return problem(f"torch cannot be imported ({error}): pip install -e . in the environment of this python")
    seconds = time.monotonic() - start
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    devices = ", ".join(gpus) or "no CUDA device, so the CPU is used"
    state = f"torch {torch.__version__}, imported in {seconds:.1f} s; {devices}"
    if plan and not gpus and any(planned.run.resources.device == "cuda" for planned in plan.runs):
        return problem(f"{state}; but the study says resources.device: cuda; use auto or cpu, or another machine")
    return ok(state)


def check_cores_and_memory(plan: Plan | None) -> Finding:
    """Check the free memory against a study's request."""
    import psutil

    cores, free = available_cores(), psutil.virtual_memory().available
    state = f"{count(cores, 'core')}, {size(free)} of memory free"
    needed_gib = max((planned.run.resources.memory_gib for planned in plan.to_do), default=0) if plan else 0
    if needed_gib * 2**30 > free:
        return warning(f"{state}; a run of the study asks for {needed_gib:g} GiB: close other programs")
    return ok(state)
