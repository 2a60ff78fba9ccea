"""Rungs: the runs pause, the best go on, and end in the bits of runs that never paused."""

import threading
from dataclasses import replace

import pytest

from harness.errors import SpecError, TrainingError
from harness.job.job import _Job, run_job
from harness.job.verify import digests, results
from harness.launch import planning
from harness.launch import submit as submit_module
from harness.launch.rungs import drop, going_on, unsettled
from harness.launch.submit import submit
from harness.records.directory import RunDirectory
from harness.records.lock import FolderLock
from harness.records.manifest import read_manifest
from harness.search.coordinator import Coordinator
from harness.search.loading import load_search
from harness.search.optuna_backend import open_study
from harness.search.trials import read_trials
from harness.search.workers import Workers
from harness.study.expand import load_study
from harness.training.checkpoints import Checkpoints

BASE = """
study: climb
data: mog
diffusion: {num_timesteps: 30}
model: {name: mlp, width: 16, depth: 1}
optim: {lr: 1.0e-3, decay: cosine}
train: {steps: 24, batch_size: 16, ema_rate: 0.8}
records: {log_every: 5}
resources: {device: cpu, threads: 1}
evaluate:
  - {name: eval, every: 4, nll: {num_images: 16, evaluations_per_image: 4}}
"""
RUNGS = "rungs: [4, 12, 24]"
SEARCH = f"""
search:
  space: {{optim.lr: {{choices: [1.0e-4, 1.0e-3, 3.0e-3, 1.0e-2]}}}}
  metrics: [{{eval/nll_bpd: minimize}}]
  sampler: grid
  trials: 4
  parallel: 2
  {RUNGS}
  reduction_factor: 2
"""
ARMS = f"""
grid: {{optim.lr: [1.0e-4, 1.0e-3, 3.0e-3, 1.0e-2]}}
compare: {{metric: nll}}
{RUNGS}
reduction_factor: 2
"""


class InProcess(Workers):
    """Works on a run at once, in this process."""

    poll_seconds = 0.0

    def __init__(self, runs_folder):
        self.runs_folder = runs_folder

    def start(self, study):
        submit(planning.plan(study, self.runs_folder), cluster="debug", asks=False, sync=False).wait(lambda: None)

    def busy(self, run_keys):
        return set()


def search_with_rungs(folder, workers=InProcess):
    path = folder / "search.yaml"
    path.write_text(BASE + SEARCH)
    search = load_search(path)
    runs = folder / "runs"
    finished = Coordinator(search, runs, workers(runs), sync=False, on_message=lambda line: None).run()
    return search, runs, finished


def trained_steps(directory):
    """Return the number of steps that were computed over all attempts: from where each began to its last checkpoint."""
    began = {event.attempt: event.fields["resumed_from_step"] for event in directory.events("started")}
    ended = {event.attempt: event.fields["step"] for event in directory.events("checkpoint")}
    return sum(ended.get(attempt, step) - step for attempt, step in began.items())


def bits(directory):
    """Return the digest of each part of the newest checkpoint, and all results."""
    state = Checkpoints(directory.checkpoints_folder).latest("cpu")
    return state[0], digests(state[1]), results(directory)


def flat(runs_folder, run):
    """Train the same run in one go."""
    directory = RunDirectory(runs_folder / run.run_key)
    directory.register(run)
    assert run_job(directory.path, sync=False, show_progress=False) == "done"
    return directory


@pytest.fixture(scope="module")
def climbed(tmp_path_factory):
    return search_with_rungs(tmp_path_factory.mktemp("climbed"))


