"""What it costs to bring a study into MLflow: `python -m benchmarks.mlflow [RUNS ROWS]`, 200 of 500 unless told.


Writes the records of a study with four replicates an arm, uploads them to a new SQLite store, and prints processor time
and wall time of the first sync, of its repetition and of one after a single run has changed; beside them, what MLflow
itself takes for the same rows in the largest batches that it accepts.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from harness.records.directory import RunDirectory
from harness.records.manifest import Manifests, ask_for
from harness.records.status import Status
from harness.tracking.store import MAX_METRICS_PER_BATCH, import_mlflow, initialise_store
from harness.tracking.studies import sync_studies
from harness.tracking.sync import sync_runs

STUDY, REPLICATES, KEYS = "many", 4, 5


def write_runs(runs_folder: Path, num_runs: int, num_rows: int) -> None:
    """Write the records of a study as jobs do."""
    places = {}
    for number in range(num_runs):
        arm, replicate = f"arm-{number // REPLICATES:03d}", number % REPLICATES
        run = RunDirectory(runs_folder / f"{number + 1:016x}").create({"seed": replicate, "arm": arm}, 1)
        places[run.key] = {"arm": arm, "replicate": replicate, "evaluations": []}
        run.add_to_study(STUDY, places[run.key])
        write_rows(run, num_rows // KEYS, 2.0 + replicate / 10 + number / num_runs)
    ask_for(runs_folder, STUDY, places)


def write_rows(run: RunDirectory, num_steps: int, nll: float) -> None:
    """Write one more attempt of a run, which begins at step 0."""
    with run.lock(), run.open_journal(resumed_from_step=0) as journal:
        for step in range(1, num_steps + 1):
            journal.metrics(step, {f"train/metric_{i}": step / 7 + i for i in range(KEYS)})
        journal.metrics(num_steps, {"eval/nll_bpd": nll})
        journal.event("checkpoint", step=num_steps)
        run.set_status(Status("done", step=num_steps, num_steps=num_steps, attempt=journal.attempt))


def upload(runs_folder: Path, uri: str) -> int:
    """Do what `harness sync` does; return the number of rows that were sent."""
    directories = Manifests(runs_folder).runs(STUDY)
    num_rows = 0
    for _, report in sync_runs(directories, tracking_uri=uri):
        assert not isinstance(report, Exception), report
        num_rows += sum(study.num_rows_sent for study in report.studies.values())
    sync_studies(directories, tracking_uri=uri)
    return num_rows


def log_alone(uri: str, num_runs: int, num_rows: int) -> int:
    """Log as many rows with MLflow alone, into runs without params, tags and files."""
    mlflow = import_mlflow()
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment_id = client.create_experiment("alone")
    for _ in range(num_runs):
        run_id = client.create_run(experiment_id).info.run_id
        metrics = [
            mlflow.entities.Metric(f"train/metric_{i}", step / 7 + i, 1000 + step, step)
            for step in range(num_rows // KEYS)
            for i in range(KEYS)
        ]
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS_PER_BATCH])
        client.set_terminated(run_id)
    return num_runs * num_rows


def measure(label: str, action: Callable[[], int]) -> float:
    """Print how long an action takes and how many rows it sends; return its processor time in seconds."""
    began, processor = time.perf_counter(), time.process_time()
    num_rows = action()
    taken, processor = time.perf_counter() - began, time.process_time() - processor
    rate = f"{num_rows / processor:9,.0f} rows a second of processor time" if num_rows else ""
    print(f"{label:45s} {taken:8.1f} s   {processor:8.1f} s of the processor   {num_rows:8,d} rows {rate}", flush=True)
    return processor


def main() -> None:
    num_runs, num_rows = (int(argument) for argument in sys.argv[1:3]) if len(sys.argv) > 2 else (200, 500)
    with tempfile.TemporaryDirectory() as folder:
        runs_folder, uri = Path(folder) / "runs", f"sqlite:///{folder}/mlflow.db"
        write_runs(runs_folder, num_runs, num_rows)
        initialise_store(uri)
        alone = measure(f"MLflow alone, {num_runs:,} runs", lambda: log_alone(uri, num_runs, num_rows))
        first = measure("first sync", lambda: upload(runs_folder, uri))
        again = measure("repeated", lambda: upload(runs_folder, uri))
        write_rows(Manifests(runs_folder).runs(STUDY)[0], num_rows // KEYS, 1.0)
        changed = measure("after one run was trained again", lambda: upload(runs_folder, uri))
    print(f"{'first sync':45s} {first / alone:8.2f} x MLflow alone")
    print(f"{'repeated':45s} {again / first:8.1%} of the first, {1000 * again / num_runs:.1f} ms a run")
    print(f"{'one of them changed':45s} {changed / first:8.1%} of the first")


if __name__ == "__main__":
    main()
