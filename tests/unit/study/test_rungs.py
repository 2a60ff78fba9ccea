"""Who goes on from a rung, and what a study with rungs may say."""

import math

import pytest

from harness.errors import SpecError
from harness.launch import planning
from harness.study.expand import load_study
from harness.study.rungs import Progress, Standing, decide, numbers_at_rungs
from harness.testing import TINY_STUDY

STEPS = (10, 20, 40)


def standings(progress, factor=2, **options):
    return decide(progress, STEPS, factor, metric="nll", direction="minimize", **options)


def test_all_train_to_the_first_rung_and_wait_there_for_the_last_of_them():
    progress = {"a": Progress({10: 1.0}), "b": Progress({10: 2.0}), "c": Progress()}
    assert standings(progress) == dict.fromkeys("abc", Standing(10))


def test_the_best_go_on_and_the_others_are_told_why_they_do_not():
    values = {"a": 3.0, "b": 1.0, "c": 2.0, "d": math.nan}
    after = standings({name: Progress({10: value}) for name, value in values.items()})
    assert after["b"] == after["c"] == Standing(20)
    assert after["a"].until == 10
    assert after["a"].dropped == "rung 1 of 3, step 10: nll 3 is not among the best 2 of 4"
    assert after["d"].dropped.startswith("rung 1 of 3, step 10: nll nan")


def test_of_equal_values_the_first_goes_on_and_a_high_value_may_be_the_better_one():
    equal = {name: Progress({10: 1.0}) for name in "abcd"}
    assert [name for name, standing in standings(equal, 4).items() if not standing.dropped] == ["a"]
    rising = {name: Progress({10: float(ord(name))}) for name in "abcd"}
    best = decide(rising, STEPS, 4, metric="recall", direction="maximize")
    assert [name for name, standing in best.items() if not standing.dropped] == ["d"]


def test_the_second_rung_is_decided_among_those_that_went_on():
    progress = {
        "a": Progress({10: 1.0, 20: 5.0}, let_on=20),
        "b": Progress({10: 2.0, 20: 4.0}, let_on=20),
        "c": Progress({10: 3.0}, let_on=10),
        "d": Progress({10: 4.0}, let_on=10),
    }
    after = standings(progress)
    assert after["b"] == Standing(40) and after["a"].until == 20 and after["c"].until == 10
    assert after["a"].dropped == "rung 2 of 3, step 20: nll 5 is not among the best 1 of 2"


def test_what_has_failed_is_not_waited_for_and_does_not_count():
    progress = {"a": Progress({10: 1.0}), "b": Progress({10: 2.0}), "c": Progress(ended=True)}
    after = standings(progress)
    assert after["a"] == Standing(20) and after["b"].dropped
    assert after["c"] == Standing(10, "rung 1 of 3, step 10: it has no nll there")


def test_what_has_gone_past_a_rung_without_a_value_is_not_waited_for():
    progress = {"a": Progress({10: 1.0}), "b": Progress({10: 2.0}), "c": Progress(rests_at=10), "d": Progress()}
    assert standings(progress) == dict.fromkeys("abcd", Standing(10)), "d is to come there yet"
    after = standings(progress | {"d": Progress(let_on=20, rests_at=15)})
    assert after["a"] == Standing(20) and after["b"].dropped and "no nll" in after["c"].dropped
    assert after["d"] == Standing(20), "what was let on is not called back"


def test_where_no_value_is_a_number_nobody_goes_on():
    after = standings({name: Progress({10: math.nan}) for name in "ab"})
    assert {standing.until for standing in after.values()} == {10}
    assert after["a"].dropped == "rung 1 of 3, step 10: nll nan is not among the best 0 of 2"
    after = standings({name: Progress(rests_at=10) for name in "ab"})
    assert all(standing == Standing(10, "rung 1 of 3, step 10: it has no nll there") for standing in after.values())


def test_an_arm_that_was_let_on_is_not_called_back_by_a_better_one_that_came_later():
    progress = {"a": Progress({10: 2.0}, let_on=20), "b": Progress({10: 3.0}, let_on=10), "c": Progress()}
    assert standings(progress)["a"] == Standing(20)
    after = standings(progress | {"c": Progress({10: 1.0}, let_on=10)})
    assert after["a"] == after["c"] == Standing(20) and after["b"].dropped


def test_a_rung_is_not_decided_while_more_trials_will_come():
    progress = {"a": Progress({10: 1.0}), "b": Progress({10: 2.0})}
    assert standings(progress, more_to_come=True) == dict.fromkeys("ab", Standing(10))


def test_the_numbers_at_the_rungs_fall_by_the_reduction_factor():
    assert numbers_at_rungs(64, 3, 4) == [64, 16, 4] and numbers_at_rungs(3, 3, 4) == [3, 1, 1]


STUDY = TINY_STUDY.replace("steps: 12", "steps: 20") + (
    """arms:
  low: {optim.lr: 1.0e-4}
  high: {optim.lr: 1.0e-3}
evaluate:
  - {name: eval, every: 5, nll: {num_images: 16, evaluations_per_image: 4}}
compare: {metric: nll}
rungs: [5, 20]
"""
)
REFUSED = {
    "no steps": ("rungs: [5, 20]", "rungs: 5", "a list of steps"),
    "falling": ("rungs: [5, 20]", "rungs: [20, 5]", "each more than the one before"),
    "another end": ("rungs: [5, 20]", "rungs: [5, 10]", "the last rung, 10, is not the end of arm low"),
    "between two measurements": ("eval, every: 5", "eval, every: 4", "not at step 5"),
    "not measured meanwhile": ("eval, every: 5", "eval", "no evaluation has `every`"),
    "no metric": ("compare: {metric: nll}", "", "compare.metric decides who goes on"),
    "no reduction": ("rungs: [5, 20]", "rungs: [5, 20]\nreduction_factor: 1", "a whole number from 2"),
    "nothing to reduce": ("rungs: [5, 20]", "reduction_factor: 2", "there are none"),
}


@pytest.mark.parametrize(("before", "after", "message"), REFUSED.values(), ids=REFUSED)
def test_a_study_whose_rungs_cannot_be_decided_is_refused_with_its_line(tmp_path, before, after, message):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    assert load_study(path).rungs.steps == (5, 20)
    assert STUDY.count(before) == 1
    path.write_text(STUDY.replace(before, after))
    with pytest.raises(SpecError, match=r"study.yaml:\d+: ") as error:
        load_study(path)
    assert message in str(error.value)


def test_rungs_do_not_change_the_run_keys(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    with_rungs = [run.run_key for run in load_study(path).runs]
    path.write_text(STUDY.replace("rungs: [5, 20]\n", ""))
    assert [run.run_key for run in load_study(path).runs] == with_rungs


def test_plan_tells_how_many_arms_train_to_which_rung_and_what_that_saves(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY + "replicates: 3\n")
    plan = planning.plan(load_study(path), tmp_path / "runs")
    assert plan.as_json()["training"] == {
        "at_rungs": [{"step": 5, "number": 2}, {"step": 20, "number": 1}],
        "steps": 3 * (2 * 5 + 15),
        "steps_without_rungs": 3 * 2 * 20,
    }
    assert plan.notes()[0].startswith("rungs by nll, arms to steps: 2 to 5, 1 to 20; 62 % of the steps without rungs")
    path.write_text(STUDY.replace("rungs: [5, 20]\n", ""))
    assert "training" not in planning.plan(load_study(path), tmp_path / "runs").as_json()
