"""Several processes train one run: to the same numbers as one, and whatever becomes of one of them, none hangs."""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from harness.job.job import run_job
from harness.job.signals import stop_number
from harness.launch.planning import plan
from harness.launch.submit import submit
from harness.records.directory import RunDirectory
from harness.study.model import Study
from harness.training.checkpoints import Checkpoints
from harness.training.distributed import ProcessGroup

LEARNING = (
    "objective: hybrid\ntimestep_sampler: {name: loss_second_moment, history_per_term: 2}\n",
    "diffusion.var_type=learned_range",
    "diffusion.num_timesteps=5",
    "data.horizontal_flip=true",
    "model.class_cond=true",
    "model.label_dropout=0.1",
)
CURVE = 2e-5  # the largest relative difference of any loss, of any part and quartile, or gradient norm on the way
LONG = ("train.steps=120", "records.checkpoint_every_seconds=0.2", "records.log_every=10")


@pytest.fixture
def run_of(tiny_run):
    """Return a function that writes a run directory for some number of processes."""

    def make(num_processes: int, *sets: str, extra: str = "", folder: str = "") -> Path:
        return tiny_run(
            extra, f"resources.processes_per_node={num_processes}", *sets, folder=folder or f"by_{num_processes}"
        )

    return make


def finish(folder: Path) -> dict[str, float]:
    """Work on a run until it is done; return its metrics."""
    assert run_job(folder, sync=False, show_progress=False) == "done", RunDirectory(folder).status().reason
    return metrics(folder)


def metrics(folder: Path) -> dict[str, float]:
    """Return a run's train/ metrics by name and step."""
    return {f"{row.key}@{row.x}": row.value for row in RunDirectory(folder).rows() if row.key.startswith("train/")}


def weights(folder: Path) -> torch.Tensor:
    """Return the EMA and the raw weights after the last step, as one vector.

    Without those that the loss does not depend on, such as a bias in front of a normalization: their gradients are
    rounding errors, of which Adam makes steps like any others.
    """
    checkpoint = Checkpoints(folder / "checkpoints").latest()
    assert checkpoint is not None
    state = checkpoint[1]["method"]
    squares = [moments["exp_avg_sq"] for moments in state["optimizer"]["state"].values()]
    kept = torch.cat([square.flatten() for square in squares]).sqrt() > 1e-9
    return torch.cat(
        [torch.cat([value.flatten() for value in state[part].values()])[kept] for part in ("network", "ema")]
    )


def largest_difference(one: dict[str, float], other: dict[str, float]) -> float:
    """Return the largest relative difference between two records of the same metrics."""
    assert one.keys() == other.keys() and one
    return max(abs(value - other[name]) / max(abs(value), 1e-12) for name, value in one.items())


@pytest.mark.parametrize(
    ("sampler", "sets", "num_processes"),
    [
        pytest.param(
            LEARNING,
            ("train.batch_size=13", "resources.microbatch=3", "optim.grad_clip=0.5"),
            2,
            id="hard",
            marks=pytest.mark.slow,
        ),
        pytest.param(LEARNING, ("train.batch_size=16",), 4, id="second_moment", marks=pytest.mark.slow),
        pytest.param(("",), ("train.batch_size=16",), 2, id="uniform", marks=pytest.mark.slow),
        pytest.param(("",), ("train.batch_size=13", "resources.microbatch=2"), 4, id="odd", marks=pytest.mark.slow),
    ],
)
def test_several_processes_reach_the_curve_and_the_weights_of_one(run_of, sampler, sets, num_processes):
    extra, *learning = sampler
    sets = (*learning, *sets, "records.log_every=1")
    alone = finish(one := run_of(1, *sets, extra=extra))
    together = finish(folder := run_of(num_processes, *sets, extra=extra))
    assert largest_difference(alone, together) < 1e-6  # measured: 2.4e-7
    assert (weights(one) - weights(folder)).abs().max() < 2e-6  # of steps of 1e-3; measured: 2.6e-7
    assert folder.name == one.name  # how many there are is no part of what a run is
    environment = RunDirectory(folder).environments()[0]
    assert environment["num_processes"] == num_processes == len(environment["hosts"])


# ------------------------------------------------------------------------------------------------------ what goes wrong


