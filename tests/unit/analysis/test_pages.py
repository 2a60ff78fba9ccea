"""The code on the pages about figures runs, on records with known numbers."""

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from harness.analysis.runs import load_records

DOCS = Path(__file__).parents[3] / "docs"
STUDY = """
grid: {diffusion.schedule: [linear, cosine]}
replicates: 3
evaluate: [{name: eval, nll: {}, fidelity: {num_samples: 64, num_steps: 10}, sweep: {num_samples: 64, num_steps: [5]}}]
"""


def numbers(run):
    return {"nll": 3.0 + run.replicate / 10 - (run.arm == "cosine") / 2, "precision": 0.5 + run.replicate / 10}


def code_of(page):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert blocks
    return blocks


def test_the_tutorial_from_runs_to_a_figure_runs_from_its_first_to_its_last_line(study_runs, tmp_path, monkeypatch):
    study_runs(STUDY, numbers)
    monkeypatch.chdir(tmp_path)  # its runs are those in ./runs
    monkeypatch.delenv("HARNESS_RUNS", raising=False)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names = {}
    for block in code_of("tutorial_from_runs_to_a_figure.md"):
        exec(block, names)
    assert names["summary"]["count"].to_dict() == {"cosine": 3, "linear": 3}
    assert names["summary"]["mean"].to_dict() == pytest.approx({"cosine": 2.6, "linear": 3.1})
    np.testing.assert_allclose(names["difference"], [-0.5] * 3)
    assert names["loss"].loc[100].to_dict() == pytest.approx({"cosine": 0.1, "linear": 0.1})
    assert {arm: L_t[0] for arm, L_t in names["terms"].items()} == {"linear": 1.5, "cosine": 1.25}
    assert names["left"].get_ylabel() == "Training loss"
    assert names["right"].get_ylabel() == "$L_t$ (bits/dim)"
    assert (tmp_path / "terms.png").stat().st_size > 1000


def test_the_figure_that_the_how_to_adds_is_drawn(study_runs):
    (block,) = code_of("howto/add_a_figure.md")
    module = {}
    exec(block, module)
    runs = load_records(study_runs(STUDY, numbers))
    frame = module["data"](runs)
    assert frame["precision"].tolist() == [0.5, 0.6, 0.7] * 2
    assert set(frame["recall"]) == {0.4}
    assert isinstance(module["draw"](frame), Figure)
    assert module["caption"](frame) == "Precision against recall, a point for each of 6 measurements."
    assert module["data"]([]).empty and list(module["data"]([])) == list(frame)
