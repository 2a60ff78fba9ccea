"""Searches with rungs whose sampler learns: trials are suggested in brackets, so that one seed gives the same trials.

A run is a planted function of its spec, written down as a job would write it; test_rungs.py trains.
"""

import itertools
import math
from collections import Counter
from dataclasses import replace

import optuna
import pytest

from harness.errors import LaunchError, RecordError
from harness.records.directory import RunDirectory
from harness.records.status import Status
from harness.search import coordinator as coordinator_module
from harness.search.coordinator import Coordinator
from harness.search.loading import load_search
from harness.search.optuna_backend import open_study, suggest
from harness.search.trials import TrialRecord, pareto_front, read_trials
from harness.search.workers import Workers
from harness.spec.base import SCHEMA_VERSION

BASE = """
study: climb
data: mog
diffusion: {num_timesteps: 30}
model: {name: mlp, width: 16, depth: 1}
optim: {lr: 1.0e-3}
train: {steps: 24, batch_size: 16, ema_rate: 0.8}
resources: {device: cpu, threads: 1}
evaluate:
  - {name: eval, every: 4, nll: {num_images: 16, evaluations_per_image: 4}}
"""
TPE = """
search:
  space: {optim.lr: {float: [1.0e-5, 1.0e-1], log: true}, optim.weight_decay: {float: [0, 0.1]}}
  metrics: [{eval/nll_bpd: minimize}]
  sampler: tpe
  trials: 24
  parallel: 3
  rungs: [4, 12, 24]
  reduction_factor: 2
  bracket_size: 12
"""
NAME = "eval/nll_bpd"


@pytest.fixture
def make(tmp_path):
    def write(search=TPE, *sets, base=BASE):
        path = tmp_path / "search.yaml"
        path.write_text(base + search)
        return load_search(path, sets=sets)

    return write


def value_of(spec, step):
    """Return a value that falls with the steps, and whose order changes on the way."""
    distance = math.log10(spec["optim"]["lr"] / 1e-3)
    return distance**2 + spec["optim"]["weight_decay"] + 1 / step + 0.01 * spec["seed"]


class Planted(Workers):
    """Writes of each run what a job would up to its rung; the trial's runs end in the order in which they start."""

    poll_seconds = 0.0

    def __init__(self, runs_folder, value=value_of, fails=lambda spec, step: False):
        self.runs_folder, self.value, self.fails = runs_folder, value, fails
        self.steps = Counter()  # run_key -> steps computed

    def start(self, study):
        (run,) = study.runs
        directory, spec = RunDirectory(self.runs_folder / run.run_key), run.spec.model_dump(mode="json")
        directory.create(spec, SCHEMA_VERSION)
        directory.add_to_study(run.study, run.membership())
        begun, steps = directory.status().step, run.spec.train.steps
        until, status = run.until or steps, Status("done", step=steps, num_steps=steps)
        with directory.lock(), directory.open_journal(resumed_from_step=begun) as journal:
            for step in range(begun + 4, until + 1, 4):
                if self.fails(spec, step):
                    status = Status("failed", step=step - 4, num_steps=steps, reason="boom", cause="error")
                    break
                journal.metrics(step, {NAME: self.value(spec, step)})
                self.steps[run.run_key] += 4
            else:
                if until < steps:
                    status = Status("paused", step=until, num_steps=steps, reason="waits", cause="rung")
                for evaluation in run.evaluations if until == steps else ():
                    facts = {"key": evaluation.key, "evaluation": evaluation.name, "prefix": evaluation.name}
                    journal.event("evaluation", step=steps, parts=evaluation.parts, **facts)
        directory.set_status(status)

    def busy(self, run_keys):
        return set()


def climb(search, runs_folder, **planted):
    workers = Planted(runs_folder, **planted)
    finished = Coordinator(search, runs_folder, workers, sync=False, on_message=lambda line: None).run()
    return finished, read_trials(search.folder(runs_folder)), workers


def decisions(trials):
    return [(trial.number, trial.point, trial.state, trial.rung_values, trial.values) for trial in trials]


def told(search, runs_folder):
    trials = open_study(search, search.folder(runs_folder)).get_trials()
    return [(trial.number, trial.params, trial.state, trial.intermediate_values, trial.values) for trial in trials]


