"""`harness claims`: the card on a terminal and as JSON."""

import json

import pytest
from click.testing import CliRunner

from harness.analysis.claims.papers_claims import CLAIMS
from harness.cli import cli

SCHEDULES = "grid: {diffusion.schedule: [linear, cosine]}\nreplicates: 4\nevaluate: [{nll: {}}]\n"


@pytest.fixture
def folder(study_runs):
    jitter = (0, 0.001, -0.001, 0.002)

    def numbers(run):
        is_cosine = run.spec.diffusion.schedule.name == "cosine"
        return {"nll": 3.2 + run.replicate - is_cosine * (0.1 + jitter[run.replicate])}

    return study_runs(SCHEDULES, numbers)


def printed(*arguments):
    result = CliRunner().invoke(cli, ["claims", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_card_has_what_the_runs_can_judge_and_the_studies_of_the_rest(folder):
    lines = printed("--runs", folder).splitlines()
    assert lines[1].startswith(
        "reproduced  The cosine schedule reaches a better NLL than the linear one  IDDPM, table 2"
    )
    assert "NLL, simple: cosine 4.599, linear 4.7; difference -0.101 [" in lines[1]
    assert lines[3] == f"1 reproduced, {len(CLAIMS) - 1} not run."
    assert "  harness submit experiments/claims/siddm_digits.yaml" in lines
    every = printed("--runs", folder, "--all")
    assert all(claim.statement in every for claim in CLAIMS)


def test_the_card_as_json_has_every_claim_with_its_study_and_pairs(folder):
    document = json.loads(printed("--runs", folder, "--json"))
    assert [claim["id"] for claim in document["claims"]] == [claim.id for claim in CLAIMS]
    first, *others = document["claims"]
    assert (first["verdict"], first["study"]) == ("reproduced", "experiments/claims/iddpm_digits.yaml")
    [contrast] = first["contrasts"]
    assert (contrast["study"], contrast["ours"], contrast["other"]) == ("small", "cosine", "linear")
    assert len(contrast["pairs"]) == 4 and contrast["pairs"][0] == pytest.approx([3.1, 3.2])
    assert {claim["verdict"] for claim in others} == {"not run"}


def test_a_folder_without_runs_judges_nothing(tmp_path):
    assert f"{len(CLAIMS)} not run." in printed("--runs", tmp_path)


def test_a_run_with_odd_records_is_named_and_the_others_are_judged(folder, capsys):
    run = next(path for path in sorted(folder.glob("[!.]*")))
    [evaluation] = (run / "evaluations").glob("*.json")
    [membership] = (run / "studies").glob("*.json")
    manifest = next((folder / ".studies").rglob("manifest.json"), None)
    for path in filter(None, (evaluation, membership, manifest)):
        path.write_text(path.read_text().replace('"split": "test"', '"spilt": "test"'))
    result = CliRunner().invoke(cli, ["claims", "--runs", str(folder)])
    assert result.exit_code == 0
    assert f"left out: {run.name}: its records are odd" in result.output
    assert "3 pairs" in result.output
