"""Benchmarks, measured in one run: `make bench`. Ratios are comparable between machines, seconds are not.

Prints a table; nothing here is asserted, since machines are noisy.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import overheads

ROOT = Path(__file__).resolve().parents[1]


def seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """Return the median duration of an action, after one that is not counted."""
    action()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def records(folder: Path) -> None:
    """The journal, beside a training step of the laptop's network."""
    import torch

    from harness.datasets import make_dataset
    from harness.randomness import Streams
    from harness.records.directory import RunDirectory
    from harness.registry import make_method
    from harness.spec.resources import Resources
    from harness.study.expand import load_study
    from harness.training.batches import Batches
    from harness.training.distributed import ProcessGroup
    from harness.training.loop import Training

    torch.set_num_threads(1)
    run = load_study(ROOT / "experiments/base/digits.yaml").runs[0]
    data, cpu = make_dataset(run.spec.data), torch.device("cpu")
    training = Training(run.spec, make_method(run.spec, data, Resources(), cpu), cpu)
    streams, window, group = Streams(0), training.window, ProcessGroup()
    batches = Batches(run.spec, data, streams)
    step = seconds(lambda: training.method.step(0, batches(0), streams, group), 20)
    output = training.method.step(0, batches(0), streams, group)
    directory = RunDirectory(folder / "runs" / run.run_key).create(run.resolved, 1)
    values = {f"train/metric_{i}": 0.5 for i in range(10)}
    with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
        append = seconds(lambda: journal.metrics(1, values), 500) / len(values)

    def around_a_step() -> None:
        batches(0)
        streams.normal("noise", 0, (64, 1, 8, 8))
        window.add(0, output)

    around = seconds(around_a_step, 50)
    print(f"{'training step, 64 images of 8x8, one thread':45s} {step:8.3f} s   {64 / step:6.0f} images a second")
    print(f"{'journal, one metric':45s} {1e6 * append:8.1f} us  {append / step:8.4%} of a step")
    print(f"{'data, noise and sums around a step':45s} {1e3 * around:8.2f} ms  {around / step:8.2%} of a step")


def reading(folder: Path) -> None:
    """What a table of runs and a submission read: statuses, and the code that a snapshot holds already."""
    from harness.records import snapshot
    from harness.records.directory import RunDirectory
    from harness.records.status import Status

    directories = [RunDirectory(folder / "statuses" / f"{number:012d}") for number in range(1000)]
    for directory in directories:
        directory.path.mkdir(parents=True)
        directory.set_status(Status("running", step=3, num_steps=9))
        with directory.lock():
            pass
    statuses = seconds(lambda: [directory.status() for directory in directories])
    take = seconds(lambda: snapshot.take(folder / "snapshots"))
    print(f"{'1,000 statuses of runs that were killed':45s} {statuses:8.3f} s   {1e6 * statuses / 1000:.0f} us each")
    print(f"{'snapshot of code that is there already':45s} {take:8.3f} s")


def sync(folder: Path) -> None:
    """From the journal into a new SQLite store of MLflow, and once more when there is nothing new."""
    from harness.records.directory import RunDirectory
    from harness.records.status import Status
    from harness.tracking.store import initialise_store
    from harness.tracking.sync import sync_run

    uri, num_lines, values = f"sqlite:///{folder / 'mlflow.db'}", 2000, {f"train/metric_{i}": 0.5 for i in range(10)}
    initialise_store(uri)
    directory = RunDirectory(folder / "synced").create({"seed": 0}, 1)
    directory.add_to_study("bench", {"arm": "a", "replicate": 0})
    with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
        directory.set_status(Status("done", attempt=1))
        journal.metrics(0, {"train/first": 0.5})
        sync_run(directory, tracking_uri=uri)  # makes the experiment and the run
        for step in range(1, num_lines + 1):
            journal.metrics(step, values)
    for label in ("first time", "repeated"):
        began = time.perf_counter()
        sent = sum(study.num_rows_sent for study in sync_run(directory, tracking_uri=uri).studies.values())
        taken = time.perf_counter() - began
        print(f"{f'sync into SQLite, {label}':45s} {taken:8.3f} s   {sent} rows, {sent / taken:,.0f} a second")