# ---------------------------------------------------------------------------------------------- the same, come what may


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An unbroken search of two brackets: itself, its trials, what Optuna was told of them, and the steps computed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "search.yaml").write_text(BASE + TPE)
    search = load_search(folder / "search.yaml")
    finished, trials, workers = climb(search, folder / "runs")
    assert finished and len(trials) == 24
    return search, trials, told(search, folder / "runs"), workers.steps


def test_each_bracket_is_a_successive_halving_of_its_own_and_no_step_is_computed_twice(whole):
    _, trials, _, computed = whole
    for bracket in (trials[:12], trials[12:]):
        assert Counter(len(trial.rung_values) for trial in bracket) == {1: 6, 2: 6}
        assert Counter(trial.state for trial in bracket) == {"complete": 3, "pruned": 9}
        at_first = sorted(bracket, key=lambda trial: trial.rung_values["4"])
        assert {trial.number for trial in at_first[:6]} == {t.number for t in bracket if "12" in t.rung_values}
    steps = {trial.run_keys[0]: {1: 4, 2: 12}[len(trial.rung_values)] for trial in trials}
    steps |= {trial.run_keys[0]: 24 for trial in trials if trial.state == "complete"}
    assert computed == steps


@pytest.mark.parametrize("parallel", [1, 24])
def test_the_trials_and_decisions_do_not_depend_on_how_many_train_at_a_time(whole, make, tmp_path, parallel):
    search = make(TPE, f"search.parallel={parallel}")
    _, trials, _ = climb(search, tmp_path / "other")
    assert decisions(trials) == decisions(whole[1])
    assert told(search, tmp_path / "other") == whole[2]
    _, others, _ = climb(make(TPE, "search.seed=1", "search.trials=12"), tmp_path / "seed")
    assert others[0].point != trials[0].point


class Dies(Exception):
    pass


PLACES = {
    "a trial is recorded": (TrialRecord, "write"),
    "Optuna is asked for a point": (optuna.Trial, "suggest_float"),
    "a trial is noted in Optuna": (optuna.Trial, "set_user_attr"),
    "a value at a rung is told": (optuna.Trial, "report"),
    "a run starts": (Planted, "start"),
    "a trial is let on": (coordinator_module._Trial, "let_on"),
    "a run is dropped": (coordinator_module, "drop"),
    "the end of a trial is told": (coordinator_module, "report_end"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_coordinator_that_is_killed_anywhere_makes_the_same_trials_and_decisions(
    whole, make, tmp_path, monkeypatch, place
):
    """It dies before the n-th call, and in another life after it."""
    owner, name = PLACES[place]
    search, trials, known, steps = whole
    runs, computed, lives = tmp_path / "broken", Counter(), 0
    original = getattr(owner, name)
    for number, before in itertools.product((1, 3, 7), (True, False)):
        calls = itertools.count(1)

        def dies(*args, _calls=calls, _number=number, _before=before, **kwargs):
            is_last = next(_calls) == _number
            if is_last and _before:
                raise Dies
            result = original(*args, **kwargs)
            if is_last:
                raise Dies
            return result

        workers = Planted(runs)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dies)
            try:
                Coordinator(search, runs, workers, sync=False, on_message=lambda line: None).run()
            except Dies:
                lives += 1
        computed += workers.steps
    finished, again, workers = climb(search, runs)
    assert finished and lives >= 5
    assert decisions(again) == decisions(trials)
    assert told(search, runs) == known
    assert computed + workers.steps == steps


def test_more_brackets_go_on_from_the_first_as_if_asked_for_at_once(whole, make, tmp_path):
    for trials in (12, 24):
        climb(make(TPE, f"search.trials={trials}"), tmp_path / "parts")
    search = make()
    assert decisions(read_trials(search.folder(tmp_path / "parts"))) == decisions(whole[1])


# ---------------------------------------------------------------------------------------------- what the sampler learns


def replayed(search, trials, change=lambda frozen: frozen):
    """Return what the search's sampler suggests after some trials, as changed."""
    study = open_study(search, None)
    for frozen in trials:
        study.add_trial(change(frozen))
    return suggest(search, study, set())[1]


def test_a_dropped_trial_and_its_values_enter_the_suggestions(make, tmp_path):
    search = make(TPE.replace("  bracket_size: 12\n", "").replace("factor: 2", "factor: 4"), "search.trials=32")
    _, trials, _ = climb(search, tmp_path / "runs")
    first = open_study(search, search.folder(tmp_path / "runs")).get_trials()[:16]
    dropped = [trial.number for trial in first if trial.state == optuna.trial.TrialState.PRUNED]
    assert len(dropped) == 15 and replayed(search, first) == trials[16].point

    def unsaid(frozen):
        if frozen.number not in dropped:
            return frozen
        return optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL)

    def reversed_order(frozen):
        values = {step: -value for step, value in frozen.intermediate_values.items()}
        if frozen.number not in dropped:
            return frozen
        return optuna.trial.create_trial(
            state=frozen.state, params=frozen.params, distributions=frozen.distributions, intermediate_values=values
        )

    assert replayed(search, first, unsaid) != trials[16].point
    assert replayed(search, first, reversed_order) != trials[16].point


