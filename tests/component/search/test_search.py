"""Searches: what a file may say, and that killing anything loses no finished trial and makes none twice.

Where only the bookkeeping is at stake, a run is a planted function of its spec, written down as a job would write it.
"""

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import psutil
import pytest

from harness.analysis.figures import fig_search
from harness.analysis.runs import load_records
from harness.cli.common import members
from harness.errors import LaunchError, RecordError
from harness.launch import planning
from harness.launch.submit import submit
from harness.records.directory import RunDirectory
from harness.records.lock import FolderLock
from harness.records.status import Status
from harness.search import optuna_backend
from harness.search.coordinator import Coordinator
from harness.search.loading import load_search
from harness.search.optuna_backend import first_suggestions, open_study, repair_journal, report_end, suggest
from harness.search.trials import best_study, pareto_front, read_trials
from harness.search.workers import LocalWorkers, SlurmWorkers, Workers
from harness.slurm import recent
from harness.slurm.commands import NoAnswer
from harness.slurm.jobs import live_jobs
from harness.spec.base import SCHEMA_VERSION
from harness.spec.metrics import outputs
from harness.study.expand import load_study

BASE = """
study: hunt
data: mog
diffusion: {num_timesteps: 30, schedule: cosine, var_type: learned_range}
objective: hybrid
model: {name: mlp, width: 16, depth: 1}
optim: {lr: 1.0e-3}
train: {steps: 20, batch_size: 16, ema_rate: 0.8}
records: {log_every: 5}
resources: {device: cpu, threads: 1}
evaluate:
  - {name: eval, nll: {num_images: 16, evaluations_per_image: 4}}
"""
LAMBDA_S = """
search:
  space:
    objective.lambda_vlb: {float: [1.0e-5, 1.0e-1], log: true}
    diffusion.schedule.s: {float: [1.0e-4, 5.0e-2], log: true}
  metrics: [{eval/nll_bpd: minimize}]
  trials: 64
"""
BEST_LAMBDA, BEST_S = 1e-3, 8e-3


@pytest.fixture
def make(tmp_path):
    def write(search=LAMBDA_S, *sets, base=BASE):
        path = tmp_path / "search.yaml"
        path.write_text(base + search)
        return load_search(path, sets=sets)

    return write


def quadratic(spec, seed_matters=False):
    lambda_vlb, s = spec["objective"].get("lambda_vlb", 1.0), spec["diffusion"]["schedule"].get("s", 0.5)
    noise = 0.01 * spec["seed"] if seed_matters else 0.0
    return math.log10(lambda_vlb / BEST_LAMBDA) ** 2 + 2 * math.log10(s / BEST_S) ** 2 + noise


class Planted(Workers):
    """Writes of each run what a job would, with `value(spec)` as its likelihood; by default it is done at once."""

    poll_seconds = 0.0

    def __init__(self, runs_folder, value=quadratic, end=lambda spec: "done"):
        self.runs_folder, self.value, self.end = runs_folder, value, end
        self.started = []

    def start(self, study):
        (run,) = study.runs
        self.started.append(run.run_key)
        directory = RunDirectory(self.runs_folder / run.run_key)
        spec = run.spec.model_dump(mode="json")
        directory.create(spec, SCHEMA_VERSION)
        directory.add_to_study(run.study, run.membership())
        state = self.end(spec)
        steps = run.spec.train.steps
        with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
            if state == "done":
                for evaluation in run.evaluations:
                    journal.metrics(steps, {f"{evaluation.name}/nll_bpd": self.value(spec)})
                    facts = {"key": evaluation.key, "evaluation": evaluation.name, "prefix": evaluation.name}
                    journal.event("evaluation", step=steps, parts=evaluation.parts, **facts)
        directory.set_status(Status(state=state, step=steps if state == "done" else 0, num_steps=steps, reason=state))

    def busy(self, run_keys):
        return set()


def hunt(search, runs_folder, **planted):
    workers = Planted(runs_folder, **planted)
    finished = Coordinator(search, runs_folder, workers, sync=False, on_message=lambda line: None).run()
    return finished, workers


def points(search, runs_folder):
    return [trial.point for trial in read_trials(search.folder(runs_folder))]


# ------------------------------------------------------------------------------------------------------ what is refused


# ----------------------------------------------------------------------------------------------------------- the space

CHOICES = """
search:
  space:
    diffusion: {choices: [{schedule: cosine, var_type: learned_range}, {schedule: linear, var_type: learned}]}
    diffusion.schedule: {choices: [{name: linear}, {name: cosine}]}
    diffusion.schedule.s: {float: [1.0e-3, 1.0e-1], log: true, when: {diffusion.schedule.name: cosine}}
    model.depth: {int: [1, 3]}
    train.ema_rate: {choices: [0.5, 0.9]}
    optim.betas: {choices: [[0.9, 0.99], [0.8, 0.999]]}
  metrics: [{eval/nll_bpd: minimize}]
  sampler: random
  trials: 12
"""


