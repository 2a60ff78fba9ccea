"""Rungs: the runs pause, the best go on, and end in the bits of runs that never paused."""

import pytest

from harness.job.job import run_job
from harness.job.verify import digests, results
from harness.launch import planning
from harness.launch.rungs import going_on
from harness.launch.submit import submit
from harness.records.directory import RunDirectory
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