def test_the_second_bracket_is_better_than_the_first(whole):
    first, second = (sorted(trial.rung_values["4"] for trial in part) for part in (whole[1][:12], whole[1][12:]))
    assert second[6] < first[6]


# ---------------------------------------------------------------------------------------------------------- broken ones


def test_a_number_that_is_none_is_dropped_at_its_rung_and_told(make, tmp_path):
    is_lost = lambda spec, step: math.nan if spec["optim"]["lr"] > 1e-3 else value_of(spec, step)  # noqa: E731
    search = make()
    finished, trials, _ = climb(search, tmp_path / "runs", value=is_lost)
    lost = [trial for trial in trials if trial.point["optim.lr"] > 1e-3]
    assert finished and lost and {trial.state for trial in lost} == {"pruned"}
    assert all("nll_bpd nan is not among" in trial.reason and list(trial.rung_values) == ["4"] for trial in lost)
    finished, trials, _ = climb(search, tmp_path / "all", value=lambda spec, step: math.nan)
    assert finished and {trial.state for trial in trials} == {"pruned"} and len(trials) == 24


@pytest.mark.parametrize("at", [4, 12, 16])
def test_a_failed_trial_is_not_replaced_in_its_bracket_whose_others_go_on(make, tmp_path, at):
    search = make(TPE, "search.trials=12")
    _, before, _ = climb(search, tmp_path / "well")
    best = min(before, key=lambda trial: trial.rung_values["4"])
    fails = lambda spec, step: step == at and spec["optim"]["lr"] == best.point["optim.lr"]  # noqa: E731
    finished, trials, _ = climb(search, tmp_path / "runs", fails=fails)
    states = Counter(trial.state for trial in trials)
    assert finished and len(trials) == 12 and trials[best.number].state == "failed" and states["failed"] == 1
    assert [trial.point for trial in trials] == [trial.point for trial in before]
    # 11, 6 or 5, 3 measured at the rungs; half of them went on
    assert states["complete"] == {4: 2, 12: 2, 16: 2}[at]


def test_a_search_in_which_everything_fails_stops_with_its_bracket_and_is_never_a_success(make, tmp_path):
    with pytest.raises(LaunchError, match=r"the last 10 trials failed; the last one: run [0-9a-f]{16}: boom"):
        climb(make(), tmp_path / "runs", fails=lambda spec, step: True)
    assert len(read_trials(make().folder(tmp_path / "runs"))) == 12, "no second bracket"
    search = make(TPE, "search.trials=6", "search.bracket_size=6")
    finished, trials, _ = climb(search, tmp_path / "few", fails=lambda spec, step: True)
    assert not finished and [trial.state for trial in trials] == ["failed"] * 6


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_trial_that_fails_between_rungs_ends_no_search_before_its_time(make, tmp_path, sampler):
    text = TPE if sampler == "tpe" else TPE.replace("tpe", "random").replace("  bracket_size: 12\n", "")
    search = make(text, "search.trials=12")
    _, before, _ = climb(search, tmp_path / "well")
    best = min(before, key=lambda trial: trial.rung_values["4"])
    fails = lambda spec, step: step == 8 and spec["optim"]["lr"] == best.point["optim.lr"]  # noqa: E731
    finished, trials, _ = climb(search, tmp_path / "runs", fails=fails)
    assert finished and len(trials) == 12 and trials[best.number].state == "failed"


def test_of_two_replicates_of_which_one_fails_the_other_is_dropped_too(make, tmp_path):
    search = make(TPE, "search.trials=12", "search.replicates=2")
    _, before, _ = climb(search, tmp_path / "well")
    lr = before[5].point["optim.lr"]
    fails = lambda spec, step: spec["seed"] == 1 and spec["optim"]["lr"] == lr  # noqa: E731
    finished, trials, _ = climb(search, tmp_path / "runs", fails=fails)
    assert finished and trials[5].state == "failed" and "boom" in trials[5].reason
    states = [RunDirectory(tmp_path / "runs" / key).status().state for key in trials[5].run_keys]
    assert states == ["pruned", "failed"]
    every = [RunDirectory(tmp_path / "runs" / key).status().state for trial in trials for key in trial.run_keys]
    assert set(every) == {"pruned", "failed", "done"}, "nothing is left waiting at a rung"


