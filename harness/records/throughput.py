"""What a training step was measured to cost, on which device: written by trainings and by `calibrate`, read by `plan`.

    runs/.throughput/<cost_key>-<digest of device and processes>.json

So an hour of a laptop never stands for an hour of a cluster's GPU: each device keeps a fact of its own. No torch.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.records.files import replace_file
from harness.records.layout import THROUGHPUT


@dataclass(frozen=True)
class Throughput:
    """A measured step of one cost class (`RunSpec.cost_key`)."""

    cost_key: str
    seconds_per_step: float
    device: str  # cpu or cuda
    device_name: str
    threads: int  # of each process
    num_processes: int = 1
    precision: str = "fp32"
    checkpoint_bytes: int | None = None
    measured_seconds: float = field(
        default=0.0, compare=False
    )  # Unix time, set when written; 0 in files from before it was


def record(runs_folder: Path, measured: Throughput) -> None:
    """Keep a fact in place of what was known of this cost class on this device."""
    folder = runs_folder / THROUGHPUT
    folder.mkdir(parents=True, exist_ok=True)
    device_digest = hashlib.sha256(f"{measured.device_name} x {measured.num_processes}".encode()).hexdigest()[:8]
    text = json.dumps(asdict(measured) | {"measured_seconds": time.time()}, indent=1)
    replace_file(folder / f"{measured.cost_key}-{device_digest}.json", text, durable=False)


def load(runs_folder: Path) -> dict[str, list[Throughput]]:
    """Return all facts by cost_key, the newest first."""
    # Files from before the time was in them are older than the others, and among themselves have their files' times.
    paths = sorted((runs_folder / THROUGHPUT).glob("[!.]*.json"), key=lambda path: -path.stat().st_mtime_ns)
    by_cost_key = defaultdict(list)
    for path in paths:
        values = json.loads(path.read_text())
        # Version 0.1 named the kind of device alone, and the cost_key by the file.
        measured = Throughput(**{"cost_key": path.stem, "device_name": values["device"], **values})
        by_cost_key[measured.cost_key].append(measured)
    for of_one_class in by_cost_key.values():
        of_one_class.sort(key=lambda measured: -measured.measured_seconds)
    return dict(by_cost_key)


def cpu_name() -> str:
    """Return the processor's name as its maker spells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
