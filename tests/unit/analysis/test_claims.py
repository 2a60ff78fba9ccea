from dataclasses import replace

import pytest

from harness.analysis.claims import claims_card, verdicts
from harness.analysis.claims.papers_claims import CLAIMS
from harness.analysis.claims.verdicts import Contrast, JudgedClaim
from harness.analysis.figures import fig_claims
from harness.analysis.runs import load_records

BY_ID = {claim.id: claim for claim in CLAIMS}


def judged(claim_id, runs):
    """Judge one claim alone."""
    return next(iter(verdicts.judge(runs, [BY_ID[claim_id]])), JudgedClaim(BY_ID[claim_id], ()))


GRID = """
grid:
  diffusion.schedule: [linear, cosine]
  objective & diffusion.var_type: [[simple, fixed], [hybrid, learned_range], [vlb, learned_range]]
replicates: {replicates}
evaluate: [{evaluation}]
"""
NLL = "{nll: {}}"
FULL = "{nll: {}, fidelity: {num_samples: 64, num_steps: 10}}"


def grid(replicates, evaluation):
    return GRID.replace("{replicates}", str(replicates)).replace("{evaluation}", evaluation)


def contrast(*pairs):
    return Contrast("context", "ours", "other", "NLL", pairs)


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [
        # Paired: the replicates differ far more than the arms.
        ([(3.0, 3.1), (2.0, 2.1), (1.0, 1.11), (4.0, 4.09)], "reproduced"),
        ([(3.1, 3.0), (2.1, 2.0), (1.11, 1.0), (4.09, 4.0)], "contradicted"),
        ([(3.0, 3.1), (3.0, 3.1), (3.1, 2.9), (3.0, 3.1)], "inconclusive"),
        ([(3.0, 3.1), (2.0, 2.1), (1.0, 1.11)], "inconclusive"),  # three pairs prove nothing, and the ranges overlap
        ([(3.0, 3.3), (3.1, 3.4), (3.2, 3.5)], "suggests"),
        ([(3.0, 3.2), (3.1, 3.3)], "suggests"),
        ([(3.2, 3.0), (3.3, 3.1)], "suggests the opposite"),
        ([(3.0, 3.2), (3.25, 3.3)], "inconclusive"),  # two pairs, and the ranges overlap
        ([(1.0, 9.0)], "inconclusive"),  # one replicate decides nothing
    ],
)
def test_the_verdict_follows_the_rule(pairs, verdict):
    assert contrast(*pairs).verdict == verdict


@pytest.mark.parametrize(("error", "verdict"), [(0.0, "suggests"), (0.1, "suggests"), (0.11, "inconclusive")])
def test_a_difference_of_two_pairs_within_the_noise_of_their_samples_is_inconclusive(error, verdict):
    assert Contrast("context", "ours", "other", "FID", ((3.0, 3.2), (3.1, 3.3)), error).verdict == verdict


@pytest.mark.parametrize(("error", "verdict"), [(0.02, "suggests"), (0.2, "inconclusive"), (float("nan"), "suggests")])
def test_the_noise_of_samples_is_read_from_the_records(study_runs, error, verdict):
    def close(run):
        return {"fid": 4.0 + 0.2 * (run.spec.objective.name == "vlb"), "fid_standard_error": error}

    vlb = judged("iddpm-vlb-fid", load_records(study_runs(grid(2, FULL), close)))
    assert {contrast.verdict for contrast in vlb.contrasts} == {verdict}
    noise = 0.0 if error != error else error  # of either mean error / sqrt(2), and of two means error
    assert [contrast.sampling_error for contrast in vlb.contrasts] == pytest.approx([noise] * len(vlb.contrasts))


def test_the_numbers_stand_beside_the_verdict():
    said = contrast((3.0, 3.1), (2.0, 2.1), (1.0, 1.11)).numbers()
    assert said == "ours 2, other 2.103; difference -0.103 [-0.118, -0.089], 3 pairs"
    assert contrast((1.0, 2.0)).numbers() == "ours 1, other 2; difference -1, 1 pair"


def as_in_the_paper(run):
    nll = {"simple": 3.26, "hybrid": 3.17, "vlb": 2.94}[run.spec.objective.name]
    fid = {"simple": 3.05, "hybrid": 3.19, "vlb": 11.47}[run.spec.objective.name]
    linear = 0.1 * (run.spec.diffusion.schedule.name == "linear")
    errors = {"fid_standard_error": 1e-3}
    return errors | {"nll": nll + linear + 0.001 * run.replicate, "fid": fid + linear + 0.001 * run.replicate}


