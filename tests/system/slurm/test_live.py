"""A live SLURM: whatever it does to a run, the run ends in the weights of one that nobody disturbed.

Three nodes: n1 is calm, n2 gives way to the high partition, n3 crashes. All scenarios are submitted at once and go on
side by side, each in a folder of its own; every test waits for its own. The tests of what SLURM stops come last:
by then most of it has come back.

Nothing here looks at a text for people: tests/system/test_no_sentence_is_parsed.py runs these scenarios with all of
them replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness import PACKAGE_ROOT
from harness.launch import claims, planning, states, submission, submit
from harness.records import layout, snapshot
from harness.records.directory import RunDirectory
from harness.records.nodes import bad_nodes
from harness.slurm.jobs import JobAttempt, read_queue
from harness.slurm.profile import Profile
from harness.study.expand import load_study

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ROOT = Path(__file__).parents[3]
CODE = {"PYTHONPATH": f"{PACKAGE_ROOT}{os.pathsep}{ROOT}"}  # the harness that is tested, and the figures of this one
MAX_ARRAY_SIZE = 4
OFTEN = ("records.checkpoint_every_seconds=0",)  # a checkpoint after each step
STUDY = """
study: live
data: digits
diffusion: {num_timesteps: 30, schedule: cosine}
model: {channels: 8, channel_mult: [1], num_res_blocks: 1, attention_resolutions: [], num_heads: 1}
optim: {lr: 1.0e-3}
train: {steps: 150, batch_size: 16, ema_rate: 0.8}
records: {log_every: 5, checkpoint_every_seconds: 60}
resources: {device: cpu, threads: 1}
"""

# A disk that takes 7 s to flush a checkpoint: Python imports this file by itself where it finds it.
SLOW_DISK = """
import os
import time

fsync = os.fsync

def slowly(descriptor):
    if "/checkpoints/" in os.readlink(f"/proc/self/fd/{descriptor}"):
        time.sleep(7)
    fsync(descriptor)

os.fsync = slowly
"""
EIGHT = ("train.steps=8", *OFTEN)

# A network that takes its time, as a profile says it, where no gradient is wanted: when it is evaluated.
SLOW_PARTS = """
from typing import Literal

from harness.plugins import NetworkModel


class Slow(NetworkModel):
    name: Literal["slow"] = "slow"


def slow(in_channels, out_channels, image_size, num_classes):
    import os
    import time

    import torch

    class Network(torch.nn.Conv2d):
        def forward(self, x, t, y=None):
            if not torch.is_grad_enabled():
                time.sleep(float(os.environ.get("SECONDS_OF_A_PASS", "0")))
            return super().forward(x)

    return Network(in_channels, out_channels, 3, padding=1)


