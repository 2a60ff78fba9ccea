import json
from dataclasses import replace

from harness.analysis import claims, tab_results
from harness.analysis.runs import load_records
from harness.records.scored import write_scored
from harness.spec.methods import METHODS, MethodSpec

EVALUATE = """
grid: {diffusion.schedule: [linear, cosine]}
evaluate:
  - {name: eval, nll: {}, fidelity: {num_samples: 64, num_steps: 10}}
  - {name: eval_untrained, weights: untrained, nll: {}, arms: [cosine], replicates: [0]}
"""


def table(study_runs, replicates, numbers):
    return tab_results.data(load_records(study_runs(EVALUATE + f"replicates: {replicates}\n", numbers)))


def nll(run):
    return {"nll": 3.0 + 0.1 * run.replicate - 0.5 * (run.arm == "cosine")}


def test_three_replicates_give_an_interval_two_both_values_and_one_the_value(study_runs, tmp_path):
    cells = []
    for replicates in (1, 2, 3):
        frame = tab_results.data(
            load_records(study_runs(EVALUATE + f"replicates: {replicates}\n", nll, folder=f"runs{replicates}"))
        )
        cells.append(tab_results.rows(frame)[0]["nll"])
    assert cells == ["3.000", "3.000 / 3.100", "3.100 ± 0.248"]


def test_the_untrained_network_and_the_gaussian_stand_beside_and_are_never_the_best(study_runs):
    rows = tab_results.rows(table(study_runs, 2, lambda run: nll(run) | {"nll": nll(run)["nll"] + 9}))
    assert [(row["model"], row["arm"], row["nll"]) for row in rows[2:]] == [
        ("untrained network", "cosine", "5.000"),
        ("Gaussian per pixel", "", "2.500"),
    ]
    assert [row["best"] for row in rows[2:]] == [set(), set()]
    assert "nll" in rows[1]["best"], "the cosine arm is the best of the trained ones"


def test_images_from_elsewhere_are_marked_as_not_ours_with_their_own_protocol_and_are_never_the_best(study_runs):
    runs = study_runs(EVALUATE, nll)
    protocol = {"extractor": {"name": "digitsnet"}, "fidelity": {"reference": "train", "k": 3}}
    write_scored(
        runs, "small", "ADM", {"metrics": {"fid": 1.0, "kid": 2.0}, "num_images": 64, "source": "x"} | protocol
    )
    frame = tab_results.data(load_records(runs))
    row = tab_results.rows(frame)[2]
    assert (row["model"], row["arm"], row["fid"], row["replicates"], row["best"]) == (
        "not ours",
        "ADM",
        "1.00",
        "",
        set(),
    )
    assert "| ADM (not ours) · 64 images against the train split, k = 3 |" in tab_results.markdown(frame)
    assert tab_results.heads(frame)["fid"] == "FID (digitsnet) ↓"
    assert "ADM" not in tab_results.caption(frame)
    assert "ADM" in tab_results.as_html(frame)


def test_missing_replicates_are_said(study_runs):
    rows = tab_results.rows(
        table(study_runs, 3, lambda run: {"state": "failed" if (run.arm, run.replicate) == ("cosine", 1) else "done"})
    )
    assert [row["replicates"] for row in rows] == ["3", "2 of 3", "1", ""]


def test_a_distance_in_another_networks_features_is_never_called_plain_fid(study_runs):
    frame = table(study_runs, 1, lambda run: {})
    assert tab_results.heads(frame)["fid"] == "FID (digitsnet) ↓"
    caption = tab_results.caption(frame)
    assert "64 samples of ancestral 10 steps against the train split, k = 3" in caption
    assert "stratified sum over t on 355 test images" in caption
    assert "σ² = β." in caption


def test_how_good_a_classifier_is_stands_in_the_head_of_its_column_and_in_the_caption(study_runs):
    folder = study_runs(EVALUATE, lambda run: {})
    for path in folder.glob("[!.]*/evaluations/*.json"):
        extractor = {"name": "digitsnet", "weights_sha256": "a" * 64, "test_accuracy": 0.9915}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"extractor": extractor}))
    frame = tab_results.data(load_records(folder))
    assert tab_results.heads(frame)["fid"] == "FID (digitsnet, accuracy 99.2 %) ↓"
    assert "digitsnet is a classifier of the data's own labels, right on 99.2 % of the test images." in (
        tab_results.caption(frame)
    )
    assert "accuracy 99.2 %" in tab_results.markdown(frame)