def test_the_papers_own_numbers_support_the_papers_claims(study_runs):
    judgements = verdicts.judge(load_records(study_runs(grid(4, FULL), as_in_the_paper)))
    contrasts = {judgement.claim.id: judgement.contrasts for judgement in judgements}
    assert {claim_id: len(of_claim) for claim_id, of_claim in contrasts.items()} == {
        "iddpm-cosine-nll": 3,
        "iddpm-cosine-fid": 3,
        "iddpm-hybrid-nll": 2,
        "iddpm-hybrid-fid": 2,
        "iddpm-vlb-nll": 4,
        "iddpm-vlb-fid": 4,
        "iddpm-plain-vlb-nll": 2,
    }
    of_the_paper = [claim_id for claim_id in contrasts if claim_id != "iddpm-plain-vlb-nll"]  # whose t is resampled
    assert {contrast.verdict for claim_id in of_the_paper for contrast in contrasts[claim_id]} == {"reproduced"}
    assert {contrast.verdict for contrast in contrasts["iddpm-plain-vlb-nll"]} == {"contradicted"}
    assert [contrast.context for contrast in contrasts["iddpm-cosine-nll"]] == ["simple", "hybrid", "vlb"]
    assert contrasts["iddpm-vlb-fid"][0].metric == "FID (digitsnet)"
    table = verdicts.table(judgements)
    assert len(table) == 20
    assert table["pairs"][0] == "3.26/3.36 3.261/3.361 3.262/3.362 3.263/3.363"


def test_the_verdicts_are_corrected_over_the_contrasts_of_all_claims(study_runs):
    def close(run):
        worse = [0.02, 0.01, 0.03, 0.02][run.replicate] * (run.spec.diffusion.schedule.name == "linear")
        return {"nll": 3.0 + run.replicate + worse, "fid": 5.0 + [0.3, -0.2, 0.1, -0.4][run.replicate]}

    runs = load_records(study_runs(grid(4, FULL), close))
    [alone, *_] = judged("iddpm-cosine-nll", runs).contrasts
    alone = replace(alone, p_holm=None)
    assert alone.verdict == "reproduced" and 0.01 < alone.comparison.p < 0.02
    together = verdicts.judge(runs)[0].contrasts[0]
    assert together.verdict == "inconclusive" and together.comparison.p_holm > 0.05
    assert together.numbers() == alone.numbers()


def test_replicates_are_paired_by_their_seed_and_a_missing_one_costs_its_partner(study_runs):
    def numbers(run):
        failed = run.arm == "linear-simple" and run.replicate == 1
        return {"nll": 3 + run.replicate, "state": "failed" if failed else "done"}

    cosine = judged("iddpm-cosine-nll", load_records(study_runs(grid(3, NLL), numbers)))
    assert cosine.contrasts[0].pairs == ((3.0, 3.0), (5.0, 5.0))
    assert cosine.contrasts[1].pairs == ((3.0, 3.0), (4.0, 4.0), (5.0, 5.0))


def test_arms_that_differ_in_something_else_too_are_not_compared(study_runs):
    extra = """
arms:
  one: {diffusion.schedule: linear, optim.lr: 1.0e-3}
  two: {diffusion.schedule: cosine, optim.lr: 2.0e-3}
evaluate: [{nll: {}}]
"""
    assert verdicts.judge(load_records(study_runs(extra, lambda run: {}))) == []


def test_samplers_are_compared_on_the_same_weights_on_both_sides_of_50_steps(study_runs):
    extra = "replicates: 4\nevaluate: [{sweep: {num_steps: [5, 10, 25, 50], num_samples: 64}}]\n"
    runs = load_records(study_runs(extra, lambda run: {"ancestral": 5.0, "ddim": 4.0 + run.replicate / 100}))
    few, many = verdicts.judge(runs)
    assert (few.contrasts[0].verdict, few.contrasts[0].context) == ("reproduced", "base at 5, 10, 25 steps")
    assert many.contrasts[0].verdict == "contradicted"
    assert many.contrasts[0].pairs[0] == pytest.approx((7.0, 6.0))
    assert few.contrasts[0].pairs[0] == pytest.approx(((24 * 14 * 8) ** (1 / 3), (25 * 15 * 9) ** (1 / 3)))