def test_parts_lists_numbers_and_conditions_can_be_searched_together(make, tmp_path):
    search = make(CHOICES)
    assert hunt(search, tmp_path / "runs")[0]
    asked = points(search, tmp_path / "runs")
    assert {point["diffusion.schedule"]["name"] for point in asked} == {"linear", "cosine"}
    for number, point in enumerate(asked):
        spec = search.trial(number, point).runs[0].spec
        assert ("diffusion.schedule.s" in point) == (point["diffusion.schedule"]["name"] == "cosine")
        assert spec.diffusion.schedule.name == point["diffusion.schedule"]["name"]
        assert spec.diffusion.var_type == point["diffusion"]["var_type"]
        assert spec.model.depth == point["model.depth"] and list(spec.optim.betas) == point["optim.betas"]
        if "diffusion.schedule.s" in point:
            assert spec.diffusion.schedule.s == point["diffusion.schedule.s"]


GRID = """
search:
  space: {model.depth: {int: [1, 3]}, train.ema_rate: {choices: [0.5, 0.9]}}
  metrics: [{eval/nll_bpd: minimize}]
  sampler: grid
  trials: 6
"""


def test_a_grid_is_walked_once_and_ends_though_points_of_it_fail(make, tmp_path):
    search = make(GRID)
    assert hunt(search, tmp_path / "all")[0]
    every = {(point["model.depth"], point["train.ema_rate"]) for point in points(search, tmp_path / "all")}
    assert every == {(depth, rate) for depth in (1, 2, 3) for rate in (0.5, 0.9)}
    fails = lambda spec: "failed" if spec["model"]["depth"] == 2 else "done"  # noqa: E731
    finished, _ = hunt(search, tmp_path / "some", end=fails)
    states = Counter(trial.state for trial in read_trials(search.folder(tmp_path / "some")))
    assert not finished and states == {"complete": 4, "failed": 2}


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "nsga2", "qmc", "random"])
def test_samplers_ask_for_different_points_within_the_bounds_also_after_a_restart(make, tmp_path, sampler):
    search = make(LAMBDA_S + f"  sampler: {sampler}\n", "search.trials=4")
    hunt(search, tmp_path / "runs")
    more = make(LAMBDA_S + f"  sampler: {sampler}\n", "search.trials=8")
    hunt(more, tmp_path / "runs")
    asked = points(more, tmp_path / "runs")
    assert len({json.dumps(point) for point in asked}) == len(asked) == 8
    assert all(1e-5 <= point["objective.lambda_vlb"] <= 1e-1 for point in asked)


# ----------------------------------------------------------------------------------------------- asking, telling, dying


def test_the_optimum_of_a_planted_quadratic_is_found(make, tmp_path):
    search = make()
    finished, _ = hunt(search, tmp_path / "runs")
    (best, *_) = pareto_front(read_trials(search.folder(tmp_path / "runs")), search.metrics)
    assert finished
    assert abs(math.log10(best.point["objective.lambda_vlb"] / BEST_LAMBDA)) < 0.15
    assert abs(math.log10(best.point["diffusion.schedule.s"] / BEST_S)) < 0.15


@pytest.mark.slow
def test_one_seed_asks_for_the_same_64_trials_in_one_go_or_in_five_and_another_for_others(make, tmp_path):
    hunt(make(), tmp_path / "whole")
    for trials in (1, 7, 20, 41, 64):
        hunt(make(LAMBDA_S, f"search.trials={trials}"), tmp_path / "parts")
    hunt(make(LAMBDA_S, "search.seed=1", "search.trials=1"), tmp_path / "other")
    whole, parts = points(make(), tmp_path / "whole"), points(make(), tmp_path / "parts")
    assert len(whole) == 64
    assert whole == parts
    assert points(make(), tmp_path / "other")[0] != whole[0]


def test_plan_shows_what_is_asked_for_first(make, tmp_path):
    search = make(LAMBDA_S, "search.trials=3")
    hunt(search, tmp_path / "runs")
    assert first_suggestions(search, 1) == points(search, tmp_path / "runs")[:1]


def test_the_file_of_a_search_stands_for_the_runs_that_it_has_asked_for(make, tmp_path):
    search = make(LAMBDA_S, "search.trials=3")
    hunt(search, tmp_path / "runs")
    name, directories = members(str(search.path), tmp_path / "runs")
    assert name == "hunt"
    assert [one.key for one in directories] == [
        key for trial in read_trials(search.folder(tmp_path / "runs")) for key in trial.run_keys
    ]


def test_a_failed_run_is_told_and_another_trial_asked_until_the_number_is_reached(make, tmp_path):
    search = make(LAMBDA_S, "search.trials=12")
    fails = lambda spec: "failed" if spec["objective"]["lambda_vlb"] > 1e-2 else "done"  # noqa: E731
    assert hunt(search, tmp_path / "runs", end=fails)[0]
    states = Counter(trial.state for trial in read_trials(search.folder(tmp_path / "runs")))
    assert states["complete"] == 12 and states["failed"] >= 1


