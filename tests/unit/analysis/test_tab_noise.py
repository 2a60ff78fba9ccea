"""The table of the two sources of variance."""

import numpy as np
import pytest

from harness.analysis.runs import load_records
from harness.analysis.tables import tab_noise

STUDY = """
grid: {diffusion.schedule: [linear, cosine]}
replicates: 3
evaluate: [{fidelity: {num_samples: 64, num_steps: 10, seeds: 4, metrics: [fid, fid_standard_error]}}]
"""


def fid(run):
    return {"fid": 100.0 + 50 * (run.arm == "cosine") + run.replicate}


def test_an_evaluation_of_several_seeds_has_a_row_with_both_spreads(study_runs):
    frame = tab_noise.data(load_records(study_runs(STUDY, fid)))
    [row] = frame.to_dict("records")
    assert (row["metric"], row["extractor"], row["trainings"], row["seeds"]) == ("fid", "digitsnet", 3, 4)
    # Trainings are 1 apart, whose seeds lie 1 % apart: the seeds' spread is shared but for a tenth of a thousandth.
    assert row["between_trainings"] == pytest.approx(1.0, rel=1e-3)
    spread = np.std([-1.5, -0.5, 0.5, 1.5], ddof=1)
    assert row["between_seeds"] == pytest.approx(spread * np.sqrt((101.0**2 + 151.0**2) / 2) / 100, rel=1e-3)
    assert row["shared"] == pytest.approx(row["between_seeds"], rel=1e-3)
    assert row["buy_next"] == "sampling seeds"  # 1 / 3 against 2.7 / 4


def test_one_training_has_the_spread_of_its_seeds_alone(study_runs):
    frame = tab_noise.data(load_records(study_runs(STUDY.replace("replicates: 3", "replicates: 1"), fid)))
    [[label, evaluation, trainings, seeds, between, spread, shared, buy_next]] = tab_noise.cells(frame)
    assert (label, evaluation, trainings, seeds) == ("FID (digitsnet)", "eval", "1", "4")
    assert (between, shared, buy_next) == ("–", "–", "–")
    assert float(spread) == pytest.approx(1.29 * 1.27, rel=0.01)


def test_one_seed_has_no_table(study_runs):
    assert tab_noise.data(load_records(study_runs(STUDY.replace("seeds: 4, ", ""), fid))).empty


def test_markdown_and_html_show_the_same_cells(study_runs):
    frame = tab_noise.data(load_records(study_runs(STUDY, fid)))
    for cell in [*tab_noise.heads(), *tab_noise.cells(frame)[0]]:
        assert cell in tab_noise.markdown(frame)
        assert cell in tab_noise.as_html(frame)