def test_readings_with_either_fixed_variance_are_two_rows(study_runs):
    extra = """
evaluate:
  - {name: eval, nll: {}, fixed_variance: large}
  - {name: eval_small, nll: {}, fixed_variance: small}
"""
    frame = tab_results.data(load_records(study_runs(extra, lambda run: {})))
    rows = [row for row in tab_results.rows(frame) if row["model"] == "trained"]
    assert [row["note"] for row in rows] == ["eval", "eval_small"]
    assert "Where the variance is fixed (eval_small): σ² = β̃." in tab_results.caption(frame)


def test_markdown_and_html_show_the_same_cells(study_runs):
    frame = table(study_runs, 2, nll)
    markdown, page = tab_results.markdown(frame), tab_results.as_html(frame)
    for row in tab_results.rows(frame):
        for metric in ("nll", "fid", "precision", "recall"):
            if metric in row:
                assert row[metric] in markdown
                assert row[metric] in page
    assert "| **2.500 / 2.600** |" in markdown
    assert "<b>2.500 / 2.600</b>" in page


def test_no_measurement_gives_an_empty_table(study_runs):
    assert tab_results.data(load_records(study_runs("", lambda run: {}))).empty


def test_what_was_measured_by_another_protocol_is_a_row_of_its_own(study_runs):
    """Two evaluations on other numbers of images have two Gaussian baselines, and neither hides the other."""
    extra = """
evaluate:
  - {name: eval, nll: {num_images: 16}}
  - {name: eval_more, nll: {num_images: 32}}
"""
    rows = tab_results.rows(tab_results.data(load_records(study_runs(extra, nll))))
    gaussian = [row for row in rows if row["model"] == "Gaussian per pixel"]
    assert len(gaussian) == 2
    assert "32 test images" in gaussian[1]["note"]


def test_an_arm_without_a_likelihood_has_a_dash_and_the_caption_says_why(study_runs, monkeypatch):
    class Adversarial(MethodSpec):
        name: str = "adversarial"

    extra = """
grid: {diffusion.schedule: [linear, cosine]}
evaluate:
  - {name: eval, arms: [linear], nll: {}, fidelity: {num_samples: 64, num_steps: 10}}
  - {name: eval_samples, arms: [cosine], fidelity: {num_samples: 64, num_steps: 10}}
"""
    linear, cosine = load_records(study_runs(extra, nll))
    frame = tab_results.data([linear, cosine])
    assert "is not defined" not in tab_results.caption(frame), "it was not measured, but could be"
    monkeypatch.setitem(METHODS, "adversarial", Adversarial)
    frame = tab_results.data([linear, replace(cosine, spec=cosine.spec | {"method": {"name": "adversarial"}})])
    assert "–: NLL is not defined for adversarial" in tab_results.caption(frame)
    (row,) = [row for row in tab_results.rows(frame) if row["arm"] == "cosine"]
    assert "nll" not in row
    (line,) = [line for line in tab_results.markdown(frame).splitlines() if line.startswith("| cosine")]
    assert "| 1 | – |" in line
    assert not [claim for claim in claims.judge([linear, cosine]) if "NLL" in claim.statement]


def test_without_any_likelihood_there_is_no_column_and_no_note(study_runs):
    extra = "evaluate: [{fidelity: {num_samples: 64, num_steps: 10}}]\n"
    frame = tab_results.data(load_records(study_runs(extra, nll)))
    assert list(tab_results.heads(frame)) == ["fid", "precision", "recall"]
    assert "NLL" not in tab_results.caption(frame)


def test_metrics_of_features_that_a_study_asks_for_have_columns_with_their_errors(study_runs):
    evaluate = """evaluate:
  - {name: eval, fidelity: {num_samples: 64, num_steps: 10, metrics: [fid, fid_standard_error, kid]}}
"""
    numbers = {"fid": 12.3, "fid_standard_error": 0.25, "kid": 0.00123, "kid_standard_error": 0.0001}
    frame = tab_results.data(load_records(study_runs(evaluate, lambda run: numbers)))
    assert list(tab_results.heads(frame).values()) == [
        "FID (digitsnet) ↓",
        "standard error of FID over samples (digitsnet)",
        "KID (digitsnet) ↓",
        "standard error of KID over samples (digitsnet)",
    ]
    (row,) = tab_results.rows(frame)
    cells = [row[metric] for metric in ("fid", "fid_standard_error", "kid", "kid_standard_error")]
    assert cells == ["12.30", "0.250", "0.00123", "0.00010"]
    assert "metrics of features: 64 samples of ancestral 10 steps" in tab_results.caption(frame)