def test_a_search_in_which_everything_fails_stops_and_names_a_run(make, tmp_path):
    with pytest.raises(LaunchError, match=r"the last 10 trials failed.*harness why [0-9a-f]{16}"):
        hunt(make(), tmp_path / "runs", end=lambda spec: "failed")


def test_a_number_that_is_none_fails_its_trial(make, tmp_path):
    search = make(LAMBDA_S, "search.trials=4")
    value = lambda spec: math.nan if spec["objective"]["lambda_vlb"] > 1e-2 else 1.0  # noqa: E731
    assert hunt(search, tmp_path / "runs", value=value)[0]
    failed = [trial for trial in read_trials(search.folder(tmp_path / "runs")) if trial.state == "failed"]
    assert failed and all(trial.reason == "eval/nll_bpd is nan" for trial in failed)


def test_a_run_whose_worker_dies_again_and_again_without_progress_is_given_up(make, tmp_path):
    search = make(LAMBDA_S, "search.trials=2")
    ends = {}

    def end(spec):
        key = json.dumps(spec)
        ends[key] = ends.get(key, 0) + 1
        first = next(iter(ends)) == key
        return "interrupted" if first or ends[key] < 3 else "done"

    finished, workers = hunt(search, tmp_path / "runs", end=end)
    trials = read_trials(search.folder(tmp_path / "runs"))
    assert finished and [trial.state for trial in trials] == ["failed", "complete", "complete"]
    assert Counter(workers.started) == {trial.run_keys[0]: 3 for trial in trials}
    assert "3 times at step 0" in trials[0].reason


def test_a_coordinator_that_dies_anywhere_is_taken_up_with_the_same_trials(make, tmp_path, monkeypatch):
    """Break off at every step of asking and telling, and go on: the same trials as of an unbroken search."""
    search = make(LAMBDA_S, "search.trials=6")
    hunt(search, tmp_path / "whole")
    runs = tmp_path / "broken"

    class Dies(Exception):
        pass

    for place in ("record", "report", "started", "user_attr"):
        coordinator = Coordinator(search, runs, Planted(runs), sync=False, on_message=lambda line: None)
        with monkeypatch.context() as patch:

            def die(*_, **__):
                raise Dies

            match place:
                case "record":
                    patch.setattr("harness.search.trials.TrialRecord.write", die)
                case "report":
                    patch.setattr(Coordinator, "_report", die)
                case "started":
                    patch.setattr(coordinator.workers, "start", die)
                case "user_attr":
                    patch.setattr("optuna.Trial.set_user_attr", die)
            with pytest.raises(Dies):
                coordinator.run()
    hunt(search, runs)
    assert points(search, runs) == points(search, tmp_path / "whole")
    assert [trial.state for trial in read_trials(search.folder(runs))] == ["complete"] * 6


class Flaky(Planted):
    """Each question and each start fails the first time, as on a busy cluster."""

    def __init__(self, runs_folder, error, times=1):
        super().__init__(runs_folder)
        self.error, self.times, self.failures = error, times, Counter()

    def start(self, study):
        self._fail_at_first(study.runs[0].run_key)
        super().start(study)

    def busy(self, run_keys):
        if isinstance(self.error, NoAnswer):
            self._fail_at_first(frozenset(run_keys))
        return set()

    def _fail_at_first(self, what):
        self.failures[what] += 1
        if self.failures[what] <= self.times:
            raise self.error


@pytest.mark.parametrize("error", [NoAnswer("squeue hangs"), LaunchError("SLURM did not accept the jobs")], ids=type)
def test_a_hiccup_of_slurm_ends_no_search_and_changes_no_trial(make, tmp_path, error):
    search = make(LAMBDA_S, "search.trials=6")
    hunt(search, tmp_path / "smooth")
    workers, said = Flaky(tmp_path / "runs", error), []
    assert Coordinator(search, tmp_path / "runs", workers, sync=False, on_message=said.append).run()
    assert points(search, tmp_path / "runs") == points(search, tmp_path / "smooth")
    assert len(workers.started) == len(set(workers.started)) == 6
    assert f"the search waits for SLURM: {error}" in said


class AtALimit(Planted):
    """SLURM takes one job at a time of this search: another one is refused until the first has ended."""

    def __init__(self, runs_folder):
        super().__init__(runs_folder)
        self.waiting = []
        self.looks = self.refused = 0

    def start(self, study):
        if self.waiting:
            self.refused += 1
            raise LaunchError("MaxSubmitJobs")
        self.waiting.append(study)

    def busy(self, run_keys):
        busy = {study.runs[0].run_key for study in self.waiting} & run_keys
        self.looks += 1
        if self.waiting and self.looks % 6 == 0:
            super().start(self.waiting.pop())
        return busy

    def may_be_full(self):
        return True


