import json
import math
import re

import numpy as np
import pytest

from harness.analysis.answers.contrasts import as_values, changes_along, contrasts, contrasts_of, deciding
from harness.analysis.runs import load_records
from harness.analysis.statistics.comparison import compare, holm
from harness.analysis.tables.latex import escape
from harness.analysis.tables.tab_contrasts import HEADERS, answers, cells, latex, markdown, notes, rows
from harness.errors import RecordError
from harness.spec.presentation import Compare

GRID = """
grid: {diffusion.schedule: [linear, cosine], objective: [simple, hybrid]}
evaluate: [{name: eval, nll: {}, fidelity: {num_samples: 64, num_steps: 10}}]
"""
OFFSETS = """
arms:
  narrow: {diffusion.schedule: {name: cosine, s: 0.004}}
  wide: {diffusion.schedule: {name: cosine, s: 0.016}}
evaluate: [{name: eval, nll: {}}]
"""


def runs_of(study_runs, extra, numbers, replicates=4):
    return load_records(study_runs(f"{extra}replicates: {replicates}\n", numbers))


def nll(run):
    """Of a seed that matters much, an effect of the schedule, and a smaller one of the objective."""
    noise = [0.01, -0.02, 0.0, 0.02][run.replicate % 4]
    cosine, hybrid = "cosine" in run.arm, "hybrid" in run.arm
    value = 3 + run.replicate + (noise - 0.5) * cosine - 0.1 * hybrid * (1 + noise)
    return {"nll": value, "nll_standard_error_bpd": 0.002}


def test_arms_are_paired_by_seed_with_the_first_as_the_baseline(study_runs):
    runs = runs_of(study_runs, GRID, nll)
    found = {(c.ours, c.other): c for c in contrasts(runs, metric="nll")}
    assert list(found) == [(arm, "linear-simple") for arm in ("linear-hybrid", "cosine-simple", "cosine-hybrid")]
    contrast = found["cosine-simple", "linear-simple"]
    expected = compare([2.51, 3.48, 4.5, 5.52], [3, 4, 5, 6])
    assert contrast.comparison.differences == pytest.approx(expected.differences)
    assert contrast.comparison.p == pytest.approx(expected.p)
    assert contrast.verdict == "better"
    family = holm([c.comparison.p for c in found.values()])
    assert [c.comparison.p_holm for c in found.values()] == pytest.approx(family)
    assert contrast.comparison.correlation == pytest.approx(1, abs=1e-3)


def test_the_error_of_the_evaluation_is_the_floor_below_which_arms_are_equivalent(study_runs):
    runs = runs_of(study_runs, GRID, lambda run: nll(run) | {"nll_standard_error_bpd": 1.0})
    contrast = contrasts(runs, metric="nll")[0]
    assert contrast.comparison.floor == pytest.approx(2**0.5)  # of two sides; replicates share their noise
    assert contrast.verdict == "equivalent within the noise of the evaluation"


def test_another_baseline_all_pairs_and_one_metric(study_runs):
    runs = runs_of(study_runs, GRID, nll)
    assert {c.other for c in contrasts(runs, baseline="cosine-hybrid")} == {"cosine-hybrid"}
    pairs = [(c.ours, c.other) for c in contrasts(runs, metric="nll", pairs="all")]
    assert len(pairs) == len(set(pairs)) == 6
    metrics = [c.quantity.metric for c in contrasts(runs)]
    assert metrics == ["nll"] * 3 + ["fid"] * 3 + ["precision"] * 3 + ["recall"] * 3
    assert [c.quantity.higher_is_better for c in contrasts(runs)][::3] == [False, False, True, True]


def test_a_main_effect_averages_over_what_else_differs_within_each_seed(study_runs):
    runs = runs_of(study_runs, GRID, nll)
    (contrast,) = contrasts(runs, metric="nll", by=["diffusion.schedule"])
    assert (contrast.ours, contrast.other, contrast.comparison.n) == ("cosine", "linear", 4)
    assert contrast.comparison.differences == pytest.approx((-0.49, -0.52, -0.5, -0.48))
    (contrast,) = contrasts(runs, metric="nll", by=["objective.name"])
    assert contrast.comparison.differences == pytest.approx((-0.101, -0.098, -0.1, -0.102))


def test_what_changes_along_with_a_value_is_said_and_does_not_hinder(study_runs):
    runs = runs_of(study_runs, GRID, nll, replicates=1)
    assert changes_along(runs, "diffusion.schedule") == []
    assert changes_along(runs, "objective") == ["diffusion.var_type"]