MODELS = {"slow": (Slow, slow)}
"""
SLOW_EVALUATION = """
plugins: [slow_parts.py]
evaluate: [{batch_size: 4, nll: {num_images: 80, evaluations_per_image: 4}}]
"""
SHORT = ("model={name: slow}", "train.steps=12")
LADDER = """
evaluate: [{name: eval, every: 4, nll: {num_images: 16, evaluations_per_image: 4}}]
compare: {metric: nll}
grid: {optim.lr: [1.0e-4, 1.0e-3, 3.0e-3, 1.0e-2]}
rungs: [4, 12, 24]
reduction_factor: 2
"""
TO_THE_LAST_RUNG = ("train.steps=24",)


@dataclass
class Live:
    """A cluster, and a folder for each scenario."""

    folder: Path
    slurm: object
    watchers: dict[str, subprocess.Popen] = field(default_factory=dict)  # commands that stay, by their scenario

    def study(self, name: str, extra: str = "", *sets: str):
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "slow_parts.py").write_text(SLOW_PARTS)
        (folder / "study.yaml").write_text(STUDY + extra)
        return load_study(folder / "study.yaml", sets=sets)

    def submit(self, name: str, extra: str = "", sets: tuple[str, ...] = (), **facts) -> submission.Submission:
        facts = {"time_minutes": 20, "memory_gib": 1, "constraint": "calm"} | facts
        plan = planning.plan(self.study(name, extra, *sets), self.folder / name / "runs")
        return submit.submit(plan, cluster="slurm", profile=Profile(**facts), sync=False)

    def alone(self, name: str, extra: str = "", sets: tuple[str, ...] = ()) -> RunDirectory:
        """Run a study of one run in this process, where nothing is slow and nobody disturbs it."""
        plan = planning.plan(self.study(name, extra, *sets), self.folder / f"{name}_alone" / "runs")
        here = submit.submit(plan, cluster="debug", sync=False)
        assert isinstance(here, submission.BlockingSubmission)
        here.wait(lambda: None)
        return plan.runs[0].directory

    def watch(self, name: str, *words: str) -> None:
        """Start a command that stays until its scenario has ended."""
        command = [sys.executable, "-m", "harness.cli", *words, "--watch"]
        self.watchers[name] = subprocess.Popen(command, cwd=self.folder / name, env=os.environ | CODE)

    def harness(self, name: str, *words: str) -> str:
        """Run the command line as from another shell."""
        command = [sys.executable, "-m", "harness.cli", *words]
        done = subprocess.run(command, cwd=self.folder / name, env=os.environ | CODE, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def live(start_slurm, tmp_path_factory) -> Iterator[Live]:
    slurm = start_slurm(NODES=3, CPUS=16, MEM=16000, MAXARRAY=MAX_ARRAY_SIZE, GRACE=20)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in slurm.env.items():
            patch.setenv(name, value)
        for node, feature in (("n1", "calm"), ("n2", "preempted"), ("n3", "crashes")):
            ask("scontrol", "update", f"nodename={node}", f"availablefeatures={feature}", f"activefeatures={feature}")
        here = Live(tmp_path_factory.mktemp("live"), slurm)
        yield here
        for watcher in here.watchers.values():
            watcher.kill()


@pytest.fixture(scope="module")
def slow_scenarios(live) -> dict[str, submission.Submission]:
    """Submit what outlasts its time limits."""
    (live.folder / "sitecustomize.py").write_text(SLOW_DISK)
    slow_disk = f"export PYTHONPATH={live.folder}:$PYTHONPATH"
    live.study("rungs", LADDER, *TO_THE_LAST_RUNG)
    (live.folder / "rungs" / "calm.yaml").write_text("{time_minutes: 20, memory_gib: 1, constraint: calm}\n")
    here = ("--set", *TO_THE_LAST_RUNG, "--cluster", "slurm", "--profile", "calm.yaml", "--no-sync")
    live.watch("rungs", "submit", "study.yaml", *here)
    two_processes = ("resources.processes_per_node=2", *SHORT)
    return {
        "slow_disk": live.submit("slow_disk", sets=EIGHT, time_minutes=1, signal_lead_seconds=1, setup=[slow_disk]),
        "evaluation": live.submit(
            "evaluation",
            SLOW_EVALUATION,
            two_processes,
            time_minutes=1,
            memory_gib=2,
            setup=["export SECONDS_OF_A_PASS=0.45"],
        ),
    }


@pytest.fixture(scope="module")
def scenarios(live, request) -> dict[str, submission.Submission]:
    """Submit everything that is tested; the tests below disturb what they are about."""
    if any("slow_scenarios" in item.fixturenames for item in request.session.items):
        request.getfixturevalue("slow_scenarios")  # before all else, since they take the longest
    submitted = {
        "time_limit": live.submit("time_limit", sets=OFTEN, time_minutes=1),
        "preempted": live.submit("preempted", sets=OFTEN, constraint="preempted"),
        "cancelled_for_good": live.submit(
            "cancelled_for_good", sets=OFTEN, constraint="preempted", partition="cancel", preempt_mode="cancel"
        ),
        "crash": live.submit("crash", sets=OFTEN, constraint="crashes"),
        "memory": live.submit("memory", memory_gib=0.15),
        "undisturbed": live.submit("undisturbed", "replicates: 3\n", pack=3, cpus=3, memory_gib=3),
    }
    live.watch("crash", "sync", "live", "--every", "2")
    held = [Hold(submitted[name]) for name in ("preempted", "cancelled_for_good", "crash", "time_limit")]
    for hold in held[:3]:
        hold.wait_until_it_stands_still()
    ask(
        "sbatch",
        "--partition=high",
        "--nodelist=n2",
        "--nodes=1",
        "--exclusive",
        "--output=/dev/null",
        "--wrap=sleep 3",
    )
    live.slurm.crash("n3")
    time.sleep(2)
    live.slurm.revive("n3")
    return submitted


def ask(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_for(done: Callable[[], object], pause: float = 0.3) -> None:
    deadline = time.monotonic() + 480
    while not done():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(pause)


class Hold(threading.Thread):
    """Stops a submission's first run after its first checkpoint, until a signal asks it to leave or it is killed.

    So a run is disturbed before it ends, on the fastest machine too.
    """

    def __init__(self, submission: submission.Submission) -> None:
        super().__init__(daemon=True)
        self.directory = submission.runs[0].directory
        self.stands_still = threading.Event()
        self.start()

    def run(self) -> None:
        wait_for(lambda: self.directory.events("checkpoint"), pause=0.02)
        writer = self.directory.writer()
        assert writer is not None, "it ended before it could be held"
        os.kill(writer["pid"], signal.SIGSTOP)
        self.stands_still.set()
        wait_for(lambda: is_asked_to_leave_or_gone(writer["pid"]))
        with contextlib.suppress(ProcessLookupError):
            os.kill(writer["pid"], signal.SIGCONT)

    def wait_until_it_stands_still(self) -> None:
        wait_for(self.stands_still.is_set)


def is_asked_to_leave_or_gone(pid: int) -> bool:
    """Return whether a process that stands still has a signal to leave to take when it goes on, or is no more."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return True
    fields = dict(line.split(":", 1) for line in lines)
    pending = int(fields["ShdPnd"], 16)
    asked = any(pending >> (number - 1) & 1 for number in (signal.SIGUSR2, signal.SIGTERM))
    return asked or fields["State"].split()[0] == "Z"