def test_a_limit_on_jobs_ends_no_search_which_says_so_once_and_follows_the_others(make, tmp_path):
    workers, said = AtALimit(tmp_path / "runs"), []
    search = make(LAMBDA_S, "search.trials=4", "search.parallel=3")
    assert Coordinator(search, tmp_path / "runs", workers, sync=False, on_message=said.append).run()
    assert len(workers.started) == len(set(workers.started)) == 4
    assert workers.refused > 3  # after which a search ends where no limit can be the reason
    assert said.count("the search waits for SLURM: MaxSubmitJobs") == said.count("SLURM takes jobs again") > 0


def test_a_search_whose_jobs_slurm_refuses_again_and_again_ends(make, tmp_path):
    workers = Flaky(tmp_path / "runs", LaunchError("invalid partition"), times=3)
    with pytest.raises(LaunchError, match="invalid partition"):
        Coordinator(make(), tmp_path / "runs", workers, sync=False, on_message=lambda line: None).run()
    assert workers.started == []


def test_a_run_is_busy_while_any_of_its_jobs_is_in_the_queue(tmp_path, monkeypatch):
    for stamp, job in (("20260101", "7_0"), ("20260102", "8_0")):
        folder = tmp_path / "runs" / ".jobs" / "hunt" / stamp / "claims"
        folder.mkdir(parents=True)
        (folder / "aaaa").write_text(job)
        (folder.parent / "submission.json").write_text('{"cluster": "slurm", "runs": ["aaaa"]}')
    (tmp_path / "runs" / "aaaa").mkdir()
    RunDirectory(tmp_path / "runs" / "aaaa").set_status(Status("interrupted", cause="signal"))
    (tmp_path / "squeue").write_text("#!/bin/sh\necho '7_0|PENDING||BeginTime|N/A|17'\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    workers = SlurmWorkers(tmp_path / "runs", None, None, sync=False)
    assert workers.busy({"aaaa", "bbbb"}) == {"aaaa"}


def test_two_coordinators_at_once_are_refused(make, tmp_path):
    search = make()
    folder = search.folder(tmp_path / "runs")
    folder.mkdir(parents=True)
    lock = FolderLock(folder / "lock", "search hunt")
    lock.acquire()
    try:
        with pytest.raises(RecordError, match=rf"search hunt is in use by process {os.getpid()}"):
            hunt(search, tmp_path / "runs")
    finally:
        lock.release()


def test_another_space_under_the_same_name_is_refused_and_more_trials_are_not(make, tmp_path):
    hunt(make(LAMBDA_S, "search.trials=2"), tmp_path / "runs")
    with pytest.raises(RecordError, match=r"space: stored .* now|was started differently"):
        hunt(make(LAMBDA_S.replace("1.0e-5", "1.0e-6")), tmp_path / "runs")
    changed = make(
        LAMBDA_S, "search.trials=3", "search.parallel=2", "resources.kernels=reference", "records.log_every=7"
    )
    assert hunt(changed, tmp_path / "runs")[0]


@pytest.mark.parametrize("torn", [b'{"op_code": 5, "wor', b"\x00\x00\x00\n", b'{"a": 1}{"b":\n{"half'])
def test_a_torn_line_of_optunas_journal_is_cut_off_and_the_search_goes_on(make, tmp_path, torn):
    hunt(make(LAMBDA_S, "search.trials=3"), tmp_path / "runs")
    search = make(LAMBDA_S, "search.trials=4")
    journal = search.folder(tmp_path / "runs") / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + torn)
    assert repair_journal(journal) == len(torn)
    assert journal.read_bytes() == whole
    journal.write_bytes(whole[:-7] + torn)  # the last thing told is lost as well
    assert hunt(search, tmp_path / "runs")[0]
    trials = read_trials(search.folder(tmp_path / "runs"))
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert len(open_study(search, search.folder(tmp_path / "runs")).trials) == 4


@pytest.mark.parametrize("num_stored", [0, 1, 2])
@pytest.mark.parametrize("number", [0, 3, 13])
@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes", "nsga2", "qmc", "grid"])
def test_a_trial_that_is_lost_between_two_parameters_gets_the_same_point(
    make, tmp_path, monkeypatch, sampler, number, num_stored
):
    space = LAMBDA_S.replace("1.0e-1], log: true", "1.0e-1]").replace("5.0e-2], log: true", "5.0e-2]")
    if sampler == "grid":
        space = space.replace("[1.0e-5, 1.0e-1]", "[0, 0.7], step: 0.1").replace(
            "[1.0e-4, 5.0e-2]", "[0, 0.7], step: 0.1"
        )
    search = make(space, f"search.sampler={sampler}", "search.trials=16")

    def points_of(name, kill):
        (tmp_path / name).mkdir()
        study, points, calls = open_study(search, tmp_path / name), [], 0
        suggest_value = optuna_backend._suggest_value

        def killed(*arguments):
            nonlocal calls
            calls += 1
            if calls > num_stored:
                raise KeyboardInterrupt
            return suggest_value(*arguments)

        for index in range(number + 2):
            if kill and index == number:
                with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                    patch.setattr(optuna_backend, "_suggest_value", killed)
                    suggest(search, study, set())
                    raise KeyboardInterrupt  # after the last parameter
                study = open_study(search, tmp_path / name)
            given, point, _ = suggest(search, study, set())
            assert given == index
            points.append(point)
            report_end(study, index, "complete", [sum(point.values())])
        return points

    assert points_of("killed", kill=True) == points_of("whole", kill=False)