@pytest.mark.slow
def test_a_search_with_rungs_ends_in_the_bits_of_the_flat_one_and_computes_no_step_twice(climbed, tmp_path):
    search, runs, finished = climbed
    trials = read_trials(search.folder(runs))
    assert finished and [trial.state for trial in trials].count("complete") == 1
    at_rung = {trial.number: trial.rung_values["4"] for trial in trials}
    best_two = sorted(at_rung, key=at_rung.get)[:2]
    survivor = next(trial for trial in trials if trial.state == "complete")
    steps = {trial.number: RunDirectory(runs / trial.run_keys[0]).durable_step() for trial in trials}
    assert {number for number, step in steps.items() if step > 4} == set(best_two)
    assert steps[survivor.number] == 24 and sorted(steps.values()) == [4, 4, 12, 24]
    for trial in trials:
        directory = RunDirectory(runs / trial.run_keys[0])
        assert trained_steps(directory) == steps[trial.number]
        if trial.state == "pruned":
            assert directory.status().state == "pruned" and directory.status().cause == "rung"
            assert directory.status().reason == trial.reason and "is not among the best" in trial.reason
    paused = RunDirectory(runs / survivor.run_keys[0])
    assert len(paused.attempts()) == 3 and not paused.problems()
    (run,) = search.trial(survivor.number, survivor.point).runs
    assert bits(paused) == bits(flat(tmp_path, run))

    optuna_trials = open_study(search, search.folder(runs)).get_trials()
    assert [trial.state.name.lower() for trial in optuna_trials] == [trial.state for trial in trials]
    for trial, told in zip(trials, optuna_trials, strict=True):
        assert told.intermediate_values == {int(step): value for step, value in trial.rung_values.items()}


@pytest.mark.slow
def test_a_search_by_tpe_ends_in_the_bits_of_the_flat_one_and_computes_no_step_twice(tmp_path):
    """Two brackets of ten, of which the second is suggested by what the first has shown; killed in the middle of it."""
    path, runs = tmp_path / "search.yaml", tmp_path / "runs"
    space = SEARCH.replace("{choices: [1.0e-4, 1.0e-3, 3.0e-3, 1.0e-2]}", "{float: [1.0e-5, 1.0e-1], log: true}")
    path.write_text(BASE + space.replace("grid", "tpe\n  bracket_size: 10").replace("trials: 4", "trials: 20"))
    search = load_search(path, sets=["search.rungs=[4, 24]", "search.reduction_factor=5"])
    Dies.left = 17
    with pytest.raises(KeyboardInterrupt):
        Coordinator(search, runs, Dies(runs), sync=False, on_message=lambda line: None).run()
    assert Coordinator(search, runs, InProcess(runs), sync=False, on_message=lambda line: None).run()
    trials = read_trials(search.folder(runs))
    for bracket in (trials[:10], trials[10:]):
        best = sorted(bracket, key=lambda trial: trial.rung_values["4"])[:2]
        assert {trial.number for trial in best} == {trial.number for trial in bracket if trial.state == "complete"}
    for trial in trials:
        directory = RunDirectory(runs / trial.run_keys[0])
        assert trained_steps(directory) == directory.durable_step() == (24 if trial.state == "complete" else 4)
        if trial.state == "complete":
            (run,) = search.trial(trial.number, trial.point).runs
            assert bits(directory) == bits(flat(tmp_path / "flat", run))


class Dies(InProcess):
    """Works on a few runs; the coordinator dies before the next."""

    left = 0

    def start(self, study):
        if not Dies.left:
            raise KeyboardInterrupt
        Dies.left -= 1
        super().start(study)


@pytest.mark.slow
def test_a_coordinator_that_dies_between_rungs_lets_the_same_trials_go_on(climbed, tmp_path):
    search, runs, _ = climbed
    for starts in (3, 1, 1):
        Dies.left = starts
        with pytest.raises(KeyboardInterrupt):
            search_with_rungs(tmp_path, Dies)
    again, resumed, finished = search_with_rungs(tmp_path)
    first, second = (read_trials(of.folder(folder)) for of, folder in ((search, runs), (again, resumed)))
    assert finished and [trial.rung_values for trial in first] == [trial.rung_values for trial in second]
    assert [trial.state for trial in first] == [trial.state for trial in second]
    for trial in second:
        directory = RunDirectory(resumed / trial.run_keys[0])
        assert trained_steps(directory) == directory.durable_step()