def wait_until(condition: Callable[[], Any], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@dataclass
class Job:
    """A distributed run at work in processes of its own."""

    folder: Path
    process: subprocess.Popen

    @classmethod
    def start(cls, folder: Path) -> "Job":
        code = f"from harness.job.job import run_job; print(run_job({str(folder)!r}, sync=False, show_progress=False))"
        return cls(folder, subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True))

    def others(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def wait_for_checkpoint(self) -> None:
        wait_until(lambda: RunDirectory(self.folder).events("checkpoint"))

    def state(self) -> str:
        return self.process.communicate(timeout=240)[0].strip()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_others_end_and_the_run_resumes_to_the_same_curve(run_of, victim):
    unbroken = finish(run_of(1, *LONG))
    job = Job.start(run_of(3, *LONG))
    job.wait_for_checkpoint()
    others = job.others()
    (job.process if victim == 0 else others[victim - 1]).kill()
    assert job.state() == ("" if victim == 0 else "interrupted")
    _, alive = psutil.wait_procs(others, timeout=240)
    assert not alive
    status = RunDirectory(job.folder).status()
    assert status.state == "interrupted"
    if victim:
        assert status.cause == "killed"
        assert status.reason == f"process 1 on {platform.node()} was lost: killed by SIGKILL"
    assert largest_difference(unbroken, finish(job.folder)) < CURVE
    assert RunDirectory(job.folder).events("started")[1].fields["resumed_from_step"] > 0


@pytest.mark.slow
def test_a_signal_to_any_process_stops_all_at_one_step_and_another_number_of_processes_goes_on(run_of, tiny_study):
    unbroken = finish(run_of(1, *LONG))
    job = Job.start(run_of(2, *LONG))
    job.wait_for_checkpoint()
    others = job.others()
    others[0].send_signal(signal.SIGUSR2)
    assert job.state() == "interrupted", RunDirectory(job.folder).status().reason
    assert not psutil.wait_procs(others, timeout=240)[1]
    directory = RunDirectory(job.folder)
    assert directory.status().stopped_by == "SIGUSR2" and 0 < directory.durable_step() < 120
    run = tiny_study("", "resources.processes_per_node=1", *LONG)[0]
    directory.add_to_study("tiny", run.membership())
    assert largest_difference(unbroken, finish(job.folder)) < CURVE
    assert [one["num_processes"] for one in directory.environments()] == [2, 1]


def test_a_signal_that_comes_after_the_exchange_waits_for_the_next(run_of, monkeypatch):
    """Else one process would stop, and the others wait for it in their next step."""
    exchange, exchanged = ProcessGroup.all_reduce_max, []

    def exchange_and_be_signalled(group, number):
        exchanged.append(exchange(group, number))
        if len(exchanged) == 5:  # first the checkpoint to restore and the last step, so this is of step 3
            os.kill(os.getpid(), signal.SIGUSR2)
        return exchanged[-1]

    monkeypatch.setattr(ProcessGroup, "all_reduce_max", exchange_and_be_signalled)
    folder = run_of(1)
    assert run_job(folder, sync=False, show_progress=False) == "interrupted"
    assert exchanged == [-1, 12, 0, 0, 0, stop_number("SIGUSR2")]
    assert RunDirectory(folder).durable_step() == 4


@pytest.mark.slow
def test_the_run_says_which_process_failed_and_why(run_of, monkeypatch):
    folder = run_of(2)
    # Only the process that is begun hears of this: a package of the same name before ours, broken.
    monkeypatch.setattr(
        "harness.job.job._Job._worker_command", lambda job: [sys.executable, "-c", BROKEN, str(job.directory.path)]
    )
    assert run_job(folder, sync=False, show_progress=False) == "failed"
    reason = RunDirectory(folder).status().reason
    assert reason.startswith("process 1 of 2 on ") and reason.endswith("MemoryError: no room")


BROKEN = """
import sys, harness.job.job
def fail(*_): raise MemoryError("no room")
harness.job.job.make_dataset = fail
harness.job.job.run_job(sys.argv[1])
"""


def test_a_process_that_cannot_start_is_noticed_at_once(run_of, monkeypatch):
    folder = run_of(2)
    monkeypatch.setattr("harness.job.job._Job._worker_command", lambda _: [sys.executable, "-c", "raise SystemExit(3)"])
    assert run_job(folder, sync=False, show_progress=False) == "failed"
    assert RunDirectory(folder).status().reason == "1 of 2 processes of this run did not start"


# ---------------------------------------------------------------------------------------------------------------- SLURM


@contextlib.contextmanager
def held(directory: RunDirectory, life: int) -> Iterator[None]:
    """Let the first process stand still within a block, after the first checkpoint of a life of the run."""
    wait_until(lambda: any(event.attempt == life for event in directory.events("checkpoint")))
    writer = directory.writer()
    assert writer is not None, "it ended before it could be held"
    os.kill(writer["pid"], signal.SIGSTOP)
    yield
    with contextlib.suppress(ProcessLookupError):
        os.kill(writer["pid"], signal.SIGCONT)


def process_of_step(rank: int, job_id: str) -> psutil.Process:
    variables = {"SLURM_PROCID": str(rank), "SLURM_JOB_ID": job_id, "SLURMD_NODENAME": f"n{rank + 1}"}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("python") and variables.items() <= process.environ().items():
                return process
    raise AssertionError(f"no process {rank}")


@pytest.mark.slow
@pytest.mark.slurm
def test_slurm_trains_one_run_on_two_nodes_and_it_comes_back_from_a_signal_a_kill_and_a_crash(
    slurm, tmp_path, tiny_study, run_of
):
    unbroken = finish(run_of(1, *LONG))
    needs = ("resources.nodes=2", "resources.memory_gib=1", "resources.time_minutes=20")
    run = tiny_study("", *needs, *LONG)[0]
    study = Study("tiny", tmp_path / "tiny.yaml", (run,))
    submission = submit(plan(study, tmp_path / "runs"), cluster="slurm", sync=False)
    directory = submission.runs[0].directory
    with held(directory, life=1):
        number = submission.jobs[0].job_id.split("_")[0]
        # As SLURM announces a preemption: to every process.
        subprocess.run(["scancel", "--signal=USR2", number], check=True)
    with held(directory, life=2):
        process_of_step(1, directory.events("started")[-1].fields["slurm_job_id"]).kill()
    with held(directory, life=3):
        slurm.crash("n2")
    slurm.revive("n2")
    wait_until(lambda: directory.status().state == "done")
    assert largest_difference(unbroken, metrics(directory.path)) < CURVE
    environments = directory.environments()
    assert [one["num_processes"] for one in environments] == [2] * 4
    assert all(event.fields["resumed_from_step"] > 0 for event in directory.events("started")[1:])
    endings = {event.attempt: event.fields for event in directory.events("interrupted")}
    assert endings[1]["stopped_by"] == "SIGUSR2"
    assert endings[2]["cause"] == "killed" and endings[2]["reason"] == "process 1 on n2 was lost"
    assert set(endings) <= {1, 2, 3}  # SLURM ends the whole job of a node that crashed