def test_a_claim_that_no_record_speaks_to_is_left_out(study_runs):
    assert verdicts.judge(load_records(study_runs("", lambda run: {}))) == []


# ------------------------------------------------------------------------------------- arms by their resolved values

OFFSETS = """
arms:
  a wide: {diffusion.schedule: {name: cosine, s: 0.05}}
  b narrow: {diffusion.schedule: {name: cosine, s: 0.008}}
  c: {diffusion.schedule: linear}
replicates: 4
evaluate: [{nll: {}}]
"""


def sides(claim):
    return {(contrast.ours, contrast.other): contrast for contrast in claim.contrasts}


def test_two_offsets_of_a_schedule_are_two_arms_and_neither_stands_for_the_other(study_runs):
    nll = {"a wide": 3.3, "b narrow": 3.1, "c": 3.2}
    runs = load_records(study_runs(OFFSETS, lambda run: {"nll": nll[run.arm] + 0.001 * run.replicate}))
    contrasts = sides(judged("iddpm-cosine-nll", runs))
    assert {names: contrast.verdict for names, contrast in contrasts.items()} == {
        ("cosine (diffusion.schedule.s=0.008)", "linear"): "reproduced",
        ("cosine (diffusion.schedule.s=0.05)", "linear"): "contradicted",
    }
    assert {contrast.context for contrast in contrasts.values()} == {"simple; 2 arms are cosine"}


def test_two_lambdas_are_two_arms_on_their_side_and_two_contexts_for_a_claim_about_schedules(study_runs):
    extra = """
grid:
  diffusion.schedule: [linear, cosine]
  objective & diffusion.var_type:
    - [simple, fixed]
    - [{name: hybrid, lambda_vlb: 0.001}, learned_range]
    - [{name: hybrid, lambda_vlb: 0.1}, learned_range]
replicates: 4
evaluate: [{nll: {}}]
"""

    def numbers(run):
        objective = run.spec.objective
        nll = {0.001: 3.1, 0.1: 3.3}.get(getattr(objective, "lambda_vlb", None), 3.2)
        return {"nll": nll + 0.05 * (run.spec.diffusion.schedule.name == "linear") + 0.001 * run.replicate}

    runs = load_records(study_runs(extra, numbers))
    hybrid = judged("iddpm-hybrid-nll", runs)
    assert {(contrast.ours, contrast.verdict) for contrast in hybrid.contrasts} == {
        ("hybrid (objective.lambda_vlb=0.001)", "reproduced"),
        ("hybrid (objective.lambda_vlb=0.1)", "contradicted"),
    }
    assert len(hybrid.contrasts) == 4, "each of them under each schedule"
    assert sorted(contrast.context for contrast in judged("iddpm-cosine-nll", runs).contrasts) == [
        "hybrid (objective.lambda_vlb=0.001)",
        "hybrid (objective.lambda_vlb=0.1)",
        "simple",
    ]


def test_the_same_weights_measured_with_either_variance_are_two_sides_and_never_the_first_of_them(study_runs):
    extra = """
arms:
  s: {objective: simple}
  h: {objective: hybrid, diffusion.var_type: learned_range}
replicates: 3
evaluate:
  - {name: eval, nll: {}, fixed_variance: large}
  - {name: eval_small, nll: {}, fixed_variance: small, arms: [s]}
"""
    runs = load_records(study_runs(extra, lambda run: {"nll": 3.0 + 0.001 * run.replicate - 0.1 * (run.arm == "h")}))
    assert {contrast.other for contrast in judged("iddpm-hybrid-nll", runs).contrasts} == {
        "simple (σ²=β)",
        "simple (σ²=β̃)",
    }


def test_raw_and_averaged_weights_are_never_one_protocol(study_runs):
    extra = """
grid: {diffusion.schedule: [linear, cosine]}
replicates: 3
evaluate: [{name: eval, nll: {}}, {name: eval_raw, nll: {}, weights: raw}]
"""
    contrasts = judged("iddpm-cosine-nll", load_records(study_runs(extra, lambda run: {}))).contrasts
    assert sorted(contrast.context for contrast in contrasts) == [
        "simple (evaluation.weights=ema)",
        "simple (evaluation.weights=raw)",
    ]