def neighbours(folder: Path) -> None:
    """Precision and recall by blocks beside torch-fidelity's, each in a process of its own: time, and peak memory.

    Of 4,000 x 4,000 features of 2,048 dimensions; `python -m benchmarks.run neighbours 6000` takes other numbers.
    """
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 4000
    measured = {}
    for label in ("by blocks", "torch-fidelity"):
        taken, mib, *shares = _measure_features(label, count, 2048)
        measured[label] = (taken, mib, shares)
        label = f"{count:,} x {count:,} neighbours, {label}"
        print(f"{label:45s} {taken:8.1f} s   {mib:6.0f} MiB beside the features")
    ours, theirs = measured.values()
    same = "the same" if ours[2] == theirs[2] else f"{ours[2]} and {theirs[2]}"
    print(
        f"{'':45s} {theirs[0] / ours[0]:8.2f} x as fast, {ours[1] / theirs[1]:.2f} of the memory; precision and recall "
        f"are {same}"
    )


def memory() -> None:
    """Peak memory of each metric beside its features, each in a process of its own, at the papers' size.

    Of 50,000 x 50,000 features of 2,048 dimensions; `python -m benchmarks.run memory 6000 64` takes other numbers.
    Balls (precision, recall, density, coverage) are measured whole, which takes ten minutes, and by the first blocks on
    and off the diagonal. What takes an hour is stopped after its first blocks: the others are like them.
    """
    count, dim = (int(argument) for argument in sys.argv[2:4]) if len(sys.argv) > 2 else (50_000, 2048)
    labels = [
        "balls, whole",
        "balls, first blocks",
        "nearest neighbours, first blocks",
        "KID, first blocks",
        "MIND",
        "FID",
        "FID in the limit",
    ]
    for label in labels:
        taken, mib, *_ = _measure_features(label, count, dim)
        print(f"{f'{count:,} x {count:,} x {dim:,}, {label}':60s} {taken:8.1f} s   {mib:6.0f} MiB beside the features")


def _measure_features(label: str, count: int, dim: int) -> list[float]:
    """Measure features in a process of its own: seconds, MiB beside the features, and the values."""
    arguments = (sys.executable, "-c", _OF_FEATURES, label, str(count), str(dim))
    printed = subprocess.run(arguments, check=True, capture_output=True, cwd=ROOT, text=True).stdout
    return [float(value) for value in printed.split()]


_OF_FEATURES = """
import itertools, sys, time, torch
from pathlib import Path
from harness.metrics import divergences, fidelity, frechet, neighbours
from harness.metrics.torchvision_compat import torch_fidelity
label, count, dim = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
theirs = torch_fidelity().metric_prc.prc_features_to_metric
generator = torch.Generator().manual_seed(0)
# As those of images, the features vary in few directions: without that nothing is near to anything.
basis = torch.randn(16, dim, generator=generator)
reference, samples = (
    (torch.randn(count, 16, generator=generator) * scale @ basis).relu_() for scale in (1.0, 0.9)
)
if label.endswith("first blocks"):
    blocks, sums = neighbours._blocks, divergences._kernel_sums
    neighbours._blocks = lambda *args, **kwargs: itertools.islice(blocks(*args, **kwargs), 2)
    divergences._kernel_sums = lambda first, second: sums(first, second[: 2 * divergences._BLOCK])
    divergences.range = lambda *args: range(*args)[:1]  # rows
actions = {
    "torch-fidelity": lambda a, b: theirs(
        b, a, prc_neighborhood=3, prc_batch_size=10_000, save_cpu_ram=True, verbose=False
    ),
    "nearest neighbours, first blocks": lambda a, b: neighbours.nearest_neighbours(b[:8192], a, 50),
    "KID, first blocks": divergences.kernel_distance,
    "MIND": divergences.monge_distance,
    "FID": fidelity.frechet_distance,
    "FID in the limit": frechet.frechet_infinity,
}
action = actions.get(label, lambda a, b: vars(neighbours.neighbourhoods(a, b, 3)))
action(reference[:100], samples[:100])

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

before, began = status("VmRSS"), time.perf_counter()
values = action(reference, samples)
taken = time.perf_counter() - began
shares = [values[name] for name in ("precision", "recall")] if isinstance(values, dict) else []
print(taken, status("VmHWM") - before, *shares)
"""


def main() -> None:
    if sys.argv[1:2] == ["neighbours"]:
        return neighbours(ROOT)
    if sys.argv[1:2] == ["memory"]:
        return memory()
    with tempfile.TemporaryDirectory() as folder:
        overheads.main(Path(folder))
        records(Path(folder))
        reading(Path(folder))
        sync(Path(folder))
        neighbours(Path(folder))


if __name__ == "__main__":
    main()
