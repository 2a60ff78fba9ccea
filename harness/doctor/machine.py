"""This machine: Python, torch, cores, memory, disk, data and feature extractors."""

from __future__ import annotations

import getpass
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness.doctor.findings import Finding, ok, one_line, problem, run_program, warning
from harness.errors import HarnessError
from harness.launch.planning import Plan
from harness.launch.processes import available_cores
from harness.records.files import replace_file
from harness.text import count, size

LITTLE_DISK_GIB = 5


SHARED_FILE_SYSTEMS = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "afs", "fuse.glusterfs")


def check_runs_folder(folder: Path, plan: Plan | None) -> Iterator[Finding]:
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
        done = run_program("lfs", "quota", "-q", "-u", getpass.getuser(), str(folder))
        if done.returncode == 0 and (left := read_quota(done.stdout, None)) is not None:
            return left
    if shutil.which("quota"):
        source = run_program("df", "--output=source", str(folder)).stdout.split()[-1:]
        return read_quota(run_program("quota", "-w").stdout, source[0] if source else "")
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


def file_system(path: Path) -> str:
    """Return the kind of file system that a path lies on: ext4, nfs4, lustre."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    path = nearest(path.parent).resolve()
    above = [(len(where), kind) for where, kind in mounts if path.is_relative_to(where)]
    return max(above, default=(0, "unknown"))[1]


def check_data(plan: Plan) -> Iterator[Finding]:
    from harness.registry import make_dataset

    for data, root in dict.fromkeys((planned.run.spec.data, planned.run.data_root) for planned in plan.runs):
        try:
            found = make_dataset(data, root)
        except HarnessError as error:
            yield problem(f"data: {one_line(str(error))}")
        else:
            yield ok(
                f"data {data.name}: {len(found.train.images)} images to train on, {len(found.test.images)} to test"
            )


def check_extractors(plan: Plan) -> Iterator[Finding]:
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


def check_python() -> Finding:
    return ok(f"python {platform.python_version()} at {sys.executable}")


def check_torch(plan: Plan | None) -> Iterator[Finding]:
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


def check_cores_and_memory(plan: Plan | None) -> Iterator[Finding]:
    import psutil

    cores, free = available_cores(), psutil.virtual_memory().available
    said = f"{count(cores, 'core')}, {size(free)} of memory free"
    need = max((planned.run.resources.memory_gib for planned in plan.to_do), default=0) if plan else 0
    if need * 2**30 > free:
        yield warning(f"{said}; a run of the study says that it needs {need:g} GiB: close what else is open")
    else:
        yield ok(said)
