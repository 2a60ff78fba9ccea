"""A study's labels of its arms: the page and the tables of text have them, as the figures do."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.analysis.page.page import Section
from harness.analysis.page.page_labels import as_text, shown_names, with_names
from harness.analysis.report.report import draw_report
from harness.analysis.runs import load_records
from harness.analysis.tables import tab_mixture
from harness.spec.presentation import FigureStyle, Presentation

STUDY = """
grid: {diffusion.schedule: [linear, cosine, vp]}
replicates: 3
evaluate: [{name: eval, nll: {}}]
"""
LABELS = {"linear": r"$\beta_t$ linear", "cosine": r"cosine, $L_\mathrm{simple}$"}


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("plain", "plain"),
        (r"cosine, $L_\mathrm{hybrid}$", "cosine, L_hybrid"),
        (r"$\lambda = 10^{-3}$", "λ = 10^-3"),
        (r"$\tilde{\beta}$ and $\hat x_0$", "β̃ and x̂_0"),
        (r"5 \$ $\times$ 2", "5 $ × 2"),
        (r"$\frac{1}{T}\,\sigma$", "1/T σ"),
        ("<b>$x$</b>", "<b>x</b>"),
    ],
)
def test_a_formula_becomes_text(label, text):
    assert as_text(label) == text


def numbers(run):
    return {"nll": 3.0 - 0.5 * (run.arm == "cosine") + run.replicate / 100, "nll_standard_error_bpd": 0.001}


@pytest.mark.slow
def test_the_page_its_script_and_the_tables_of_text_have_the_labels_and_the_data_keep_the_names(study_runs, tmp_path):
    runs_folder = study_runs(STUDY, numbers)
    (study,) = {run.study for run in load_records(runs_folder)}
    look = FigureStyle(labels=LABELS, formats=("png",))
    page = draw_report(runs_folder, tmp_path / "figures", look=look).page.read_text()
    body = page.partition("<body>")[2]
    own = body[: body.index('<section id="schedules"')]
    for shown in ("β_t linear", "cosine, L_simple"):
        for place in (f"</i>{shown}</td>", f'data-name="{shown}"', f"{shown}</button>", f'"name":"{shown}"'):
            assert place in own.replace("\\u03b2", "β"), place
    assert "cosine, L_simple is ahead of β_t linear" in own
    assert "</i>vp</td>" in own and "</i>linear</td>" not in own and "</i>cosine</td>" not in own
    folder = tmp_path / "figures" / study
    for name in ("results.md", "contrasts.md"):
        assert "cosine, L_simple" in (folder / name).read_text().replace("\\_", "_"), name
    for name in ("results.tex", "contrasts.tex"):
        assert r"cosine, $L_\mathrm{simple}$" in (folder / name).read_text(), name
    assert set(pd.read_csv(folder / "results.csv")["arm"].dropna()) >= {"linear", "cosine", "vp"}
    contrasts = pd.read_csv(folder / "contrasts.csv")
    assert set(contrasts["ours_name"]) == {"cosine", "vp"} and set(contrasts["other_name"]) == {"linear"}


def test_two_arms_of_one_label_stay_two_arms(study_runs):
    runs = load_records(study_runs(STUDY, numbers))
    labels = {"linear": "$x$", "cosine": "x", "vp": "y"}
    section = Section("s", runs, Presentation(figures=FigureStyle(labels=labels)))
    assert shown_names(section) == {"linear": "x (linear)", "cosine": "x (cosine)", "vp": "y"}
    swapped = Section("s", runs, Presentation(figures=FigureStyle(labels={"linear": "cosine"})))
    assert shown_names(swapped) == {"linear": "cosine (linear)"}


def test_rows_that_say_more_than_the_arm_keep_what_they_say():
    rows = pd.DataFrame({"row": ["cosine", "cosine, T = 4", "cosine-two"]})
    assert list(with_names(rows, {"cosine": "c"}, "row")["row"]) == ["c", "c, T = 4", "cosine-two"]
    labels = {"cosine": "$c$"}
    assert [tab_mixture._latex_label(row, labels) for row in rows["row"]] == ["$c$", "$c$, T = 4", "cosine-two"]
