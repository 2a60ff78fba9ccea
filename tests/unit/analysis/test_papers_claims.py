"""Each of the papers' claims is found in the records of the study that tests it, with the right direction."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from harness.analysis.claims import claims_card, verdicts
from harness.analysis.claims.claim import Between
from harness.analysis.claims.papers_claims import CLAIMS
from harness.analysis.runs import Measurement, RunRecord
from harness.analysis.settings import flatten
from harness.records.status import Status
from harness.study.expand import load_study
from harness.testing import MEASURED, fake_result

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
JITTER = (0.0, 0.003, -0.002, 0.001, -0.003)  # of the replicates, so that differences have a spread
NOT_MEASURED = {"grid": None, "trajectories": None, "batch_size": 256}


@cache
def finished(study):
    """Return the records of a study's runs in memory, and of each the curves of its measurements, with their settings.

    All runs have the same values.
    """
    return [record_of(run) for run in load_study(EXPERIMENTS / study, sets=["replicates=5"]).runs]


def record_of(run):
    measurements, curves, spec = [], [], run.spec.model_dump(mode="json")
    record = RunRecord(Path(run.run_key), run.study, run.arm, run.replicate, spec, Status("done", 1, 1), environment={})
    for evaluation in run.evaluations:
        evaluation = evaluation.model_copy(update=NOT_MEASURED)
        protocol = {"fidelity": {"fid_standard_error": 1e-4}}
        measurement = Measurement(evaluation.name, evaluation.name, evaluation.model_dump(mode="json"), protocol)
        settings = flatten(spec) | {"σ²": record.variance(measurement)}
        result = fake_result(evaluation, run.spec, MEASURED)
        curves += [(settings, name, [1], [value]) for name, value in result.metrics.items()]
        for name, curve in result.curves.items():
            sampler = {"evaluation.sampler.name": name.rpartition("_")[2]}
            curves.append((settings | sampler, name, *zip(*curve, strict=True)))
        measurements.append(measurement)
    return replace(record, measurements=tuple(measurements)), curves


def records_with(claim, ours, others):
    """Return the records of a claim's study, with these factors on the values of either side."""

    def factor(settings):
        factors = [(ours, claim.ours), (others, claim.others)]
        own = [factor for factor, sides in factors if any(verdicts.matches(settings, side.values) for side in sides)]
        return float(np.prod(own)) ** (1 / max(1, len(own)))  # a width that is on both sides is between the others

    records = []
    for record, curves in finished(claim.study):
        if is_near(claim, record.spec):
            own = {
                name: (
                    np.array(steps),
                    np.array(values) * factor(settings) * (1 + JITTER[record.replicate] * factor(settings)),
                )
                for settings, name, steps, values in curves
            }
            records.append(replace(record, curves=own))
    return records


def is_near(claim, spec):
    """Return whether a run can be on a side: the others need not be judged."""
    settings = flatten(spec)
    sides = [{path: v for path, v in side.values.items() if path in settings} for side in (*claim.ours, *claim.others)]
    where = {path: value for path, value in claim.where.items() if path in settings}
    return any(verdicts.matches(settings, values | where) for values in sides)


def verdicts_of(judged):
    return {contrast.verdict for one in judged for contrast in one.contrasts}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_a_planted_effect_reproduces_a_claim_and_a_reversed_one_contradicts_it(claim):
    for ours, others, verdict in ((0.7, 1.0, "reproduced"), (1.0, 0.7, "contradicted")):
        judged = verdicts.judge(records_with(claim, ours, others), [claim])
        assert verdicts_of(judged) == {verdict}
        assert {len(contrast.pairs) for one in judged for contrast in one.contrasts} == {5}
        row = next(row for row in claims_card.card({"study": judged}) if row.claim is claim)
        assert row.verdict == verdict
    row = next(row for row in claims_card.card({}) if row.claim is claim)
    assert (row.verdict, row.contrasts) == ("not run", ())


def test_claims_have_names_of_their_own_and_studies_that_are_there():
    assert len({claim.id for claim in CLAIMS}) == len({claim.statement for claim in CLAIMS}) == len(CLAIMS) > 22
    assert all((EXPERIMENTS / claim.study).is_file() for claim in CLAIMS)


def test_every_study_of_make_claims_tests_a_claim():
    assert {f"claims/{path.name}" for path in (EXPERIMENTS / "claims").glob("*.yaml")} == {
        claim.study for claim in CLAIMS
    }


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_what_tells_the_sides_apart_is_what_the_claim_varies(claim):
    paths = {path for side in (*claim.ours, *claim.others) for path in side.values}
    constant = {
        path for path in paths if len({repr(side.values.get(path)) for side in (*claim.ours, *claim.others)}) == 1
    }
    assert all(verdicts.is_below(path, claim.varies) for path in paths - constant)


@pytest.mark.parametrize(
    ("actual", "value", "fits"),
    [
        (0.3, Between(1e-12), True),
        (0.0, Between(1e-12), False),
        (50, Between(high=50), False),
        ("cosine", Between(), False),
        (4, (4, 8), True),
        (16, (4, 8), False),
        (0.5, 0.5, True),
    ],
)
def test_a_value_of_a_side_is_one_value_any_of_several_or_a_range(actual, value, fits):
    assert verdicts.fits(actual, value) == fits
