import json
import re
from dataclasses import replace

import pytest

from harness.analysis.answers import results
from harness.analysis.claims import verdicts
from harness.analysis.runs import load_records
from harness.analysis.tables import tab_results
from harness.records.scored import write_scored
from harness.spec.methods import METHODS, MethodSpec

EVALUATE = """
grid: {diffusion.schedule: [linear, cosine]}
evaluate:
  - {name: eval, nll: {}, fidelity: {num_samples: 64, num_steps: 10}}
  - {name: eval_untrained, weights: untrained, nll: {}, arms: [cosine], replicates: [0]}
"""


def table(study_runs, replicates, numbers):
    return results.data(load_records(study_runs(EVALUATE + f"replicates: {replicates}\n", numbers)))


def nll(run):
    return {"nll": 3.0 + 0.1 * run.replicate - 0.5 * (run.arm == "cosine")}


def test_three_replicates_give_an_interval_two_both_values_and_one_the_value(study_runs, tmp_path):
    cells = []
    for replicates in (1, 2, 3):
        frame = results.data(
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
    frame = results.data(load_records(runs))
    row = tab_results.rows(frame)[2]
    assert (row["model"], row["arm"], row["fid"], row["replicates"], row["best"]) == (
        "not ours",
        "ADM",
        "1.00 (no interval)",
        "",
        set(),
    )
    assert "| ADM (not ours) · 64 images against the train split, k = 3 |" in tab_results.markdown(frame)
    assert tab_results.heads(frame)["fid"] == "FID (digitsnet) ↓"
    assert "ADM" not in tab_results.caption(frame)
    assert "ADM" in tab_results.as_html(frame)


def test_a_checkpoint_that_was_selected_is_named_with_its_steps_and_a_warning_where_the_selection_flatters(study_runs):
    entries = "replicates: 2\nevaluate: [{name: eval, nll: {}}, {name: chosen, nll: {num_images: 4}}]\n"
    runs, chosen = load_records(study_runs(entries, nll)), {"metric": "curve/nll_bpd", "last_step": 20, "seed": 0}
    captions = {}
    for split in ("test", "train"):
        by_step = []
        for run, step in zip(runs, (4, 8), strict=True):
            last, best = run.measurements
            protocol = best.protocol | {"checkpoint": chosen | {"step": step, "split": split}}
            by_step.append(replace(run, measurements=(last, replace(best, protocol=protocol))))
        frame = results.data(by_step)
        captions[split] = tab_results.caption(frame)
        assert "of the checkpoint with the lowest curve/nll_bpd" in captions[split]
        assert "Checkpoints of chosen: of steps 4–8 of 20." in captions[split]
    assert "(selected on the same test split, so too good)" in captions["test"]
    assert "so too good" not in captions["train"]
    assert "Checkpoints of" not in tab_results.caption(results.data(runs))


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
    frame = results.data(load_records(folder))
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
    frame = results.data(load_records(study_runs(extra, lambda run: {})))
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
    assert results.data(load_records(study_runs("", lambda run: {}))).empty


def test_what_was_measured_by_another_protocol_is_a_table_of_its_own(study_runs):
    """Two evaluations on other numbers of images have two Gaussian baselines, each beside the arms that it is for."""
    extra = """
evaluate:
  - {name: eval, nll: {num_images: 16}}
  - {name: eval_more, nll: {num_images: 32}}
"""
    frame = results.data(load_records(study_runs(extra, nll)))
    tables = tab_results.tables(frame)
    assert [[(row["model"], row["note"]) for row in members] for _, _, members in tables] == [
        [("trained", "eval"), ("Gaussian per pixel", "")],
        [("trained", "eval_more"), ("Gaussian per pixel", "")],
    ]
    assert ["16 test images" in heading for heading, _, _ in tables] == [True, False]
    assert tab_results.markdown(frame).count("| arm | runs |") == 2 == tab_results.as_html(frame).count("<thead>")


@pytest.mark.parametrize(
    "other",
    [
        "fidelity: {num_samples: 128, num_steps: 10}",
        "fidelity: {num_samples: 64, num_steps: 5}",
        "fidelity: {num_samples: 64, num_steps: 10, sampler: ddim}",
        "fidelity: {num_samples: 64, num_steps: 10, reference: test}",
        "fidelity: {num_samples: 64, num_steps: 10, k: 5}",
        "weights: raw, fidelity: {num_samples: 64, num_steps: 10}",
    ],
)
def test_arms_that_were_measured_by_different_protocols_share_no_column_and_no_best(study_runs, other):
    extra = f"""
grid: {{diffusion.schedule: [linear, cosine]}}
evaluate:
  - {{name: eval, arms: [linear], fidelity: {{num_samples: 64, num_steps: 10}}}}
  - {{name: eval_other, arms: [cosine], {other}}}
"""
    frame = results.data(load_records(study_runs(extra, lambda run: {"fid": 1.0 if run.arm == "linear" else 2.0})))
    tables = tab_results.tables(frame)
    assert [[row["arm"] for row in members] for _, _, members in tables] == [["linear"], ["cosine"]]
    assert all("fid" in titles and heading for heading, titles, _ in tables)
    assert [row["best"] for _, _, members in tables for row in members] == [set(), set()]
    ids = set(frame["protocol_id"])
    assert len(ids) == 2 and all(re.fullmatch("custom-[0-9a-f]{8}", identity) for identity in ids)


def test_arms_on_different_data_share_no_column_and_no_best(study_runs):
    """Whatever the extractor: a distance to digits is none to Fashion-MNIST, and neither are their bits/dim."""
    extra = """
grid: {data: [mnist, fashion_mnist]}
evaluate: [{nll: {}, fidelity: {num_samples: 64, num_steps: 10, extractor: random_features}}]
"""
    frame = results.data(load_records(study_runs(extra, lambda run: {"fid": 1.0, "nll": 2.0})))
    tables = tab_results.tables(frame)
    arms = [{row["arm"] for row in members} - {""} for _, _, members in tables]
    assert sorted(map(sorted, arms)) == [["fashion_mnist"], ["mnist"]]
    assert all(f"of {arm}" in heading for (arm,), (heading, _, _) in zip(arms, tables, strict=True))
    assert [row["best"] for _, _, members in tables for row in members if row["model"] == "trained"] == [set(), set()]


def test_arms_that_differ_in_flips_alone_share_a_table(study_runs):
    extra = "grid: {data.horizontal_flip: [false, true]}\nevaluate: [{nll: {}}]\n"
    ((heading, _, members),) = tab_results.tables(results.data(load_records(study_runs(extra, nll))))
    assert heading == "" and len({row["arm"] for row in members if row["model"] == "trained"}) == 2


def test_other_sampling_seeds_and_names_share_a_table(study_runs):
    extra = """
evaluate:
  - {name: eval, fidelity: {num_samples: 64, num_steps: 10}}
  - {name: eval_again, seed: 1, fidelity: {num_samples: 64, num_steps: 10}}
"""
    ((heading, _, members),) = tab_results.tables(results.data(load_records(study_runs(extra, nll))))
    assert heading == "" and [row["note"] for row in members] == ["eval", "eval_again"]


def test_a_named_protocol_is_named(study_runs):
    extra = "evaluate: [{name: eval, protocol: laptop}]\n"
    frame = results.data(load_records(study_runs(extra, nll)))
    assert set(frame["protocol_id"]) == {"laptop"}
    assert "2000 samples of ddim 50 steps against the train split, k = 3 (protocol laptop)" in tab_results.caption(
        frame
    )


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
    frame = results.data([linear, cosine])
    assert "is not defined" not in tab_results.caption(frame), "it was not measured, but could be"
    monkeypatch.setitem(METHODS, "adversarial", Adversarial)
    frame = results.data([linear, replace(cosine, spec=cosine.spec | {"method": {"name": "adversarial"}})])
    assert "–: NLL is not defined for adversarial" in tab_results.caption(frame)
    (row,) = [row for row in tab_results.rows(frame) if row["arm"] == "cosine"]
    assert "nll" not in row
    (line,) = [line for line in tab_results.markdown(frame).splitlines() if line.startswith("| cosine")]
    assert "| 1 | – |" in line
    assert not [claim for claim in verdicts.judge([linear, cosine]) if "NLL" in claim.statement]


def test_without_any_likelihood_there_is_no_column_and_no_note(study_runs):
    extra = "evaluate: [{fidelity: {num_samples: 64, num_steps: 10}}]\n"
    frame = results.data(load_records(study_runs(extra, nll)))
    assert list(tab_results.heads(frame)) == ["fid", "precision", "recall"]
    assert "NLL" not in tab_results.caption(frame)


def test_metrics_of_features_that_a_study_asks_for_have_columns_with_their_errors(study_runs):
    evaluate = """evaluate:
  - name: eval
    fidelity: {num_samples: 64, num_steps: 10, metrics: [fid, fid_standard_error, fid_infinity, kid, memorisation]}
"""
    numbers = {"fid": 12.3, "fid_standard_error": 0.25, "kid": 0.00123, "kid_standard_error": 0.0001}
    numbers |= {"fid_infinity": 9.0, "fid_infinity_low": 8.0, "fid_infinity_high": 10.0}
    numbers |= {"memorisation_auc": 0.5, "memorisation_auc_low": 0.48, "memorisation_auc_high": 0.52}
    frame = results.data(load_records(study_runs(evaluate, lambda run: numbers)))
    titles = tab_results.heads(frame)
    assert titles["kid"] == "KID (digitsnet) ↓" and not any("standard_error" in metric for metric in titles)
    assert {"kid_standard_error", "fid_infinity_low"} <= set(frame["metric"]), "they are in the CSV"
    (row,) = tab_results.rows(frame)
    assert [row[metric] for metric in ("fid", "fid_infinity", "kid", "memorisation_auc")] == [
        "12.30 ± 0.49 (features)",
        "9.00 ± 1.00 (features)",
        "0.00123 ± 0.00020 (features)",
        "0.500 ± 0.020 (features)",
    ]
    assert "metrics of features: 64 samples of ancestral 10 steps" in tab_results.caption(frame)


# -- intervals, and what they cover


def fid_table(study_runs, measured, *, replicates=1, seeds=1, folder="runs"):
    extra = f"""
grid: {{diffusion.schedule: [linear, cosine]}}
evaluate: [{{fidelity: {{num_samples: 64, num_steps: 10, seeds: {seeds}}}}}]
replicates: {replicates}
"""
    return results.data(load_records(study_runs(extra, measured, folder=folder)))


def cells(frame):
    return [row["fid"] for row in tab_results.rows(frame) if "fid" in row]


def fid(linear, cosine, error=float("nan")):
    """Return the FID of a run of either arm; of replicates around it, 0.1 apart."""
    return lambda run: {
        "fid": (linear if run.arm == "linear" else cosine) + 0.1 * run.replicate,
        "fid_standard_error": error,
    }


def test_a_single_draw_has_the_error_of_its_features_and_without_one_the_cell_says_so(study_runs):
    without = fid_table(study_runs, fid(5, 4))
    assert cells(without) == ["5.00 (no interval)", "4.00 (no interval)"]
    assert "neither several trainings nor FID's standard error were recorded" in tab_results.caption(without)
    assert "sampling_errors" not in without
    frame = fid_table(study_runs, fid(5, 4, 0.1), folder="with")
    assert cells(frame) == ["5.00 ± 0.20 (features)", "4.00 ± 0.20 (features)"]
    assert "± (features): 1.96 standard errors" in tab_results.caption(frame)
    assert "samples alone, not other trainings" in tab_results.caption(frame)


def test_several_seeds_of_one_or_two_trainings_have_the_interval_of_sampling(study_runs):
    frame = fid_table(study_runs, fid(5, 4, 0.1), seeds=4)
    # Values 1 % apart around 5: s = 0.0645, and t with three degrees of freedom 3.18.
    assert cells(frame) == ["5.00 ± 0.10 (seeds)", "4.00 ± 0.08 (seeds)"]
    both = fid_table(study_runs, fid(5, 4, 0.1), seeds=4, replicates=2, folder="two")
    assert cells(both) == ["5.00 ± 0.10 / 5.10 ± 0.10 (seeds)", "4.00 ± 0.08 / 4.10 ± 0.08 (seeds)"]
    assert "± (seeds): half of the 95 % t-interval over sampling seeds" in tab_results.caption(both)
    assert "the mean of 4 sampling seeds" in tab_results.caption(both)


def test_two_seeds_give_the_error_of_the_features_of_their_mean(study_runs):
    assert cells(fid_table(study_runs, fid(5, 4, 0.2), seeds=2))[0] == "5.00 ± 0.28 (features)"  # 1.96 0.2 / sqrt(2)


def test_three_trainings_have_the_interval_over_them_and_with_several_seeds_it_covers_what_they_share(study_runs):
    frame = fid_table(study_runs, fid(5, 4, 0.1), replicates=3)
    assert cells(frame) == ["5.10 ± 0.25", "4.10 ± 0.25"]
    assert "It covers trainings, and of samples what differs between replicates" in tab_results.caption(frame)
    # The seeds lie 1 % apart in each training, so all their spread is shared: 0.0658 / 2, and t has two degrees of
    # freedom as before: 4.303 sqrt(0.0577^2 + 0.0329^2).
    seeds = fid_table(study_runs, fid(5, 4, 0.1), seeds=4, replicates=3, folder="seeds")
    assert cells(seeds) == ["5.10 ± 0.29", "4.10 ± 0.27"]
    assert "It covers trainings and samples." in tab_results.caption(seeds)
    assert "(seeds)" not in tab_results.caption(seeds)
    low, high = seeds.loc[seeds["metric"] == "fid", ["low", "high"]].iloc[0]
    assert high - low == pytest.approx(2 * 0.286, abs=0.001), "the table's numbers are those of the cell"


def test_bold_are_the_best_and_what_is_not_worse_in_pairs_and_a_dagger_marks_what_is_undecided(study_runs):
    def marks(measured, folder, **options):
        rows = tab_results.rows(fid_table(study_runs, measured, folder=folder, **options))
        return [("bold" * ("fid" in row["best"]), "†" * ("fid" in row["undecided"])) for row in rows]

    assert marks(fid(5, 4, 0.01), "apart", replicates=4) == [("", ""), ("bold", "")]

    def crossing(run):
        value = 5 + 0.1 * run.replicate - (run.arm == "cosine") * (run.replicate - 1.4)
        return {"fid": value, "fid_standard_error": 0.01}

    assert marks(crossing, "crossing", replicates=4) == [("bold", "†"), ("bold", "")]
    assert marks(fid(5, 4), "few", replicates=3) == [("", "†"), ("bold", "")], "three seeds decide nothing"
    # Differences of 0.01 +- 0.005 where the evaluation alone has an error of 0.1 on each side.
    near = {"fid_standard_error": 0.1}
    equal = marks(
        lambda run: {"fid": 5 - 0.01 * (run.arm == "cosine") * (1 + run.replicate % 2)} | near, "equal", replicates=4
    )
    assert equal == [("bold", ""), ("bold", "")]


def test_images_from_elsewhere_have_the_error_that_was_scored(study_runs):
    runs = study_runs(EVALUATE, nll)
    protocol = {"reference": "train", "k": 3, "fid_standard_error": 0.5}
    document = {"metrics": {"fid": 1.0}, "num_images": 64, "source": "x", "fidelity": protocol}
    write_scored(runs, "small", "ADM", document | {"extractor": {"name": "digitsnet"}})
    assert cells(results.data(load_records(runs)))[2] == "1.00 ± 0.98 (features)"