def test_two_arms_that_differ_only_in_the_offset_are_two_sides(study_runs):
    runs = runs_of(study_runs, OFFSETS, lambda run: {"nll": 3.0 + 0.1 * (run.arm == "wide") + 0.001 * run.replicate})
    (contrast,) = contrasts(runs, by=["diffusion.schedule"])
    assert contrast.ours != contrast.other and "s=0.004" in contrast.other and "s=0.016" in contrast.ours
    assert contrast.comparison.difference == pytest.approx(0.1)
    (contrast,) = contrasts(runs)
    assert {contrast.ours, contrast.other} == {"narrow", "wide"}


def test_a_seed_without_a_finite_value_on_both_sides_is_left_out_and_named(study_runs):
    def numbers(run):
        if run.arm.startswith("cosine-simple") and run.replicate == 1:
            return {"state": "failed"}
        return {"nll": math.nan} if run.arm == "linear-simple" and run.replicate == 2 else nll(run)

    runs = runs_of(study_runs, GRID, numbers)
    first = next(c for c in contrasts(runs, metric="nll") if c.ours == "cosine-simple")
    seeds = {run.replicate: run.spec["seed"] for run in runs}
    assert first.seeds == (seeds[0], seeds[3]) and first.left_out == (seeds[1], seeds[2])
    lines = notes([first])
    assert "left out 2 seeds" in lines[0] and lines[1] == "below 4 seeds nothing is called better or worse"


def test_wrong_names_are_refused_with_the_choices(study_runs):
    runs = runs_of(study_runs, GRID, nll, replicates=1)
    for options, words in (
        ({"baseline": "cosine"}, "no arm 'cosine' was measured"),
        ({"metric": "fidd"}, "did you mean 'fid'?"),
        ({"by": ["optim.lr"]}, "no value 'optim.lr' differs between the arms"),
    ):
        with pytest.raises(RecordError, match=words.replace("?", r"\?")):
            contrasts(runs, **options)


def test_the_table_says_what_is_missing_for_a_verdict(study_runs):
    runs = runs_of(study_runs, GRID, nll, replicates=2)
    table = [dict(zip(HEADERS, cells(c), strict=True)) for c in contrasts(runs, metric="nll")]
    assert [row["verdict"] for row in table] == ["inconclusive: 2 more seeds would decide"] * 3
    (row,) = [row for row in table if row["arm"] == "cosine-simple"]
    assert (row["mean"], row["seeds"], row["difference"]) == ("2.995", "2", "-0.505")
    (text, _), *others = rows(contrasts(runs, metric="nll"))
    assert text.endswith("against linear-simple (3.500)") and not others


def test_the_answer_names_the_best_arm_or_what_is_missing(study_runs):
    nll_answer = answers(contrasts(runs_of(study_runs, GRID, nll)))[0]
    assert nll_answer.startswith("NLL (bits/dim): cosine-hybrid is better than linear-simple by 0.598 (0.5")
    assert nll_answer.endswith("; 2 more arms better than it.")
    few = load_records(study_runs(GRID + "replicates: 2\n", nll, folder="few"))
    undecided = answers(contrasts(few))[0]
    assert undecided.startswith("NLL (bits/dim), undecided: cosine-hybrid is ahead of linear-simple by 0.605 (0.4")
    assert undecided.endswith(". 2 more seeds would decide.")
    worse = answers(contrasts(few + runs_of(study_runs, GRID, nll), baseline="cosine-hybrid"))[0]
    assert "cosine-hybrid is better than all others; the nearest: cosine-simple is worse than" in worse


def test_an_answer_says_what_parts_of_the_spec_do_before_what_single_arms_do_and_what_is_undecided_last(study_runs):
    def by_objective(run):
        value = 3 + [0, 0.3, -0.2, 0.1][run.replicate] * ("cosine" in run.arm) - 0.5 * ("hybrid" in run.arm)
        return {"nll": value, "nll_standard_error_bpd": 0.002}

    runs = runs_of(study_runs, GRID, by_objective)
    compared = contrasts(runs, metric="nll") + contrasts(runs, metric="nll", by=["diffusion.schedule", "objective"])
    (answer,) = answers(compared)
    decided, undecided = answer.split(" Undecided: ")
    assert decided.startswith("NLL (bits/dim): hybrid is better than simple by 0.500")
    assert decided.index("hybrid is better") < decided.index("linear-hybrid is better than linear-simple")
    assert undecided.startswith("cosine is behind linear by 0.050.") and undecided.endswith("would decide.")