def ended(submission: submission.Submission) -> submission.Submission:
    wait_for(lambda: not submission.unfinished())
    return submission


def weights(directory: RunDirectory) -> str:
    """Hash all tensors of a run's last checkpoint: weights, averages and the optimizer's moments."""
    import torch

    from harness.training.checkpoints import Checkpoints

    checkpoint = Checkpoints(directory.checkpoints_folder).latest(torch.device("cpu"))
    assert checkpoint is not None
    step, state = checkpoint
    assert step == directory.spec()["train"]["steps"]
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                add(value[key])
        elif isinstance(value, list | tuple):
            for one in value:
                add(one)

    add(state["method"])
    return digest.hexdigest()


def nll(directory: RunDirectory) -> float:
    [value] = [row.value for row in directory.rows() if row.key == "eval/nll_bpd"]
    return value


def resumed_at(directory: RunDirectory) -> list[int]:
    return [event.fields["resumed_from_step"] for event in directory.events("started")]


@pytest.fixture(scope="module")
def undisturbed(scenarios) -> Callable[[RunDirectory], None]:
    """Return a function that asserts that a run has the weights of the one of the same key that nobody disturbed."""
    calm = {planned.run_key: planned.directory for planned in ended(scenarios["undisturbed"]).runs}
    assert all(resumed_at(directory) == [0] for directory in calm.values())

    def same(directory: RunDirectory) -> None:
        assert weights(directory) == weights(calm[directory.key])

    return same


def test_over_memory_is_left_failed_after_three_kills_and_a_retry_with_more_ends_well(live, scenarios, undisturbed):
    [run] = scenarios["memory"].runs
    wait_for(lambda: scenarios["memory"].now()[0].state == "failed")
    assert run.directory.status().cause == "out_of_memory"
    assert run.directory.attempts() == []  # memory did not suffice to begin
    assert run.directory.log_path(1).exists()
    why = live.harness("memory", "why", run.run_key[:8])
    assert scenarios["memory"].jobs[0].job_id in why
    assert run.directory.log_path(1).name in why
    [use] = json.loads(live.harness("memory", "efficiency", "study.yaml", "--json"))["requests"]
    assert use["source"] == "accounting" and use["request"]["memory_gib"] == pytest.approx(0.15, rel=0.01)
    assert use["memory_kills"] and use["fits"]["memory_gib"] == 0.5
    live.harness("memory", "retry", "study.yaml", "--failed", "--set", "resources.memory_gib=1")
    assert len(claims.claims_of(run.path.parent, [run.run_key])[run.run_key]) == 2
    ended(scenarios["memory"])
    undisturbed(run.directory)


def test_cancel_stops_what_runs_and_what_waits_and_submit_goes_on(live, undisturbed):
    submission = live.submit("cancel", "replicates: 2\n", OFTEN, max_parallel=1)
    Hold(submission).wait_until_it_stands_still()
    live.harness("cancel", "cancel", "live")
    wait_for(lambda: all(planned.state not in ("running", "queued") for planned in submission.now()))
    assert {planned.status.cause for planned in submission.unfinished()} == {"cancelled"}
    live.harness("cancel", "cancel", "live")  # nothing waits or runs
    live.harness("cancel", "retry", "study.yaml", "--failed")  # and nothing failed
    all_claims = claims.claims_of(submission.runs[0].path.parent, [planned.run_key for planned in submission.runs])
    assert all(len(of_run) == 1 for of_run in all_claims.values())
    ended(live.submit("cancel", "replicates: 2\n"))
    for planned in submission.runs:
        undisturbed(planned.directory)