def test_two_sweeps_of_one_arm_are_two_contrasts_and_not_replicates_of_one(study_runs):
    sweep = "{name: NAME, sweep: {num_steps: [5, 10], num_samples: 64, samplers: [ancestral, {name: ddim, eta: ETA}]}}"
    entries = [sweep.replace("NAME", name).replace("ETA", eta) for name, eta in (("eval", "0.0"), ("eval_eta", "1.0"))]
    extra = f"replicates: 3\nevaluate: [{', '.join(entries)}]\n"
    few = judged("iddpm-ddim-few-steps", load_records(study_runs(extra, lambda run: {"ddim": 4.0 + run.replicate})))
    assert [len(contrast.pairs) for contrast in few.contrasts] == [3, 3]
    assert len({contrast.ours for contrast in few.contrasts}) == 2


AVERAGES = """
grid: {diffusion.schedule: [linear, cosine], train.ema_rate & train.ema: [[null, [0.999, 0.9999]]]}
replicates: 3
evaluate: [{name: eval, PART, ema: 0.999}, {name: eval_long, PART, ema: 0.9999}]
"""


def test_two_averages_of_the_weights_are_never_one_protocol(study_runs):
    contrasts = judged(
        "iddpm-cosine-nll", load_records(study_runs(AVERAGES.replace("PART", "nll: {}"), lambda run: {}))
    ).contrasts
    assert [len(contrast.pairs) for contrast in contrasts] == [3, 3]
    assert len({contrast.context for contrast in contrasts}) == 2


def test_two_sweeps_of_two_averages_are_two_contrasts(study_runs):
    sweep = "sweep: {num_steps: [5, 10], num_samples: 64}"
    few = judged("iddpm-ddim-few-steps", load_records(study_runs(AVERAGES.replace("PART", sweep), lambda run: {})))
    assert [len(contrast.pairs) for contrast in few.contrasts] == [3] * 4
    assert len({contrast.context for contrast in few.contrasts}) == 4


# ------------------------------------------------------------------------------------------------------------- the card

TWO_OFFSETS_AND_TWO_LAMBDAS = """
grid:
  diffusion.schedule: [linear, {name: cosine, s: 0.05}, {name: cosine, s: 0.008}]
  objective & diffusion.var_type:
    - [simple, fixed]
    - [{name: hybrid, lambda_vlb: 0.001}, learned_range]
    - [{name: hybrid, lambda_vlb: 0.1}, learned_range]
replicates: 4
evaluate: [{nll: {}, fidelity: {num_samples: 64, num_steps: 10}}]
"""


@pytest.fixture
def two_offsets_and_two_lambdas(study_runs):
    def numbers(run):
        schedule, objective = run.spec.diffusion.schedule, run.spec.objective
        value = {0.008: 3.1, 0.05: 3.4}.get(getattr(schedule, "s", None), 3.2)
        value += {0.001: -0.02, 0.1: 0.04}.get(getattr(objective, "lambda_vlb", None), 0.0)
        value += 0.001 * run.replicate + [0, 0.001, -0.001, 0.002][run.replicate] * (schedule.name == "linear")
        return {"nll": value, "fid": value, "fid_standard_error": 1e-4}

    return verdicts.judge(load_records(study_runs(TWO_OFFSETS_AND_TWO_LAMBDAS, numbers)))


def test_two_offsets_and_two_lambdas_are_apart_in_every_claim_its_table_and_its_figure(two_offsets_and_two_lambdas):
    rows = claims_card.card({"study": two_offsets_and_two_lambdas})
    assert [row.claim.id for row in rows if row.contrasts] == [
        "iddpm-cosine-nll",
        "iddpm-cosine-fid",
        "iddpm-hybrid-nll",
        "iddpm-hybrid-fid",
    ]
    drawn = fig_claims.data(rows)
    for judged_claim in two_offsets_and_two_lambdas:
        texts = [(c.context, c.ours, c.other) for c in judged_claim.contrasts]
        of_table = verdicts.table([judged_claim])[["context", "ours", "other"]].itertuples(index=False, name=None)
        of_figure = drawn[drawn["claim"] == judged_claim.claim.id][["context", "ours", "other"]]
        assert texts == list(of_table) == list(of_figure.itertuples(index=False, name=None))
        assert len(set(texts)) == len(texts) == 6, "each offset with each objective, and each lambda with each schedule"
        assert all(len(contrast.pairs) == 4 for contrast in judged_claim.contrasts)
        for value in ("s=0.008", "s=0.05", "lambda_vlb=0.001", "lambda_vlb=0.1"):
            assert any(value in " ".join(text) for text in texts), value


