"""Captions say what was ignored of a data set, and which runs had other data than the rest."""

import json

import pytest

from harness.analysis.data_notes import data_sentence
from harness.analysis.runs import load_records
from harness.records.directory import RunDirectory

STUDY = "arms: {a: {optim.lr: 0.1}, b: {optim.lr: 0.2}}\nreplicates: 2\n"


@pytest.fixture
def records(study_runs):
    """Return a function that gives each run's environment some fields and loads the runs."""

    def load(fields):
        folder = study_runs(STUDY, lambda run: {})
        for path in sorted(folder.glob("[!.]*")):
            directory = RunDirectory(path)
            membership = directory.studies()["small"]
            more = fields(membership["arm"], membership["replicate"])
            directory.environment_path.write_text(json.dumps([directory.environments()[0] | more]))
        return load_records(folder, "small")

    return load


def test_runs_of_one_data_set_that_ignored_nothing_need_no_sentence(records):
    assert data_sentence(records(lambda arm, replicate: {})) == ""
    same = {"data_digest": "d" * 64, "data_account": {"train": 3, "test": 1, "num_classes": 2}}
    assert data_sentence(records(lambda arm, replicate: same)) == ""


def test_ignored_files_are_counted_once_by_their_reasons(records):
    account = {"seen": 30, "used": 26, "ignored": {".txt": 3, "hidden": 1}, "num_ignored": 4}
    sentence = data_sentence(records(lambda arm, replicate: {"data_digest": "d", "data_account": account}))
    assert sentence == "Of the 30 files in digits, 4 were ignored (3 .txt, 1 hidden)."


def test_arms_whose_replicates_ran_on_different_cards_are_named(records):
    cards = {("a", 0): "NVIDIA A100", ("a", 1): "NVIDIA H100"}
    runs = records(lambda arm, replicate: {"device": cards.get((arm, replicate), "NVIDIA H100")})
    assert data_sentence(runs) == (
        "Replicates of a ran on different devices (NVIDIA A100, NVIDIA H100), so their times are not comparable."
    )


def test_a_run_of_other_data_than_the_rest_is_named(records):
    runs = records(lambda arm, replicate: {"data_digest": ("b" if (arm, replicate) == ("b", 1) else "a") * 64})
    [odd] = [run for run in runs if (run.arm, run.replicate) == ("b", 1)]
    assert data_sentence(runs) == (
        f"Not comparable: b r1 ({odd.run_key[:8]}) had other data in digits than the others "
        "(digest bbbbbbbbbbbb, not aaaaaaaaaaaa)."
    )


def test_a_run_whose_extractor_had_other_weights_than_the_rest_is_named(study_runs):
    evaluate = "evaluate: [{name: eval, fidelity: {num_samples: 64, num_steps: 10}}]\n"
    folder = study_runs(STUDY + evaluate, lambda run: {})
    for path in folder.glob("[!.]*/evaluations/*.json"):
        extractor = {"name": "digitsnet", "weights_sha256": "a" * 64}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"extractor": extractor}))
    runs = load_records(folder, "small")
    assert len([measurement for run in runs for measurement in run.measurements]) == 4
    assert data_sentence(runs) == ""
    odd = runs[2]
    [path] = odd.folder.glob("evaluations/*.json")
    path.write_text(path.read_text().replace("a" * 64, "b" * 64))
    assert data_sentence(load_records(folder, "small")) == (
        f"Not comparable: FID, precision and recall of {odd.arm} r{odd.replicate} ({odd.run_key[:8]}) are by other "
        "weights of digitsnet than the others' (sha256 bbbbbbbbbbbb, not aaaaaaaaaaaa)."
    )


@pytest.mark.parametrize(("accuracy", "warned"), [(0.54, True), (0.56, False)])
def test_a_classifier_that_is_poor_is_warned_of(study_runs, accuracy, warned):
    evaluate = "evaluate: [{name: eval, fidelity: {num_samples: 64, num_steps: 10}}]\n"
    folder = study_runs(STUDY + evaluate, lambda run: {})
    for path in folder.glob("[!.]*/evaluations/*.json"):
        facts = {"test_accuracy": accuracy, "test_majority_share": 0.1}
        extractor = {"name": "digitsnet", "weights_sha256": "a" * 64} | facts
        path.write_text(json.dumps(json.loads(path.read_text()) | {"extractor": extractor}))
    sentence = "digitsnet labels only 54.0 % of the test images correctly: its FID, precision and recall say little."
    assert data_sentence(load_records(folder, "small")) == (sentence if warned else "")


@pytest.mark.parametrize("account", [[], "x", {"ignored": 3}, {"ignored": {"a": "b"}}, {"num_ignored": 2}])
def test_an_odd_account_in_somebody_elses_record_stops_nothing(records, account):
    assert data_sentence(records(lambda arm, replicate: {"data_account": account})) == ""