def test_a_killed_run_of_a_shared_job_leaves_the_others_and_comes_back(live, undisturbed):
    submission = live.submit("pack", "replicates: 3\n", OFTEN, pack=3, cpus=3, memory_gib=3)
    assert len(submission.jobs) == 1
    directory = submission.runs[0].directory
    Hold(submission).wait_until_it_stands_still()
    os.kill(directory.writer()["pid"], signal.SIGKILL)
    ended(submission)
    assert len(resumed_at(directory)) == 2
    for planned in submission.runs[1:]:
        assert resumed_at(planned.directory) == [0]
    for planned in submission.runs:
        undisturbed(planned.directory)


def test_a_study_that_dies_at_once_costs_one_job(live):
    sets = ("optim.lr=1.0e+30", "resources.canary=true", "train.steps=100")
    submission = live.submit("canary", "replicates: 4\n", sets)
    waiting = states.read_run_states([submission.runs[1].path])[submission.runs[1].run_key]
    assert waiting.status.state == "queued" and waiting.job.waits
    wait_for(lambda: all(planned.state in ("failed", "interrupted") for planned in submission.now()))
    causes = [(planned.state, planned.status.cause) for planned in submission.now()]
    assert causes == [("failed", "error"), *[("interrupted", "canary")] * 3]
    assert not any(planned.directory.attempts() for planned in submission.runs[1:])


def test_a_canary_that_lives_releases_the_rest_and_loses_nothing(live):
    submission = live.submit("canary_lives", "replicates: 2\n", ("resources.canary=true", "train.steps=100"))
    ended(submission)
    assert [resumed_at(planned.directory) for planned in submission.runs] == [[0, 50], [0]]


