"""SIGKILLs at random moments of a training: what is left at the end cannot be told from a run that nobody touched.

Ten in `make test`, a hundred in `make faults` (KILLS=100). Some of the kills come at a random time. The others look for
a phase: the life is stopped (SIGSTOP) at random moments until one of them lies in the phase, and killed there, so that
an append of 30 microseconds is hit as surely as an evaluation. In which phase a kill fell is read, after the death,
from the page that the life wrote (`announce`).
"""

import contextlib
import mmap
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from harness.job import job
from harness.job.job import run_job
from harness.job.verify import digests, results
from harness.methods.gaussian import GaussianMethod
from harness.records.directory import RunDirectory
from harness.records.journal import Journal, is_measurement
from harness.tracking.check import check
from harness.tracking.described import is_constant
from harness.tracking.store import initialise_store
from harness.tracking.sync import sync_run
from harness.training.checkpoints import Checkpoints

KILLS = int(os.environ.get("KILLS", 10))
AIMED = ("step", "evaluation", "checkpoint", "append")
STEPS_PER_KILL = 20

EVALUATE = """
evaluate:
  - {nll: {estimator: full, num_images: 4}, grid: 4, every: 10}
"""


# What a life is. This file is also the script of the fork_server: it imports torch once and forks each life.

PHASES = ("start", "between", "step", "evaluation", "checkpoint", "append")
PAGE = struct.Struct("<BI")


def say(page: mmap.mmap, phase: str, step: int) -> None:
    PAGE.pack_into(page, 0, PHASES.index(phase), step)


def read(page: mmap.mmap) -> tuple[str, int]:
    phase, step = PAGE.unpack_from(page, 0)
    return PHASES[phase], step


def announce(page: mmap.mmap, owner: object, name: str, phase: str) -> None:
    """Let a function of a class or module say on the page when it begins and ends, and do what it always does."""
    inner = getattr(owner, name)

    def outer(*args, **options):
        before, step = read(page)
        say(page, phase, args[1] + 1 if phase == "step" else step)
        try:
            return inner(*args, **options)
        finally:
            say(page, before if phase == "append" else "between", read(page)[1])

    setattr(owner, name, outer)


def nurse(beacon: str, uri: str) -> None:
    """Read run directories from standard input; of each life print the process number, and at its end the status."""
    import torch._dynamo  # noqa: F401  # which a life would import late, for seconds: torch's optimizers pull it in

    page = open_page(Path(beacon))
    announce(page, GaussianMethod, "step", "step")
    announce(page, job, "evaluate", "evaluation")
    announce(page, job, "evaluate_during_training", "evaluation")
    announce(page, Checkpoints, "save", "checkpoint")
    announce(page, Journal, "_append", "append")
    print("ready", flush=True)
    for line in sys.stdin:
        say(page, "start", 0)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            state = run_job(Path(line.strip()), tracking_uri=uri, show_progress=False)
            os._exit(0 if state == "done" else 1)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def open_page(beacon: Path) -> mmap.mmap:
    """Map the page that outlives whoever writes on it."""
    with beacon.open("r+b") as file:
        return mmap.mmap(file.fileno(), mmap.PAGESIZE)


class ForkServer:
    """Lives of one run, one after the other, and the page on which each says what it is doing."""

    def __init__(self, folder: Path, uri: str):
        beacon = folder / "beacon"
        beacon.write_bytes(bytes(mmap.PAGESIZE))
        self.page = open_page(beacon)
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(beacon), uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        assert self._read() == "ready"

    def _read(self) -> str:
        return self._stdout.readline().strip()

    def begin(self, run: Path) -> int:
        self._stdin.write(f"{run}\n")
        self._stdin.flush()
        return int(self._read())

    def end(self) -> int:
        return int(self._read())

    def close(self) -> None:
        self._stdin.close()
        self.process.wait()

    @property
    def phase(self) -> str:
        return read(self.page)[0]

    @property
    def step(self) -> int:
        return read(self.page)[1]


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def stop_within(fork_server: ForkServer, pid: int, phase: str, last_step: int, randomly: random.Random) -> bool:
    """Stop the life in the midst of a phase, at a moment of it that chance decides; False when none was met in time."""
    while fork_server.step < last_step:
        if fork_server.phase != phase:
            continue
        if phase != "append":  # which is over before a sleep of no length is
            time.sleep(randomly.uniform(0, 0.01))
        os.kill(pid, signal.SIGSTOP)
        while not is_stopped(pid):
            pass
        if fork_server.phase == phase:
            return True
        os.kill(pid, signal.SIGCONT)
    return False