@pytest.mark.slow
def test_a_coordinator_killed_ten_times_at_random_makes_exactly_the_trials_that_were_asked_for(make, tmp_path):
    search = make(LAMBDA_S, "search.trials=40")
    hunt(search, tmp_path / "whole")
    runs, dice = tmp_path / "killed", random.Random(0)
    command = [sys.executable, __file__, str(tmp_path / "search.yaml"), str(runs), "search.trials=40"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    folder = search.folder(runs) / "trials"
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    ) as lives:
        for _ in range(10):
            num_trials = dice.randrange(1, 4)
            goal = len(list(folder.glob("*.json"))) + num_trials
            lives.stdin.write(f"{num_trials + 1}\n")
            pid = int(lives.stdout.readline())
            # Where some of a life's trials were begun by an earlier one, it ends before the goal.
            while len(list(folder.glob("*.json"))) < goal and psutil.pid_exists(pid):
                time.sleep(0.002)
            time.sleep(dice.random() * 0.02)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            assert int(lives.stdout.readline()) in (-signal.SIGKILL, 0)
        lives.stdin.write("40\n")
        lives.stdout.readline()
        assert int(lives.stdout.readline()) == 0
    trials = read_trials(search.folder(runs))
    stored = open_study(search, search.folder(runs)).trials
    assert [trial.number for trial in trials] == list(range(40)) == [one.number for one in stored]
    assert {trial.state for trial in trials} == {"complete"} and {one.state.name for one in stored} == {"COMPLETE"}
    assert len({key for trial in trials for key in trial.run_keys}) == 40
    assert points(search, runs) == points(search, tmp_path / "whole")


# ------------------------------------------------------------------------------------- replicates, objectives, identity


def test_replicates_are_averaged_and_keep_their_interval(make, tmp_path):
    search = make(LAMBDA_S, "search.trials=2", "search.replicates=3")
    hunt(search, tmp_path / "runs", value=lambda spec: [1.0, 2.0, 6.0][spec["seed"]])
    for trial in read_trials(search.folder(tmp_path / "runs")):
        assert trial.replicate_values == {"eval/nll_bpd": [1.0, 2.0, 6.0]}
        assert trial.values == {"eval/nll_bpd": 3.0}
        # t sqrt(s^2 / n): t = 4.3026527 with two degrees of freedom, s^2 = 7
        assert trial.half_width("eval/nll_bpd") == pytest.approx(4.3026527 * (7 / 3) ** 0.5, rel=1e-7)


def test_wilcoxon_stops_a_hopeless_trial_before_its_last_replicate(make, tmp_path):
    search = make(LAMBDA_S + "  pruner: wilcoxon\n", "search.trials=12", "search.replicates=8")
    _, workers = hunt(search, tmp_path / "runs", value=lambda spec: quadratic(spec, seed_matters=True))
    trials = read_trials(search.folder(tmp_path / "runs"))
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert pruned and len(workers.started) < 12 * 8
    assert all("(wilcoxon)" in trial.reason for trial in pruned)
    stored = open_study(search, search.folder(tmp_path / "runs")).trials
    assert Counter(one.state.name for one in stored) == {"COMPLETE": 12 - len(pruned), "PRUNED": len(pruned)}


def test_the_front_of_several_objectives_holds_what_nothing_beats(make):
    from harness.search.trials import TrialRecord

    search = make(
        LAMBDA_S.replace("[{eval/nll_bpd: minimize}]", "[{eval/nll_bpd: minimize}, {eval/L_0_bpd: maximize}]")
    )
    values = [(1.0, 1.0), (2.0, 3.0), (2.0, 2.0), (3.0, 3.0), (0.5, 0.5)]
    trials = [
        TrialRecord(index, {}, [], state="complete", values={"eval/nll_bpd": a, "eval/L_0_bpd": b})
        for index, (a, b) in enumerate(values)
    ]
    assert [trial.number for trial in pareto_front(trials, search.metrics)] == [4, 0, 1]


def test_an_identical_point_reuses_the_finished_run_and_that_is_said(make, tmp_path):
    text = (
        "search: {space: {model.depth: {int: [1, 2]}}, metrics: [{eval/nll_bpd: minimize}], trials: 6, sampler: random}"
    )
    search, said = make(text), []
    workers = Planted(tmp_path / "runs")
    Coordinator(search, tmp_path / "runs", workers, sync=False, on_message=said.append).run()
    trials = read_trials(search.folder(tmp_path / "runs"))
    assert len(trials) == 6 and len(workers.started) == 2
    reusing = [trial for trial in trials if trial.reused]
    assert len(reusing) == 4
    for trial in reusing:
        assert f"{trial.arm}: reuses run {trial.run_keys[0]}, which was done before" in said
    arms = {RunDirectory(tmp_path / "runs" / key).studies()["hunt"]["arm"] for key in set(workers.started)}
    assert arms == {trial.arm for trial in trials if not trial.reused}