def test_editing_the_code_while_jobs_wait_changes_nothing(live, tmp_path):
    """A copy of the harness is submitted from and broken; the waiting job imports the snapshot."""
    import shutil

    copy = tmp_path / "tree"
    shutil.copytree(PACKAGE_ROOT / "harness", copy / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    live.study("snapshot", "", "train.steps=12")
    (live.folder / "snapshot" / "profile.yaml").write_text("time_minutes: 20\nmemory_gib: 1\nconstraint: calm\n")
    ask("scontrol", "update", "nodename=n1", "state=drain", "reason=test")
    try:
        command = [sys.executable, "-m", "harness.cli", "submit", "study.yaml", "--set", "train.steps=12"]
        environment = os.environ | {"PYTHONPATH": str(copy)}
        subprocess.run(
            [*command, "--cluster", "slurm", "--profile", "profile.yaml"],
            cwd=live.folder / "snapshot",
            env=environment,
            check=True,
        )
        (copy / "harness" / "job" / "job.py").write_text("raise RuntimeError('the edited file was imported')\n")
    finally:
        ask("scontrol", "update", "nodename=n1", "state=resume")
    [directory] = [RunDirectory(path) for path in layout.run_paths(live.folder / "snapshot" / "runs")]
    wait_for(lambda: directory.status().state in ("done", "failed"))
    assert directory.status().state == "done"
    assert snapshot.find(live.folder / "snapshot" / "runs" / ".code", snapshot.of(directory.path))


def test_a_grid_larger_than_an_array_from_submit_to_figures(live):
    grid = "grid: {diffusion.schedule: [linear, cosine]}\nreplicates: 3\n"
    evaluate = "evaluate: [{nll: {num_images: 16, evaluations_per_image: 4}}]\n"
    live.study("grid", grid + evaluate)
    (live.folder / "grid" / "profile.yaml").write_text(
        "time_minutes: 20\nmemory_gib: 1\nconstraint: calm\nmax_parallel: 4\n"
    )
    short = ("--set", "train.steps=12")
    live.harness("grid", "submit", "study.yaml", "--cluster", "slurm", "--profile", "profile.yaml", *short)
    runs = [RunDirectory(path) for path in layout.run_paths(live.folder / "grid" / "runs")]
    all_claims = claims.claims_of(live.folder / "grid" / "runs", [run.key for run in runs])
    arrays = Counter(claim.job_id.split("_")[0] for [claim] in all_claims.values())
    assert sorted(arrays.values()) == [2, 4]
    wait_for(lambda: all(run.status().state == "done" for run in runs))
    assert json.loads(live.harness("grid", "status", "--json"))[0]["state"] == "done"
    # MLflow hears of it where a database can be written, and the figures are made from the records alone.
    live.harness("grid", "sync")
    live.harness("grid", "sync", "--check")
    command = [sys.executable, "-m", "harness.cli", "figures", "--runs", str(live.folder / "grid" / "runs")]
    subprocess.run(command, cwd=live.folder / "grid", env=os.environ | CODE, check=True)
    assert list((live.folder / "grid").rglob("*.png"))


# --------------------------------------------------------------------------------------------- what SLURM itself stops


def slurm_attempts(submission: submission.Submission) -> tuple[JobAttempt, ...]:
    job_id = submission.jobs[0].job_id
    return read_queue([job_id])[job_id].attempts


def test_a_preempted_run_comes_back_by_itself(scenarios, undisturbed):
    [run] = ended(scenarios["preempted"]).runs
    assert len(resumed_at(run.directory)) > 1
    assert resumed_at(run.directory)[1] > 0
    assert len(slurm_attempts(scenarios["preempted"])) > 1
    undisturbed(run.directory)


def test_where_preemption_cancels_a_job_submits_its_own_successor(scenarios, undisturbed):
    [run] = ended(scenarios["cancelled_for_good"]).runs
    assert resumed_at(run.directory)[1] > 0
    claim = claims.claims_of(run.path.parent, [run.run_key])[run.run_key][-1]
    assert len(claim.jobs) > 1
    undisturbed(run.directory)


def test_a_run_at_its_time_limit_goes_on_where_it_was(scenarios, undisturbed):
    [run] = ended(scenarios["time_limit"]).runs
    assert len(resumed_at(run.directory)) > 1
    undisturbed(run.directory)


def test_on_a_disk_that_is_too_slow_for_the_signal_a_training_stops_ahead_of_it(live, slow_scenarios):
    """The lead is 1 s and a checkpoint takes 7 s: the training stops by itself before SLURM's signal."""
    [run] = ended(slow_scenarios["slow_disk"]).runs
    begun = resumed_at(run.directory)
    endings = [event.fields for event in run.directory.events("interrupted")]
    assert len(begun) > 1 and len(endings) == len(begun) - 1  # no life was killed
    assert {one["stopped_by"] for one in endings} == {"SIGUSR2"}
    assert weights(run.directory) == weights(live.alone("slow_disk", sets=EIGHT))


def test_an_evaluation_longer_than_its_job_and_than_the_patience_of_srun_ends(live, slow_scenarios):
    """The first of two processes evaluates for a minute; srun would end it WaitTime after the other one has left."""
    [run] = ended(slow_scenarios["evaluation"]).runs
    started = [event.fields for event in run.directory.events("started")]
    assert started[-1]["resumed_from_step"] == 12 and started[-1]["kept_batches"] > 0
    assert [one.fields["stopped_by"] for one in run.directory.events("interrupted")] == ["SIGUSR2"] * (len(started) - 1)
    alone = live.alone("evaluation", SLOW_EVALUATION, SHORT)
    assert nll(run.directory) == pytest.approx(nll(alone), rel=1e-5)  # two processes add gradients in another order


def test_submit_that_watches_lets_the_best_go_on_from_rung_to_rung_and_ends(live, slow_scenarios):
    assert live.watchers["rungs"].wait(480) == 0
    runs = planning.plan(live.study("rungs", LADDER, *TO_THE_LAST_RUNG), live.folder / "rungs" / "runs").runs
    assert sorted(run.directory.durable_step() for run in runs) == [4, 4, 12, 24]
    assert Counter(run.directory.status().state for run in runs) == {"done": 1, "pruned": 3}
    [best] = [run for run in runs if run.directory.status().state == "done"]
    assert resumed_at(best.directory) == [0, 4, 12]
    learning_rate = best.directory.spec()["optim"]["lr"]
    flat = live.alone("rungs_flat", "", (*TO_THE_LAST_RUNG, f"optim.lr={learning_rate}"))
    assert weights(best.directory) == weights(flat)


def test_sync_that_watches_a_run_whose_node_fails_ends_with_it_and_mlflow_says_finished(live, scenarios):
    ended(scenarios["crash"])
    assert live.watchers["crash"].wait(120) == 0
    with contextlib.closing(sqlite3.connect(live.folder / "crash" / "mlflow.db")) as store:
        of_runs = "SELECT status FROM runs JOIN tags USING (run_uuid) WHERE key = 'kind' AND value = 'run'"
        assert store.execute(of_runs).fetchall() == [("FINISHED",)]


def test_a_crashed_node_costs_the_steps_since_the_last_checkpoint_and_is_listed(scenarios, undisturbed):
    [run] = ended(scenarios["crash"]).runs
    assert len(resumed_at(run.directory)) > 1
    [node] = bad_nodes(run.path.parent)
    assert node.node == "n3" and node.reason.rsplit(" ", 1)[1].isdecimal()  # the job
    undisturbed(run.directory)