def test_values_for_json_are_plain_and_know_no_nan(study_runs):
    runs = runs_of(study_runs, GRID, nll, replicates=1)
    values = [as_values(contrast) for contrast in contrasts(runs)]
    stored = json.loads(json.dumps(values, allow_nan=False))
    assert stored[0]["p"] is None and stored[0]["verdict"] == "inconclusive"
    assert np.isclose(stored[0]["difference"], -0.101)


def test_the_table_in_latex_escapes_what_latex_reads(study_runs):
    assert escape("50_% & $L_t$ ~ β̃ ↓ #1 {x}") == (
        r"50\_\% \& $L_t$ \textasciitilde{} $\tilde\beta$ $\downarrow$ \#1 \{x\}"
    )
    assert escape(r"$\input{x}$ $L_\mathrm{a}$ $a}b$ 中") == (
        r"\$\textbackslash{}input\{x\}\$ $L_\mathrm{a}$ \$a\}b\$ {[}U+4E2D]"
    ), "a formula from records holds no command that does something"
    assert escape("[-0.5, +1.0] ± 2, linear-simple") == r"{[}$-$0.5, +1.0] $\pm$ 2, linear-simple"
    runs = runs_of(study_runs, GRID, nll)
    text = latex(contrasts(runs), "harness compare small", {"cosine-simple": r"$L_\mathrm{simple}$"})
    assert text.splitlines()[1] == "% harness compare small" and text.count(r"\begin{tabular}") == 4
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(HEADERS) - 1}
    assert r"$L_\mathrm{simple}$ & 4.002 & 4 & \bfseries -0.498" in text
    assert markdown(contrasts(runs, metric="nll")).count("\n| ") == 4


def test_an_interaction_is_the_difference_between_the_effects_of_one_value_at_two_of_another(study_runs):
    def numbers(run):
        cosine, hybrid = "cosine" in run.arm, "hybrid" in run.arm
        noise = [0.01, -0.02, 0.0, 0.01][run.replicate]
        value = 3 + run.replicate - 0.5 * cosine - 0.1 * hybrid - (0.2 + noise) * (cosine and hybrid)
        return {"nll": value, "nll_standard_error_bpd": 0.002}

    runs = runs_of(study_runs, GRID, numbers)
    schedule, objective, both = contrasts(runs, metric="nll", by=["diffusion.schedule", "objective"])
    assert (schedule.ours, objective.ours) == ("cosine", "hybrid")
    assert schedule.comparison.difference == pytest.approx(-0.6)
    assert objective.comparison.difference == pytest.approx(-0.2)
    assert (both.ours, both.other) == ("cosine − linear, hybrid", "cosine − linear, simple")
    assert (both.comparison.ours, both.comparison.other) == pytest.approx((-0.7, -0.5))
    assert both.comparison.differences == pytest.approx((-0.21, -0.18, -0.2, -0.21))
    assert [c.factors for c in (schedule, both)] == [("diffusion.schedule",), ("diffusion.schedule", "objective")]
    (answer,) = answers([schedule, objective, both])
    effects = answer.split("; ")
    assert effects[0].startswith("NLL (bits/dim): cosine is better than linear by 0.6")
    assert effects[1].startswith("hybrid is better than simple by 0.2")
    assert effects[2] == (
        "the effects depend on each other: cosine − linear, hybrid (-0.700), is not cosine − linear, simple (-0.500)."
    )
    assert both.verdict == "better" and both.comparison.floor == pytest.approx(0.004)  # of four values
    family = holm([contrast.comparison.p for contrast in (schedule, objective, both)])
    assert [contrast.comparison.p_holm for contrast in (schedule, objective, both)] == pytest.approx(family)


def test_a_study_names_its_pairs_its_effects_and_the_metric_that_decides(study_runs):
    runs = runs_of(study_runs, GRID, nll)
    asked = Compare(metric="eval/nll", pairs=(("cosine-hybrid", "cosine-simple"),), by=("objective",))
    compared = deciding(contrasts_of(runs, asked), asked)
    assert [(c.ours, c.other) for c in compared] == [("cosine-hybrid", "cosine-simple"), ("hybrid", "simple")]
    assert {c.quantity.metric for c in compared} == {"nll"}
    assert {c.quantity.metric for c in contrasts_of(runs, asked)} == {"nll", "fid", "precision", "recall"}
    assert deciding(contrasts_of(runs, asked), Compare(metric="kid")) == []  # not measured yet