@pytest.mark.slow
def test_the_best_arms_go_on_from_rung_to_rung_and_another_study_gets_a_dropped_one_whole(tmp_path):
    path, runs = tmp_path / "arms.yaml", tmp_path / "runs"
    path.write_text(BASE + ARMS)
    plan = planning.plan(load_study(path), runs)
    assert [planned.run.until for planned in plan.runs] == [4] * 4
    rounds = []
    while plan:
        submission = submit(plan, cluster="debug", sync=False)
        assert submission.wait(lambda: None)
        rounds.append(len(submission.runs))
        plan = going_on(planning.plan(load_study(path), runs))
    assert rounds == [4, 2, 1]
    plan = planning.plan(load_study(path), runs)
    states = [planned.state for planned in plan.runs]
    assert sorted(states) == ["done", "pruned", "pruned", "pruned"] and not plan.to_do
    submit(plan, cluster="debug", sync=False)  # nothing goes on; the last that was dropped is told
    assert [planned.directory.status().state for planned in plan.runs] == states
    assert all(trained_steps(planned.directory) == planned.directory.durable_step() for planned in plan.runs)
    until = [membership["until"] for membership in read_manifest(runs, "climb").runs.values()]
    assert sorted(until) == [4, 4, 12, 24]

    dropped = next(planned for planned in plan.runs if planned.state == "pruned" and planned.status.step == 4)
    other = tmp_path / "other.yaml"
    other.write_text((BASE + ARMS).replace("climb", "whole").replace(RUNGS, "").replace("reduction_factor: 2", ""))
    rest = planning.plan(load_study(other), runs)
    assert {planned.run_key: planned.state for planned in rest.runs}[dropped.run_key] == "interrupted"
    assert submit(rest, cluster="debug", sync=False).wait(lambda: None)
    assert {planned.state for planned in planning.plan(load_study(other), runs).runs} == {"done"}
    assert bits(dropped.directory) == bits(flat(tmp_path / "flat", dropped.run))


def climb_arms(path, runs, make_plan=planning.plan):
    """Submit a study from rung to rung, as `submit` does on this machine; return how many runs each time."""
    plan, rounds = make_plan(load_study(path), runs), []
    while plan:
        submission = submit(plan, cluster="debug", sync=False)
        assert submission.wait(lambda: None)
        rounds.append(len(submission.runs))
        plan = going_on(make_plan(load_study(path), runs))
    return rounds


IN_PYTHON = """
import harness

SPEC = {
    "data": "mog", "diffusion": {"num_timesteps": 30}, "model": {"name": "mlp", "width": 16, "depth": 1},
    "train": {"steps": 24, "batch_size": 16, "ema_rate": 0.8}, "records": {"log_every": 5},
    "resources": {"device": "cpu", "threads": 1},
}
RATES = [1e-4, 1e-3, 3e-3, 1e-2]
NLL = {"name": "eval", "every": 4, "nll": {"num_images": 16, "evaluations_per_image": 4}}


def study():
    runs = [
        harness.run(arm=f"lr={lr}", spec=SPEC | {"optim": {"lr": lr, "decay": "cosine"}}, evaluate=[NLL])
        for lr in RATES
    ]
    return harness.python_study("climb", runs, rungs=[4, 12, 24], reduction_factor=2, compare={"metric": "nll"})
"""


