"""A study that was changed shows its present runs alone, in everything that is made of records."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from harness.analysis.answers.contrasts import contrasts
from harness.analysis.claims.verdicts import judge
from harness.analysis.report import report
from harness.analysis.runs import load_records, load_runs
from harness.cli import cli
from harness.records.manifest import ask_for
from harness.study.model import Run
from harness.testing import TINY_STUDY, tiny_study, write_finished_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_closed_forms")]

STUDY = """
grid: {{diffusion.schedule: [linear, cosine]}}
train: {{steps: {steps}, batch_size: 16, ema_rate: 0.8}}
replicates: 2
evaluate:
  - {{name: eval, nll: {{num_images: 16}}, fidelity: {{num_samples: 64, num_steps: 5}}, grid: 4}}
  - {{name: eval, sweep: {{num_steps: [5, 10], num_samples: 64}}}}
"""


def ask(home: Path, steps: int) -> list[Run]:
    """Ask for the study with runs of this length, and return them."""
    text = TINY_STUDY.replace("train: {steps: 12, batch_size: 16, ema_rate: 0.8}\n", "")
    runs = tiny_study(home, STUDY.format(steps=steps), study=text)
    ask_for(home / "runs", "tiny", {run.run_key: run.membership() for run in runs}, file=home / "tiny.yaml")
    return runs


def measure(home: Path, runs: list[Run], nll: float) -> list[str]:
    """Write the runs' records with values near to these, and return their keys."""
    for run in runs:
        measured = {"nll_bpd": nll + run.replicate / 100 - (run.arm == "cosine") / 10, "fid": 10 * nll}
        write_finished_run(run, home / "runs", measured)
    return [run.run_key for run in runs]


def test_a_study_whose_training_was_made_longer_shows_only_its_present_runs_everywhere(tmp_path):
    earlier = measure(tmp_path, ask(tmp_path, 12), nll=7.0)
    out = tmp_path / "figures"
    report.report(tmp_path / "runs", out)
    assert pd.read_csv(out / "tiny" / "results.csv")["mean"].max() > 60
    present = measure(tmp_path, ask(tmp_path, 48), nll=3.0)
    report.report(tmp_path / "runs", out)
    assert set(earlier).isdisjoint(present) and len(list((tmp_path / "runs").glob("[!.]*"))) == 8

    page = (out / "index.html").read_text()
    assert "4 runs, all done. Without 4 earlier runs, no longer asked for." in page
    for path in out.rglob("[!.]*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(key.encode() in content for key in earlier), path
        if path.suffix == ".png":
            assert all(key.encode() in content for key in present), path
    results = pd.read_csv(out / "tiny" / "results.csv")
    assert set(results["planned"][results["model"] == "trained"]) == {2}
    values = {float(value) for text in results["values"][results["metric"] == "nll"] for value in str(text).split()}
    assert values and not any(6 < value < 8 for value in values)
    curves = pd.read_csv(out / "tiny" / "learning_curves.csv")
    assert (curves["iteration"].max(), set(curves["n"])) == (48, {2})
    assert set(pd.read_csv(out / "tiny" / "contrasts.csv")["n"]) == {2}

    runs = load_records(tmp_path / "runs", "tiny")
    assert {run.run_key for run in runs} == set(present)
    assert {run.run_key for run in load_records(tmp_path / "runs")} == set(present)
    assert set(load_runs("tiny", runs_folder=tmp_path / "runs").runs["run_key"]) == set(present)
    assert {len(contrast.seeds) for contrast in contrasts(runs)} == {2}
    judged = [contrast for claim in judge(runs) for contrast in claim.contrasts]
    assert judged and {len(contrast.pairs) for contrast in judged} == {2}

    arguments = ["compare", "tiny", "--json", "--runs", str(tmp_path / "runs")]
    compared = json.loads(CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout)
    assert {contrast["n"] for contrast in compared["contrasts"]} == {2}
    assert not any(key in json.dumps(compared) for key in earlier)
    arguments = ["figures", "--check", "--json", "--runs", str(tmp_path / "runs"), "--out", str(out)]
    checked = json.loads(CliRunner().invoke(cli, arguments).stdout)
    assert (checked["stale"], checked["missing"]) == ([], {})


def test_runs_that_are_asked_for_again_are_shown_again(tmp_path):
    first = measure(tmp_path, ask(tmp_path, 12), nll=7.0)
    measure(tmp_path, ask(tmp_path, 48), nll=3.0)
    ask(tmp_path, 12)
    assert {run.run_key for run in load_records(tmp_path / "runs", "tiny")} == set(first)
