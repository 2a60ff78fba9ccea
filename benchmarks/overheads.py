"""What the harness costs beside the science: `python -m benchmarks.overheads`, some minutes, most to write records.

Each line is a process of its own: seconds of a core and on the clock, and peak memory. The processor's seconds are what
to compare, since the clock also counts what else the machine does, and its disk.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
HARNESS = (sys.executable, "-m", "harness.cli")

STUDY = """
study: {name}
extends: {base}
grid: {{optim.lr: [{rates}], train.steps: [{steps}]}}
replicates: {replicates}
evaluate: [{{nll: {{}}, fidelity: {{num_samples: 500, num_steps: 50}}}}]
"""


class Cost(NamedTuple):
    """What a process took."""

    core_seconds: float
    clock_seconds: float
    peak_mib: float


def cost(*command: str, repeats: int = 3) -> Cost:
    """Return the medians of a command's costs."""
    costs = [_cost_once(command) for _ in range(repeats)]
    return Cost(*map(statistics.median, zip(*costs, strict=True)))


def _cost_once(command: tuple[str, ...]) -> Cost:
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)[:200]} failed: {output.read().decode(errors='replace')[-2000:]}")
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - began, usage.ru_maxrss / 1024)


def write_study(folder: Path, name: str, *, rates: int, lengths: int, replicates: int) -> Path:
    """Write a study of rates x lengths arms, with replicates."""
    file = folder / f"{name}.yaml"
    text = STUDY.format(
        name=name,
        base=ROOT / "experiments/base/digits.yaml",
        rates=", ".join(f"{1e-4 * (1 + i / 100):.6f}" for i in range(rates)),
        steps=", ".join(str(1000 + i) for i in range(lengths)),
        replicates=replicates,
    )
    file.write_text(text)
    return file


def write_records(study: Path, runs_folder: Path) -> None:
    """Write the runs of a study as done, each with twenty lines in its journal."""
    from harness import testing
    from harness.job.writer import record_evaluation
    from harness.records.manifest import ask_for
    from harness.records.status import Status
    from harness.study.expand import load_study

    runs = load_study(study).runs
    ask_for(runs_folder, study.stem, {run.run_key: run.membership() for run in runs}, file=study)
    for run in runs:
        directory, steps = testing.write_run(run, runs_folder), run.spec.train.steps
        with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
            for line in range(20):
                journal.metrics(line, {"train/loss": 0.5, "train/mse": 0.5, "perf/steps_per_second": 50.0})
            for evaluation in run.evaluations:
                result = testing.fake_result(evaluation, run.spec, {"nll_bpd": 3.0, "fid": 30.0})
                record_evaluation(directory, journal, evaluation, evaluation.name, result, steps)
            journal.event("finished", reason="")
        directory.set_status(Status("done", step=steps, num_steps=steps, attempt=1))


SUBMIT = """
import sys
from pathlib import Path
from harness.launch.planning import plan
from harness.launch.submit import submit
from harness.study.expand import load_study
planned = plan(load_study(sys.argv[1]), Path(sys.argv[2]))
assert len(submit(planned, cluster="local", sync=False).runs) == len(planned.runs)  # workers start with wait()
"""

FIRST_STEP = """
import os, sys
from pathlib import Path
sys.stdout = open(os.devnull, "w")
import harness.job.job as job
from harness.records.directory import RunDirectory
from harness.study.expand import load_study
run = load_study(sys.argv[1], sets=["train.steps=1", "model.channels=8"]).runs[0]
directory = RunDirectory(Path(sys.argv[2]) / str(os.getpid()) / run.run_key)
directory.register(run)
stop = lambda *_, **__: os._exit(0)
if sys.argv[3] == "first":
    import harness.training.loop as loop
    loop.save = stop  # the step is taken
job.run_job(directory.path, threads=1, sync=False, show_progress=False)
"""


def show(label: str, of: Cost) -> None:
    print(
        f"{label:45s} {of.core_seconds:8.2f} s of a core   {of.clock_seconds:7.2f} s   {of.peak_mib:6.0f} MiB",
        flush=True,
    )


def main(folder: Path) -> None:
    python = (sys.executable, "-c")
    show("an empty interpreter", cost(*python, "pass", repeats=7))
    show("harness --help", cost(*HARNESS, "--help", repeats=7))
    runs = str(folder / "runs")
    seeds = write_study(folder, "seeds", rates=100, lengths=10, replicates=10)
    show("plan of 10,000 runs: 1,000 arms of 10 seeds", cost(*HARNESS, "plan", str(seeds), "--runs", runs))
    arms = write_study(folder, "arms", rates=100, lengths=100, replicates=1)
    show("plan of 10,000 runs: 10,000 arms", cost(*HARNESS, "plan", str(arms), "--runs", runs))
    thousand = write_study(folder, "thousand", rates=100, lengths=1, replicates=10)
    command = (*python, SUBMIT, str(thousand))
    show("submit of 1,000 runs, without the jobs", cost(*command, str(folder / "submitted"), repeats=1))
    show("the same again: all are registered", cost(*command, str(folder / "submitted")))
    show("import torch", cost(*python, "import torch"))
    show("import of a job", cost(*python, "import harness.job.job"))
    digits = str(ROOT / "experiments/base/digits.yaml")
    show("a job to the end of its first step", cost(*python, FIRST_STEP, digits, str(folder / "jobs"), "first"))
    show("a job of one step, whole", cost(*python, FIRST_STEP, digits, str(folder / "jobs"), "whole"))
    done = write_study(folder, "done", rates=100, lengths=2, replicates=10)
    write_records(done, folder / "finished")
    show("status of 2,000 runs", cost(*HARNESS, "status", "done", "--runs", str(folder / "finished")))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