def test_verdicts_that_differ_by_the_offset_make_a_claim_mixed(two_offsets_and_two_lambdas):
    rows = {row.claim.id: row for row in claims_card.card({"study": two_offsets_and_two_lambdas})}
    by_offset = {(c.verdict, "s=0.05" in c.ours) for _, c in rows["iddpm-cosine-nll"].contrasts}
    assert by_offset == {("reproduced", False), ("contradicted", True)}
    assert rows["iddpm-cosine-nll"].verdict == "mixed"
    assert rows["iddpm-cosine-nll"].summary == "6 contrasts: 3 reproduced, 3 contradicted"


@pytest.mark.parametrize(
    ("verdicts", "of_claim"),
    [
        (("reproduced", "inconclusive", "suggests the opposite"), "reproduced"),
        (("contradicted", "suggests"), "contradicted"),
        (("reproduced", "contradicted"), "mixed"),
        (("suggests", "inconclusive"), "suggests"),
        (("suggests", "suggests the opposite"), "inconclusive"),
        (("inconclusive",), "inconclusive"),
        ((), "not run"),
    ],
)
def test_a_claim_is_called_by_the_verdicts_of_its_contrasts(verdicts, of_claim):
    pairs = {
        "reproduced": [(1.0, 2.0), (1.1, 2.2), (1.0, 2.1), (1.2, 2.0)],
        "contradicted": [(2.0, 1.0), (2.2, 1.1), (2.1, 1.0), (2.0, 1.2)],
        "suggests": [(1.0, 2.0), (1.1, 2.2)],
        "suggests the opposite": [(2.0, 1.0), (2.2, 1.1)],
        "inconclusive": [(1.0, 2.0)],
    }
    row = claims_card.Row(CLAIMS[0], tuple(("study", contrast(*pairs[verdict])) for verdict in verdicts))
    assert [one.verdict for _, one in row.contrasts] == list(verdicts)
    assert row.verdict == of_claim


def test_a_contrast_of_two_studies_counts_once_with_the_most_pairs():
    few = replace(contrast((1.0, 2.0), (1.1, 2.2)), key="same")
    many = replace(contrast(*[(1.0, 2.0), (1.1, 2.2), (1.0, 2.1), (1.2, 2.0)]), key="same")
    other = replace(contrast((1.0, 2.0)), key="other")
    judgements = {
        "demo": [JudgedClaim(CLAIMS[0], (few, other))],
        "claims": [JudgedClaim(CLAIMS[0], (many,))],
    }
    assert claims_card.card(judgements)[0].contrasts == (("claims", many), ("demo", other))


def test_a_margin_lets_our_side_be_worse_by_its_part_of_the_other():
    def contrast_at(factor):
        pairs = [(factor * (10 + step), 10 + step + jitter) for step, jitter in enumerate((0, 0.02, -0.02, 0.01))]
        return Contrast("context", "ours", "other", "FID", tuple(pairs), margin=0.1)

    assert [contrast_at(factor).verdict for factor in (0.8, 1.0, 1.05, 1.15)] == ["reproduced"] * 3 + ["contradicted"]
    assert "difference +0." in contrast_at(1.05).numbers(), "the numbers are of the two sides, without the margin"


def test_a_claim_that_says_higher_is_judged_the_other_way_round():
    pairs = tuple((value + 1, value) for value in (1.0, 2.0, 3.0, 4.5))
    assert Contrast("context", "ours", "other", "recall", pairs).verdict == "contradicted"
    assert Contrast("context", "ours", "other", "recall", pairs, higher=True).verdict == "reproduced"
    assert Contrast("context", "ours", "other", "recall", pairs[:2], higher=True).verdict == "inconclusive"
    assert Contrast("context", "ours", "other", "recall", ((2.0, 1.0), (2.5, 1.5)), higher=True).verdict == "suggests"
    assert fig_claims.effects(Contrast("c", "o", "t", "recall", ((2.0, 1.0), (2.6, 1.5)), higher=True))[1] > 0


def test_the_card_names_the_study_that_tests_a_claim_that_was_not_run():
    rows = claims_card.card({})
    page = claims_card.as_html(rows)
    assert {row.verdict for row in rows} == {"not run"} and claims_card.counts(rows) == f"{len(CLAIMS)} not run"
    for claim in CLAIMS:
        assert f"harness submit experiments/{claim.study}" in page
    assert set(fig_claims.data(rows)["verdict"]) == {"not run"}
