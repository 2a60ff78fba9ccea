"""How long figures take: `python -m benchmarks.report`, some minutes, most of them to write the records.

Draws 1,000 runs with real journals, arrays and pictures by `harness figures`, each time as a process of its own: first
into an empty folder, then with nothing changed, and then with one run changed. `python -m benchmarks.report FOLDER`
keeps records and figures in a folder, and takes the records that are there.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NUM_STUDIES, NUM_RATES, NUM_SEEDS, NUM_LINES = 10, 10, 5, 1000
STUDY = """
study: drawn-{number}
extends: {base}
seed: {seed}
grid:
  diffusion.schedule: [linear, cosine]
  optim.lr: [{rates}]
train: {{steps: {steps}}}
replicates: {replicates}
evaluate:
  - {{name: eval, nll: {{}}, fidelity: {{num_samples: 500, num_steps: 50}}, grid: 36}}
"""


def write_records(folder: Path) -> int:
    """Write the runs of the studies, 20 arms of five seeds each; return their number."""
    from harness.records.manifest import ask_for
    from harness.study.expand import load_study

    written = 0
    for number in range(NUM_STUDIES):
        file = folder / f"drawn-{number}.yaml"
        rates = ", ".join(f"{1e-4 * 1.5**i:.3e}" for i in range(NUM_RATES))
        base, steps = ROOT / "experiments/base/digits.yaml", 10 * NUM_LINES
        file.write_text(
            STUDY.format(number=number, base=base, seed=100 * number, rates=rates, steps=steps, replicates=NUM_SEEDS)
        )
        runs = load_study(file).runs
        asked = {run.run_key: run.membership() for run in runs}
        ask_for(folder / "runs", f"drawn-{number}", asked, file=file)
        for run in runs:
            _write_run(run, folder / "runs")
        written += len(runs)
    return written


def _write_run(run, runs: Path) -> None:
    """Write a finished run whose values depend on its arm and seed, with a line of the log every ten steps."""
    import numpy as np

    from harness import testing
    from harness.job.writer import record_evaluation
    from harness.records.status import Status

    spec, directory = run.spec, testing.write_run(run, runs)
    draw = np.random.default_rng([spec.seed, int(run.run_key[:8], 16)])
    level = 3 + 0.01 * spec.seed % 0.05 + 0.1 * (spec.diffusion.schedule.name == "linear") + 0.01 * draw.normal()
    directory.write_environment(1, {"harness": "1.2.3", "threads": 1, "data_digest": "0" * 64})
    with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
        for step in range(10, spec.train.steps + 1, 10):
            loss = 1 / step**0.5 * (1 + 0.05 * draw.normal())
            values = {"train/loss": loss, "train/mse": loss, "train/vb": loss / 100, "train/grad_norm_preclip": loss}
            journal.metrics(step, values | {"perf/steps_per_second": 50 + draw.normal()})
        journal.event("checkpoint", step=spec.train.steps)
        for evaluation in run.evaluations:
            result = testing.fake_result(evaluation, spec, {"nll_bpd": level, "fid": 10 * level})
            record_evaluation(directory, journal, evaluation, evaluation.name, result, spec.train.steps)
        journal.event("finished", reason="")
    directory.set_status(Status("done", step=spec.train.steps, num_steps=spec.train.steps, attempt=1))


def draw(folder: Path, label: str = "") -> None:
    """Draw the figures in a process of its own; print its seconds, and those of all its processes on a core."""
    command = (sys.executable, "-m", "harness.cli", "figures", "--runs", str(folder / "runs"))
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run((*command, "--out", str(folder / "figures")), check=True, capture_output=True, cwd=ROOT)
    taken, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if label:
        print(f"{label:45s} {taken:8.2f} s   {busy:.1f} s of a core, of {os.cpu_count()}", flush=True)


def report(folder: Path) -> None:
    if not (folder / "runs").exists():
        write_records(folder)
    num_runs = sum(1 for _ in (folder / "runs").glob("[!.]*/spec.json"))
    shutil.rmtree(folder / "figures", ignore_errors=True)
    draw(folder, f"figures of {num_runs:,} runs, at first")
    time.sleep(3)  # what was written a moment ago has no stamp yet
    draw(folder)
    draw(folder, "figures again, nothing has changed")
    status = next((folder / "runs").glob("[!.]*/status.json"))
    status.write_bytes(status.read_bytes().replace(b'"done"', b'"failed"'))
    draw(folder, "figures again, one run has changed")
    status.write_bytes(status.read_bytes().replace(b'"failed"', b'"done"'))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        report(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            report(Path(temporary))