@pytest.mark.slow
def test_a_study_in_python_climbs_the_rungs_of_the_same_one_in_yaml(tmp_path):
    path, runs = tmp_path / "arms.py", tmp_path / "runs"
    path.write_text(IN_PYTHON)
    (tmp_path / "arms.yaml").write_text(BASE + ARMS)
    assert climb_arms(path, runs) == [4, 2, 1]
    plan, same = (planning.plan(load_study(tmp_path / f"arms.{kind}"), runs) for kind in ("py", "yaml"))
    assert [(one.run_key, one.state, one.run.until) for one in plan.runs] == [
        (one.run_key, one.state, one.run.until) for one in same.runs
    ]
    assert sorted(planned.state for planned in plan.runs) == ["done", "pruned", "pruned", "pruned"]
    best = next(planned for planned in plan.runs if planned.state == "done")
    assert bits(best.directory) == bits(flat(tmp_path / "flat", best.run))


def fails(monkeypatch, *, seed, lr, step):
    """Let the run of a seed and a learning rate fail at a step."""

    def measure(job, training, data, at, _measure=_Job._evaluate_during):
        if (job.spec.seed, job.spec.optim.lr) == (seed, lr) and at >= step:
            raise TrainingError("the loss is not a number")
        return _measure(job, training, data, at)

    monkeypatch.setattr(_Job, "_evaluate_during", measure)


@pytest.mark.slow
def test_an_arm_of_which_one_replicate_fails_is_dropped_and_competes_again_when_it_is_mended(tmp_path, monkeypatch):
    path, runs = tmp_path / "arms.yaml", tmp_path / "runs"
    path.write_text(BASE + ARMS + "replicates: 2\n")
    with monkeypatch.context() as patch:
        fails(patch, seed=1, lr=3e-3, step=4)
        submit(planning.plan(load_study(path), runs), cluster="debug", sync=False).wait(lambda: None)
        plan = planning.plan(load_study(path), runs)
        arm = [planned for planned in plan.runs if planned.run.spec.optim.lr == 3e-3]
        assert [planned.state for planned in arm] == ["pruned", "failed"]
        assert arm[0].status.reason == "rung 1 of 3, step 4: it has no nll there"
        assert sum(planned.run.until == 12 for planned in plan.runs) == 2, "one of the three arms that were measured"
        while plan := going_on(planning.plan(load_study(path), runs)):
            submit(plan, cluster="debug", sync=False).wait(lambda: None)
        plan = planning.plan(load_study(path), runs)
        assert sorted(planned.state for planned in plan.runs) == ["done"] * 2 + ["failed"] + ["pruned"] * 5
        assert unsettled(plan) == 0, "nobody watches for ever"
    climb_arms(path, runs)
    plan = planning.plan(load_study(path), runs)
    arm = [planned for planned in plan.runs if planned.run.spec.optim.lr == 3e-3]
    values = {planned.run.spec.optim.lr: planned.status for planned in plan.runs}
    assert {planned.state for planned in arm} <= {"pruned", "done"} and len(values) == 4
    assert all(trained_steps(one.directory) == one.directory.durable_step() for one in plan.runs if one not in arm)


@pytest.mark.slow
def test_while_it_is_watched_a_failed_run_is_not_submitted_again(tmp_path, monkeypatch):
    path, runs, submitted = tmp_path / "arms.py", tmp_path / "runs", []
    path.write_text(IN_PYTHON)

    def submit_and_wait(plan, **options):
        submission = submit(plan, **options)
        submission.wait(lambda: None)
        submitted.append([planned.run.spec.optim.lr for planned in submission.runs])
        return submission

    fails(monkeypatch, seed=0, lr=3e-3, step=8)
    submit_and_wait(planning.plan(load_study(path), runs), cluster="debug", sync=False)
    monkeypatch.setattr(submit_module, "WATCH_SECONDS", 0.0)
    monkeypatch.setattr(submit_module, "submit", submit_and_wait)
    options = {"cluster": "debug", "sync": False}
    submit_module.submit_rest(lambda: planning.plan(load_study(path), runs), 0, lambda line: None, **options)
    assert sum(rates.count(3e-3) for rates in submitted) == 2, "to each of two rungs, and not again"
    states = {one.run.spec.optim.lr: one.state for one in planning.plan(load_study(path), runs).runs}
    assert states.pop(3e-3) == "failed" and sorted(states.values()) == ["done", "pruned", "pruned"]