def test_the_record_of_a_trial_has_the_fields_that_earlier_versions_wrote_and_read(tmp_path):
    stored = {
        "number": 3,
        "point": {"model.depth": 1},
        "run_keys": ["a" * 16, "b" * 16],
        "served": ["b" * 16],
        "state": "complete",
        "reason": "",
        "values": {"eval/nll_bpd": 1.5},
        "replicate_values": {"eval/nll_bpd": [1.0, 2.0]},
        "asked_seconds": 1.0,
        "ended_seconds": 2.0,
    }
    path = tmp_path / "trials" / "trial-0003.json"
    path.parent.mkdir()
    path.write_text(json.dumps(stored))
    (trial,) = read_trials(tmp_path)
    assert trial.reused == ["b" * 16]
    trial.write(tmp_path)
    assert list(json.loads(path.read_text()).items()) == list(stored.items())


def test_a_run_of_another_study_is_reused_by_a_trial_and_joins_the_search(make, tmp_path):
    text = (
        "search: {space: {model.depth: {int: [1, 2]}}, metrics: [{eval/nll_bpd: minimize}], trials: 2, sampler: grid}"
    )
    search = make(text)
    (tmp_path / "study.yaml").write_text(BASE.replace("study: hunt", "study: other"))
    run = load_study(tmp_path / "study.yaml").runs[0]
    from dataclasses import replace

    workers = Planted(tmp_path / "runs")
    workers.start(replace(load_study(tmp_path / "study.yaml"), runs=(run,)))
    workers.started.clear()
    Coordinator(search, tmp_path / "runs", workers, sync=False, on_message=lambda line: None).run()
    assert run.run_key not in workers.started and len(workers.started) == 1
    assert set(RunDirectory(tmp_path / "runs" / run.run_key).studies()) == {"hunt", "other"}


def test_the_best_trial_as_a_study_is_the_same_run(make, tmp_path):
    search = make(LAMBDA_S, "search.trials=3")
    hunt(search, tmp_path / "runs")
    (best, *_) = pareto_front(read_trials(search.folder(tmp_path / "runs")), search.metrics)
    (tmp_path / "best.yaml").write_text(best_study(search, best))
    study = load_study(tmp_path / "best.yaml")
    assert study.name == "hunt-best"
    assert [run.run_key for run in study.runs] == best.run_keys
    assert study.runs[0].evaluations == search.trial(best.number, best.point).runs[0].evaluations


# ------------------------------------------------------------------------------------------------------------ real runs

REAL = """
search:
  space:
    optim.lr: {float: [1.0e-4, 1.0e-1], log: true}
    diffusion.schedule.s: {float: [1.0e-3, 1.0e-1], log: true}
  metrics: [{eval/nll_bpd: minimize}]
  trials: 3
  parallel: 2
"""


def start_run(search, runs, point):
    """Write the directory of one real run of the search, as launching it would."""
    run = search.trial(0, point).runs[0]
    directory = RunDirectory(runs / run.run_key)
    directory.register(run)
    return directory