def test_of_equal_trials_the_first_go_on_and_a_high_value_may_be_the_better_one(make, tmp_path):
    _, trials, _ = climb(make(TPE, "search.trials=12"), tmp_path / "equal", value=lambda spec, step: 1.0)
    assert [trial.number for trial in trials if trial.state == "complete"] == [0, 1, 2]
    upwards = TPE.replace("minimize", "maximize")
    search = make(upwards, "search.trials=24")
    _, trials, _ = climb(search, tmp_path / "up", value=lambda spec, step: -value_of(spec, step))
    bracket = trials[:12]
    at_first = sorted(bracket, key=lambda trial: -trial.rung_values["4"])
    assert {trial.number for trial in at_first[:6]} == {t.number for t in bracket if "12" in t.rung_values}
    _, downwards, _ = climb(make(TPE, "search.trials=24"), tmp_path / "down")
    assert decisions(trials) == [
        (number, point, state, *({key: -value for key, value in values.items()} for values in both))
        for number, point, state, *both in decisions(downwards)
    ], "the mirror image, suggestions of the second bracket included"
    complete = [trial.values[NAME] for trial in trials if trial.state == "complete"]
    assert pareto_front(trials, search.metrics)[0].values[NAME] == max(complete)


def test_a_run_of_another_study_that_went_past_a_rung_without_a_value_ends_as_failed_and_the_rest_goes_on(
    make, tmp_path
):
    search = make(TPE, "search.trials=12")
    _, before, _ = climb(search, tmp_path / "well")
    (run,) = search.trial(3, before[3].point).runs
    directory = RunDirectory(tmp_path / "runs" / run.run_key)
    directory.create(run.spec.model_dump(mode="json"), SCHEMA_VERSION)
    with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
        journal.metrics(10, {"train/loss": 1.0})
    directory.set_status(Status("paused", step=10, num_steps=24, cause="rung"))
    finished, trials, _ = climb(search, tmp_path / "runs")
    assert finished and trials[3].state == "failed" and "it has no eval/nll_bpd there" in trials[3].reason
    assert [trial.point for trial in trials] == [trial.point for trial in before]


def test_a_run_that_was_dropped_for_another_study_competes_here_and_goes_on(make, tmp_path):
    search = make(TPE, "search.trials=12")
    _, before, _ = climb(search, tmp_path / "well")
    best = next(trial for trial in before if trial.state == "complete")
    (run,) = search.trial(best.number, best.point).runs
    study = search.trial(best.number, best.point)
    Planted(tmp_path / "runs").start(replace(study, runs=(replace(run, until=4),)))
    directory = RunDirectory(tmp_path / "runs" / run.run_key)
    coordinator_module.drop(directory, "not among the best of another study")
    assert directory.status().state == "pruned"
    _, trials, _ = climb(search, tmp_path / "runs")
    assert decisions(trials) == decisions(before)


def test_trials_of_one_point_share_their_run_and_the_bracket_ends(make, tmp_path):
    text = TPE.replace("optim.lr: {float: [1.0e-5, 1.0e-1], log: true}", "model.depth: {int: [1, 2]}").replace(
        ", optim.weight_decay: {float: [0, 0.1]}", ""
    )
    search = make(text, "search.trials=8", "search.bracket_size=4")
    finished, trials, workers = climb(search, tmp_path / "runs")
    assert finished and {key for trial in trials for key in trial.run_keys} == workers.steps.keys()
    assert max(workers.steps.values()) == 24 and len(workers.steps) == 2
    assert {trial.state for trial in trials} == {"complete", "pruned"}


def test_other_rungs_for_a_search_that_has_begun_are_refused(make, tmp_path):
    climb(make(TPE, "search.trials=12"), tmp_path / "runs")
    for change in ("search.rungs=[4, 16, 24]", "search.reduction_factor=3", "search.bracket_size=6"):
        with pytest.raises(
            RecordError, match=r"was started differently[^\n]*\n  (rungs|reduction_factor|bracket_size)"
        ):
            climb(make(TPE, "search.trials=12", change), tmp_path / "runs")
