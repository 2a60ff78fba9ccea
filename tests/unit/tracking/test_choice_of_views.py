"""Which runs a study's views show, and in which order."""

import pytest

from harness.tracking.described import is_constant, number_text
from harness.tracking.views import ARMS, RUNS, Contents, views_of

NLL, RECALL = "eval/nll_bpd", "eval/recall_digitsnet_500_ancestral50"


def states(results, num_runs, num_arms):
    contents = Contents(results=results, learning=["train/loss"], num_runs=num_runs, num_arms=num_arms)
    return {view.id: view.state for view in views_of(contents)}


def kinds(state):
    return [chart["type"] for chart in state["compareRunCharts"]]


def test_up_to_a_page_of_runs_the_arms_are_groups_with_curves_in_the_files_order():
    arms = states([NLL], 100, 20)["arms"]
    assert arms["searchFilter"] == RUNS and arms["groupBy"] and kinds(arms) == ["BAR", "LINE"]
    assert (arms["orderByKey"], arms["orderByAsc"]) == ("tags.`order`", True)


def test_more_runs_than_a_page_are_shown_by_the_runs_of_their_arms():
    arms = states([NLL], 101, 20)["arms"]
    assert arms["searchFilter"] == ARMS and not arms["groupBy"] and kinds(arms) == ["BAR"]
    assert arms["orderByKey"] == "tags.`order`"


@pytest.mark.parametrize(("result", "ascending"), [(NLL, True), (RECALL, False)])
def test_more_arms_than_a_page_begin_with_the_best(result, ascending):
    views = states([result], 1000, 250)
    for view in ("arms", "results"):
        assert (views[view]["orderByKey"], views[view]["orderByAsc"]) == (f"metrics.`{result}`", ascending)
    assert views["runs"]["orderByKey"] == "tags.`order`"


def test_without_results_a_large_study_still_has_its_learning_curves():
    assert kinds(states([], 1000, 250)["arms"]) == ["LINE"]


def test_constants_are_what_no_training_changes():
    assert is_constant("compute/parameters") and is_constant("eval_ema/L_T_bpd")
    assert not any(is_constant(key) for key in ("compute/train_multiply_adds", "eval/L_0_bpd", "train/L_T_bpd/x", NLL))


@pytest.mark.parametrize(("value", "text"), [(756578.0, "756578"), (1.0519911e-05, "1.05199e-05"), (2.5, "2.5")])
def test_a_constant_is_written_whole_or_with_six_digits(value, text):
    assert number_text(value) == text


def test_an_infinite_constant_is_written_in_words():
    assert number_text(float("inf")) == "inf"