def kill_once(
    fork_server: ForkServer, run: Path, kind: str, after_step: int, randomly: random.Random
) -> tuple[str, bool]:
    """Live once, be killed once; return the phase it died in, and whether its syncer died with it."""
    pid = fork_server.begin(run)
    if kind == "start":
        time.sleep(randomly.uniform(0, 0.1))
    else:
        deadline = time.monotonic() + 240
        while fork_server.step <= after_step:
            assert time.monotonic() < deadline, f"no step in four minutes: {read(fork_server.page)}"
            time.sleep(0.0005)
        if kind == "any" or not stop_within(fork_server, pid, kind, after_step + STEPS_PER_KILL, randomly):
            time.sleep(randomly.uniform(0, 0.1))
    with_syncer = randomly.random() < 0.5  # as when a node dies; else the syncer makes its last pass
    (os.killpg if with_syncer and os.getpgid(pid) == pid else os.kill)(pid, signal.SIGKILL)
    assert fork_server.end() == -signal.SIGKILL, "it ended before it could be killed"
    return fork_server.phase, with_syncer


def stored_results(database: Path) -> list[tuple[str, int, float]]:
    """Read MLflow's history past MLflow, from its table."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        of_runs = (
            "SELECT run_uuid FROM tags WHERE key = 'kind' AND value = 'run'"  # beside those of the arm and the study
        )
        (runs,) = connection.execute(f"SELECT count(*) FROM ({of_runs})").fetchone()
        assert runs == 1
        found = connection.execute(f"SELECT key, step, value FROM metrics WHERE run_uuid IN ({of_runs})").fetchall()
    return [row for row in found if not is_measurement(row[0])]


@pytest.mark.slow
def test_after_many_sigkills_weights_journal_and_mlflow_are_those_of_an_undisturbed_run(tiny_run, tmp_path, capsys):
    steps = STEPS_PER_KILL * (KILLS + 3)
    sets = (f"train.steps={steps}", "records.checkpoint_every_seconds=0.2", "model.dropout=0.1", "records.log_every=3")
    sets += ("timestep_sampler={name: loss_second_moment, history_per_term: 2}", "model.channels=16")
    unbroken, killed = (tiny_run(EVALUATE, *sets, folder=name) for name in ("unbroken", "killed"))
    began = time.monotonic()
    assert run_job(unbroken, sync=False, show_progress=False) == "done"
    undisturbed_seconds = time.monotonic() - began

    database = tmp_path / "mlflow.db"
    uri = initialise_store(f"sqlite:///{database}")
    seed = random.randrange(2**32)
    randomly, phases, num_with_syncer = random.Random(seed), Counter(), 0
    fork_server = ForkServer(tmp_path, uri)
    try:
        for number in range(KILLS):
            missing = [name for name in ("start", *AIMED) for _ in range(max(1, KILLS // 10) - phases[name])]
            must_aim = 2 * len(missing) >= KILLS - number or randomly.random() < 0.5
            kind = randomly.choice(missing) if missing and must_aim else "any"
            phase, with_syncer = kill_once(fork_server, killed, kind, number * STEPS_PER_KILL, randomly)
            phases[phase] += 1
            num_with_syncer += with_syncer
        fork_server.begin(killed)
        assert fork_server.end() == 0
    finally:
        fork_server.close()
    killed_seconds = time.monotonic() - began - undisturbed_seconds

    state, other = (Checkpoints(run / "checkpoints").latest()[1] for run in (unbroken, killed))
    assert digests(state) == digests(other)
    journal = results(RunDirectory(killed))
    assert journal == results(RunDirectory(unbroken))
    assert RunDirectory(killed).problems() == []
    sync_run(RunDirectory(killed), tracking_uri=uri)
    report = check(RunDirectory(killed), tracking_uri=uri)
    assert report.ok and report.num_rows_waiting == 0, report
    assert sorted(stored_results(database)) == sorted(row for row in journal if not is_constant(row[0]))  # tags there
    with capsys.disabled():
        print(f"\n{KILLS} SIGKILLs (seed {seed}) in a training of {steps} steps, {num_with_syncer} with the syncer:")
        print("  " + ", ".join(f"{phases[name]} {name}" for name in PHASES))
        print(f"  undisturbed {undisturbed_seconds:.0f} s, killed {killed_seconds:.0f} s")
        print(f"  weights equal; {len(journal)} result rows equal in journal and MLflow")
    assert all(phases[name] for name in ("start", *AIMED)), phases


if __name__ == "__main__":
    nurse(*sys.argv[1:])
