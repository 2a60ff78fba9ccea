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

ROOT = Path(__file__).resolve().parents[1]
HARNESS = str(Path(sys.executable).with_name("harness"))


def seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """Return the median duration of an action, after one that is not counted."""
    action()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def command(*arguments: str) -> Callable[[], object]:
    return lambda: subprocess.run(arguments, check=True, capture_output=True, cwd=ROOT)


def command_line(folder: Path) -> None:
    """Whole processes, the interpreter's start included."""
    thousand = folder / "thousand.yaml"
    digits = ROOT / "experiments/base/digits.yaml"
    rates = ", ".join(f"{1e-4 * (1 + i / 100):.6f}" for i in range(100))
    thousand.write_text(
        f"study: thousand\nextends: {digits}\ngrid: {{optim.lr: [{rates}]}}\nreplicates: 10\n"
        "evaluate:\n  - {nll: {}, fidelity: {num_samples: 500, num_steps: 50}}\n"
    )
    bare = seconds(command(sys.executable, "-c", "pass"))
    for label, arguments in {
        "harness --help": ("--help",),
        "harness plan --json, 1,000 new runs": ("plan", str(thousand), "--json", "--runs", str(folder / "runs")),
    }.items():
        taken = seconds(command(HARNESS, *arguments))
        print(f"{label:45s} {taken:8.3f} s   {taken / bare:6.1f} x an empty interpreter")


def records(folder: Path) -> None:
    """The journal, beside a training step of the laptop's network."""
    import torch

    from harness.randomness import Streams
    from harness.records.directory import RunDirectory
    from harness.registry import make_dataset, make_method
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

    Of 4,000 x 4,000 features of 2,048 dimensions; `python -m benchmarks.run neighbours 50000` takes as many as papers.
    """
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 4000
    measured = {}
    for label in ("by blocks", "torch-fidelity"):
        arguments = (sys.executable, "-c", _NEIGHBOURS, label, str(count))
        printed = subprocess.run(arguments, check=True, capture_output=True, cwd=ROOT, text=True).stdout
        taken, mib, precision, recall = map(float, printed.split())
        measured[label] = (taken, precision, recall)
        print(f"{f'{count:,} x {count:,} neighbours, {label}':45s} {taken:8.1f} s   {mib:6.0f} MiB beside the features")
    ours, theirs = measured.values()
    same = "the same" if ours[1:] == theirs[1:] else f"{ours[1:]} and {theirs[1:]}"
    print(f"{'':45s} {theirs[0] / ours[0]:8.2f} x as fast; precision and recall are {same}")


_NEIGHBOURS = """
import resource, sys, time, torch
from harness.metrics.fidelity import precision_recall
from harness.metrics.torchvision_compat import torch_fidelity
label, count = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
theirs = torch_fidelity().metric_prc.prc_features_to_metric
generator = torch.Generator().manual_seed(0)
# As those of images, the features vary in few directions: without that nothing is near to anything.
basis = torch.randn(16, 2048, generator=generator)
reference, samples = (
    (torch.randn(count, 16, generator=generator) * scale @ basis).relu_() for scale in (1.0, 0.9)
)
precision_recall(reference[:100], samples[:100], 3)
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
if label == "by blocks":
    shares = precision_recall(reference, samples, 3)
else:
    shares = theirs(samples, reference, prc_neighborhood=3, prc_batch_size=10_000, save_cpu_ram=True, verbose=False)
taken = time.perf_counter() - began
mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(taken, mib, shares["precision"], shares["recall"])
"""


def main() -> None:
    if sys.argv[1:2] == ["neighbours"]:
        return neighbours(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        command_line(Path(folder))
        records(Path(folder))
        reading(Path(folder))
        sync(Path(folder))
        neighbours(Path(folder))


if __name__ == "__main__":
    main()