@pytest.mark.slow
def test_values_of_another_protocol_decide_nothing_and_the_old_one_decides_again(tmp_path):
    path, runs = tmp_path / "arms.yaml", tmp_path / "runs"
    path.write_text(BASE + ARMS)
    submit(planning.plan(load_study(path), runs), cluster="debug", sync=False).wait(lambda: None)
    before = planning.plan(load_study(path), runs)
    assert [planned.run.until for planned in before.runs].count(12) == 2
    for changed in (("num_images: 16", "num_images: 8"), ("name: eval", "name: other")):
        path.write_text((BASE + ARMS).replace(*changed))
        plan = planning.plan(load_study(path), runs)
        assert {planned.status.reason for planned in plan.runs} == {"rung 1 of 3, step 4: it has no nll there"}
        assert not plan.to_do and unsettled(plan) == 0
    submit(plan, cluster="debug", sync=False).wait(lambda: None)
    path.write_text((BASE + ARMS).replace("every: 4", "every: 5"))
    with pytest.raises(SpecError, match="is measured every 5 steps and so not at step 4"):
        load_study(path)
    path.write_text(BASE + ARMS)
    again = planning.plan(load_study(path), runs)
    assert [one.run.until for one in again.runs] == [one.run.until for one in before.runs]
    assert climb_arms(path, runs) == [2, 1]


def test_rungs_that_are_set_for_once_hold_from_then_on(tmp_path):
    path, runs = tmp_path / "arms.yaml", tmp_path / "runs"
    path.write_text(BASE + ARMS)
    submit(planning.plan(load_study(path), runs), cluster="debug", sync=False).wait(lambda: None)
    later = planning.plan(load_study(path, sets=["rungs=[8, 24]"]), runs)
    assert {(planned.state, planned.run.until) for planned in later.runs} == {("interrupted", 8)}
    submit(later, cluster="debug", sync=False).wait(lambda: None)
    assert {RunDirectory(planned.path).durable_step() for planned in later.runs} == {8}
    earlier = planning.plan(load_study(path), runs)  # what has gone on is not called back
    assert {planned.run.until for planned in earlier.runs} == {12}
    with pytest.raises(SpecError, match=r"--set rungs=\[8, 20\]:.*the last rung, 20, is not the end of arm"):
        load_study(path, sets=["rungs=[8, 20]"])


def test_a_run_is_dropped_when_the_job_that_paused_has_let_go_of_it(tmp_path):
    path, runs = tmp_path / "arms.yaml", tmp_path / "runs"
    path.write_text(BASE + ARMS)
    plan = planning.plan(load_study(path), runs)
    submit(replace(plan, runs=plan.runs[:1]), cluster="debug", sync=False).wait(lambda: None)
    directory = plan.runs[0].directory
    assert directory.status().state == "paused"
    lock = FolderLock(directory.lock_folder, "the job")
    lock.acquire()
    timer = threading.Timer(0.5, lock.release)
    timer.start()
    drop(directory, "not among the best")
    timer.join()
    assert (directory.status().state, directory.status().cause) == ("pruned", "rung")


def test_a_start_at_a_rung_that_holds_makes_no_step(tmp_path):
    path, runs = tmp_path / "arms.yaml", tmp_path / "runs"
    path.write_text(BASE + ARMS)
    plan = planning.plan(load_study(path), runs)
    submit(plan, cluster="debug", sync=False)
    directory = plan.runs[0].directory
    assert run_job(directory.path, sync=False, show_progress=False) == "paused"
    before = bits(directory)
    assert run_job(directory.path, sync=False, show_progress=False) == "paused"
    assert bits(directory) == before and before[0] == 4