def test_a_run_that_is_to_be_pruned_ends_at_its_next_step_and_keeps_its_checkpoint(make, tmp_path):
    from harness.job.job import run_job

    directory = start_run(make(REAL), tmp_path / "runs", {"optim.lr": 1e-3})
    directory.request_pruning("eval/nll_bpd 9 at step 10 (median)")
    assert run_job(directory.path, sync=False, show_progress=False) == "pruned"
    status = directory.status()
    assert status.state == "pruned"
    assert directory.durable_step() == 1
    assert status.reason == "eval/nll_bpd 9 at step 10 (median)"
    assert [event.name for event in directory.events()][-1] == "pruned"
    assert list((directory.path / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_pruned_run_is_killed_in_mlflow_with_its_state_as_a_tag(make, tmp_path):
    import mlflow

    from harness.job.job import run_job
    from harness.tracking.sync import sync_run

    directory = start_run(make(REAL), tmp_path / "runs", {"optim.lr": 1e-3})
    directory.request_pruning("hopeless")
    run_job(directory.path, sync=False, show_progress=False)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_id = sync_run(directory, tracking_uri=uri).studies["hunt"].run_id
    run = mlflow.MlflowClient(uri).get_run(run_id)
    assert (run.info.status, run.data.tags["state"], run.data.tags["reason"]) == ("KILLED", "pruned", "hopeless")


def test_the_metrics_that_plan_knows_are_those_that_a_run_gives(make, tmp_path):
    from harness.job.job import run_job

    base = BASE[: BASE.index("evaluate:")] + (
        "evaluate:\n  - {name: eval, nll: {num_images: 16, evaluations_per_image: 4}, "
        "fidelity: {num_samples: 32, num_steps: 5, prc_reference: 32}, "
        "rate_distortion: {num_images: 4, num_steps: 5}}\n"
        "  - {name: eval_noise, weights: raw, noise_scale: {batch_size: 4, small_per_big: 2, num_big: 2}}\n"
    )
    search = make(REAL, base=base)
    run = search.trial(0, {"optim.lr": 1e-3}).runs[0]
    directory = start_run(search, tmp_path / "runs", {"optim.lr": 1e-3})
    assert run_job(directory.path, sync=False, show_progress=False) == "done"
    known = {name for evaluation in run.evaluations for name in outputs(evaluation, run.spec).metrics}
    given = {row.key for row in directory.rows() if row.key.startswith("eval") and row.x == row.train_step}
    assert known == given - {"eval/L_t_bpd"}


@pytest.mark.slow
def test_a_search_on_this_machine_survives_killed_workers_and_shows_itself_in_mlflow(make, tmp_path):
    import mlflow

    search = make(REAL, "train.steps=300")
    runs, said, killed = tmp_path / "runs", [], []

    class Killing(LocalWorkers):
        def busy(self, run_keys):
            keys = super().busy(run_keys)
            for key in keys:  # each run's first worker, as soon as it has trained
                run = RunDirectory(runs / key)
                while key not in killed and super().busy({key}):
                    if (owner := run.writer()) and run.history("train/loss")[0]:
                        killed.append(key)
                        os.kill(owner["pid"], signal.SIGKILL)
                    time.sleep(0.01)  # a whole training may fit between two looks of the coordinator
            return keys

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    workers = Killing(runs, 2, 2)
    assert Coordinator(search, runs, workers, tracking_uri=uri, on_message=said.append).run()
    trials = read_trials(search.folder(runs))
    assert killed and {trial.state for trial in trials} == {"complete"} and len(trials) == 3
    for key in killed:
        assert len(RunDirectory(runs / key).attempts()) == 2
        assert any(f"run {key} resumes from step" in line for line in said)

    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("hunt")
    by_name = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = by_name.pop("search hunt")
    assert {run.data.tags["mlflow.parentRunId"] for run in by_name.values()} == {parent.info.run_id}
    assert set(by_name) == {f"{trial.arm} r0" for trial in trials}
    for trial in trials:
        assert float(by_name[f"{trial.arm} r0"].data.params["optim.lr"]) == trial.point["optim.lr"]
    (best, *_) = pareto_front(trials, search.metrics)
    assert parent.info.status == "FINISHED" and parent.data.params["space.optim.lr"] == "0.0001 to 0.1, log"
    assert parent.data.tags["best_trial"] == best.arm and parent.data.tags["finished"] == "3 of 3"
    assert parent.data.metrics["best/eval/nll_bpd"] == best.values["eval/nll_bpd"]


@pytest.mark.parametrize("pruner", ["median", "hyperband", "asha"])
def test_each_pruner_ends_the_worst_of_many_curves_and_never_the_best(make, pruner):
    base = BASE.replace("evaluations_per_image: 4}}", "evaluations_per_image: 4}, every: 1}")
    study = open_study(make(LAMBDA_S + f"  pruner: {pruner}\n", base=base), None)

    def is_pruned(level: float) -> bool:
        trial = study.ask()
        for step in range(1, 20):
            trial.report(level + 1 / step, step)
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                return True
        study.tell(trial, level)
        return False

    assert not any(is_pruned(1 - index / 20) for index in range(20))  # each better than all before it
    assert any(is_pruned(9.0) for _ in range(4))  # hyperband begins some trials in a bracket that waits


class TrainsTheHopeless(LocalWorkers):
    """Trains the trial of the smallest learning rate; the others have their curves, and are done a poll later."""

    def __init__(self, runs_folder):
        super().__init__(runs_folder, 1, 1)
        self.runs_folder, self.planted, self.seen = runs_folder, {}, set()

    def start(self, study):
        (run,) = study.runs
        if run.spec.optim.lr == 1e-7:
            super().start(study)
            return
        directory = RunDirectory(self.runs_folder / run.run_key)
        directory.register(run)
        with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
            for step in range(20, run.spec.train.steps, 20):
                journal.metrics(step, {"eval/nll_bpd": 0.0})
        self.planted[run.run_key] = study

    def busy(self, run_keys):
        for key in self.seen & run_keys:
            Planted(self.runs_folder, value=lambda spec: 0.0).start(self.planted.pop(key))
        self.seen = run_keys & self.planted.keys()
        return super().busy(run_keys) | self.seen


@pytest.mark.slow
def test_a_hopeless_trial_is_pruned_while_it_trains(make, tmp_path):
    """The first trials are good, as planted; the last one trains, and its learning rate makes it the worst by far."""
    base = BASE.replace("evaluations_per_image: 4}}", "evaluations_per_image: 4}, every: 20}")
    text = """
search:
  space: {optim.lr: {choices: [1.0e-2, 2.0e-2, 3.0e-2, 4.0e-2, 5.0e-2, 1.0e-7]}}
  metrics: [{eval/nll_bpd: minimize}]
  sampler: grid
  pruner: median
  seed: 1
  trials: 6
"""
    search = make(text, "train.steps=1500", base=base)
    runs = tmp_path / "runs"
    assert Coordinator(search, runs, TrainsTheHopeless(runs), sync=False, on_message=lambda line: None).run()
    trials = read_trials(search.folder(runs))
    hopeless = trials[-1]  # the seed puts it last: before five complete trials, the median prunes nothing
    assert hopeless.point == {"optim.lr": 1e-7}
    directory = RunDirectory(runs / hopeless.run_keys[0])
    assert hopeless.state == directory.status().state == "pruned"
    assert "(median)" in hopeless.reason and directory.status().reason == hopeless.reason
    assert 20 <= directory.durable_step() < 1500
    assert open_study(search, search.folder(runs)).trials[-1].state.name == "PRUNED"


@pytest.mark.slurm
def test_a_search_on_slurm_goes_on_through_a_limit_on_jobs_and_an_outage(
    make, tmp_path, slurm, submit_limit, monkeypatch
):
    search = make(REAL, "search.trials=5", "search.parallel=4", "resources.memory_gib=1")
    runs, said = tmp_path / "runs", []
    monkeypatch.setattr(recent, "RECENT_SECONDS", 1.0)
    while live_jobs():  # of other tests, which count, too
        time.sleep(0.2)
    submit_limit(2)
    workers = SlurmWorkers(runs, None, None, sync=False)
    workers.poll_seconds = 1.0

    def on_message(line):
        if ": complete" in line and not any(": complete" in earlier for earlier in said):
            slurm.crash("slurmctld")
        elif line.startswith("the search waits for SLURM: squeue failed"):
            slurm.revive("slurmctld")
        said.append(line)

    assert Coordinator(search, runs, workers, sync=False, on_message=on_message).run()
    trials = read_trials(search.folder(runs))
    assert len(trials) == 5 and {trial.state for trial in trials} == {"complete"}
    began = [RunDirectory(runs / trial.run_keys[0]).events("started")[0].fields for trial in trials]
    assert len({facts["slurm_job_id"] for facts in began}) == 5
    assert sum(trial.asked_seconds < min(one.ended_seconds for one in trials) for trial in trials) == 3  # one waits
    waits = [line for line in said if line.startswith("the search waits for SLURM: ")]
    assert any("did not accept the jobs" in line for line in waits) and "SLURM takes jobs again" in said
    assert any("squeue failed" in line for line in waits) and "SLURM answers again" in said


class WaitsToBeKilled(Planted):
    """Starts so many runs and then no other, so that a kill that comes late still finds trials to do."""

    def __init__(self, runs_folder, num_runs):
        super().__init__(runs_folder)
        self.num_runs = num_runs

    def start(self, study):
        if len(self.started) == self.num_runs:
            time.sleep(3600)
        super().start(study)


def coordinate(file, runs_folder, *sets):
    """Read numbers of runs from standard input; for each, fork a coordinator; print its process number and its end."""
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            workers = WaitsToBeKilled(Path(runs_folder), int(line))
            search = load_search(file, sets=sets)
            finished = Coordinator(search, Path(runs_folder), workers, sync=False, on_message=lambda line: None).run()
            os._exit(0 if finished else 1)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":  # the coordinators that are killed
    coordinate(*sys.argv[1:])


# ------------------------------------------------------------------------------------------------- what is asked for


def test_a_search_asks_for_its_trials_until_a_study_takes_its_name_and_again_when_it_goes_on(make, tmp_path):
    runs = tmp_path / "runs"

    def asked_for():
        return {run.run_key for run in load_records(runs, "hunt")}

    def of_trials():
        return {key for trial in read_trials(make().folder(runs)) for key in trial.run_keys}

    path = tmp_path / "study.yaml"
    path.write_text(BASE)
    study = load_study(path)
    submit(planning.plan(study, runs), cluster="debug", sync=False)
    assert asked_for() == {study.runs[0].run_key}
    hunt(make(LAMBDA_S, "search.trials=2"), runs)
    assert asked_for() == of_trials() and len(of_trials()) == 2
    assert sorted(run.arm for run in load_records(runs, "hunt")) == ["trial-0000", "trial-0001"]
    submit(planning.plan(study, runs), cluster="debug", sync=False)
    assert asked_for() == {study.runs[0].run_key}
    assert fig_search.trials(load_records(runs, "hunt")).empty
    hunt(make(LAMBDA_S, "search.trials=3"), runs)
    assert asked_for() == of_trials() and len(of_trials()) == 3
    assert fig_search.trials(load_records(runs, "hunt"))["trial"].nunique() == 3


def test_a_search_of_a_version_without_manifests_keeps_its_trials(make, tmp_path):
    runs = tmp_path / "runs"
    hunt(make(LAMBDA_S, "search.trials=2"), runs)
    (runs / ".studies" / "hunt" / "manifest.json").unlink()
    hunt(make(LAMBDA_S, "search.trials=3"), runs)
    assert [run.arm for run in load_records(runs, "hunt")] == ["trial-0000", "trial-0001", "trial-0002"]
