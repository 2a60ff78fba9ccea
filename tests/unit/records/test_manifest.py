"""What a study asks for: the manifest, and what remains of runs that it no longer asks for."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.analysis.runs import load_records, load_runs
from harness.cli import cli
from harness.cli.common import studies_or_runs
from harness.errors import LaunchError
from harness.job.request import RunRequest
from harness.launch import manage, planning
from harness.launch.submit import submit
from harness.records import archive
from harness.records.directory import RunDirectory
from harness.records.manifest import Manifests, ask_for, join, read_manifest
from harness.records.status import Status
from harness.study.expand import load_study
from harness.study.model import Study
from harness.testing import write_finished_run

NLL = "evaluate: [{nll: {num_images: 16}}]\n"


@pytest.fixture
def ask(tmp_path: Path, tiny_study: Callable[..., list]) -> Callable[..., Study]:
    """Return a function that submits the tiny study with extra lines of YAML; its jobs are not run."""

    def submit_study(extra: str = "", *sets: str, file: str = "tiny.yaml") -> Study:
        tiny_study(extra)
        path = tmp_path / "tiny.yaml"
        path = path.rename(tmp_path / file) if file != path.name else path
        study = load_study(path, sets=sets)
        submit(planning.plan(study, tmp_path / "runs"), cluster="debug", sync=False)
        return study

    return submit_study


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    return result.stdout if "--json" in arguments else result.output


def keys(study: Study) -> list[str]:
    return [run.run_key for run in study.runs]


# ------------------------------------------------------------------------------------------------------------- the file


def test_the_generation_counts_changes_and_a_repeated_submission_is_none(tmp_path, ask):
    runs = tmp_path / "runs"
    first = ask("replicates: 2\n")
    manifest = read_manifest(runs, "tiny")
    assert (manifest.generation, list(manifest.runs)) == (1, keys(first))
    text = (runs / ".studies" / "tiny" / "manifest.json").read_text()
    ask("replicates: 2\n")
    assert (runs / ".studies" / "tiny" / "manifest.json").read_text() == text
    changed = ask("replicates: 3\n")
    manifest = read_manifest(runs, "tiny")
    assert (manifest.generation, list(manifest.runs)) == (2, keys(changed))
    ask("replicates: 2\n")
    assert read_manifest(runs, "tiny").generation == 3


def test_another_evaluation_is_another_generation_and_the_protocol_is_stored_once(tmp_path, ask):
    ask(f"replicates: 3\n{NLL}")
    study = ask(f"replicates: 3\n{NLL.replace('16', '17')}")
    stored = json.loads((tmp_path / "runs" / ".studies" / "tiny" / "manifest.json").read_text())
    [evaluation] = study.runs[0].evaluations
    assert stored["generation"] == 2
    assert stored["evaluations"] == {evaluation.key: evaluation.model_dump(mode="json")}
    assert [run["evaluations"] for run in stored["runs"].values()] == [[evaluation.key]] * 3


@pytest.mark.parametrize("damage", ["", "[]", '{"format": 1}', '{"format": 2}', "null"])
def test_a_damaged_manifest_is_named_and_ends_no_command(tmp_path, ask, caplog, damage):
    study = ask("replicates: 2\n")
    path = tmp_path / "runs" / ".studies" / "tiny" / "manifest.json"
    path.write_text(damage)
    with caplog.at_level(logging.WARNING):
        assert [directory.key for directory in Manifests(tmp_path / "runs").runs("tiny")] == sorted(keys(study))
    assert str(path) in caplog.text and "submitting the study writes it anew" in caplog.text
    ask("replicates: 1\n")
    assert len(Manifests(tmp_path / "runs").runs("tiny")) == 1


def test_a_name_in_a_manifest_cannot_lead_out_of_the_folder_of_runs(tmp_path, ask, caplog):
    ask()
    path = tmp_path / "runs" / ".studies" / "tiny" / "manifest.json"
    stored = json.loads(path.read_text())
    stored["runs"]["../elsewhere"] = {"arm": "a", "replicate": 0, "evaluations": []}
    path.write_text(json.dumps(stored))
    assert read_manifest(tmp_path / "runs", "tiny") is None


def test_a_folder_without_manifests_shows_every_member_as_before(tmp_path, tiny_study):
    for extra in ("replicates: 2\n", "arms: {other: {optim.lr: 2.0e-3}}\n"):
        for run in tiny_study(extra):
            write_finished_run(run, tmp_path / "runs")
    assert len(load_records(tmp_path / "runs", "tiny")) == 3
    assert Manifests(tmp_path / "runs").earlier_runs("tiny") == []


# ----------------------------------------------------------------------------------------------- kills and concurrency


def test_a_submission_that_is_killed_between_its_files_leaves_what_the_study_asks_for(tmp_path, ask, monkeypatch):
    before = ask(f"arms: {{one: {{}}, two: {{optim.lr: 2.0e-3}}}}\n{NLL}")
    for run in before.runs:
        write_finished_run(run, tmp_path / "runs")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "register", killed)
        with pytest.raises(KeyboardInterrupt):
            ask(f"arms: {{renamed: {{}}, three: {{optim.lr: 3.0e-3}}}}\n{NLL.replace('16', '17')}")
    [run] = load_records(tmp_path / "runs", "tiny")
    assert (run.arm, run.run_key, run.measurements) == ("renamed", before.runs[0].run_key, ())
    assert "1 run of this study is no longer asked for" in invoke("status", "tiny", "--runs", tmp_path / "runs")
    after = ask(f"arms: {{renamed: {{}}, three: {{optim.lr: 3.0e-3}}}}\n{NLL.replace('16', '17')}")
    assert [run.run_key for run in load_records(tmp_path / "runs", "tiny")] == keys(after)


@pytest.mark.slow
def test_submissions_at_one_time_leave_what_one_of_them_asks_for(tmp_path, ask):
    [run] = ask().runs
    wishes = [{f"{letter * 16}": run.membership() | {"arm": letter}} for letter in "abc"]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda wish: ask_for(tmp_path / "runs", "tiny", wish), wishes))
    manifest = read_manifest(tmp_path / "runs", "tiny")
    assert manifest.generation == 4
    [(key, entry)] = manifest.runs.items()
    assert key == entry["arm"] * 16


def test_a_path_of_another_machine_ends_no_plan(tmp_path, ask):
    study = ask()
    for file in ("/" + "x" * 5000, "/nowhere/tiny.yaml", "a\0b"):
        path = tmp_path / "runs" / ".studies" / "tiny" / "manifest.json"
        stored = json.loads(path.read_text())
        path.write_text(json.dumps(stored | {"file": file}))
        assert planning.plan(study, tmp_path / "runs").other_file is None


def test_a_run_that_another_study_made_is_shown_even_before_its_membership_is_written(tmp_path, ask, tiny_study):
    [run] = ask(NLL).runs
    write_finished_run(run, tmp_path / "runs", {"nll_bpd": 2.5})
    ask_for(tmp_path / "runs", "other", {run.run_key: run.membership() | {"arm": "theirs"}})
    [record] = load_records(tmp_path / "runs", "other")
    assert (record.arm, [record.nll(measurement) for measurement in record.measurements]) == ("theirs", [2.5])
    assert [record.study for record in load_records(tmp_path / "runs")] == ["other", "tiny"]


# -------------------------------------------------------------------------------------------------------- what is shown


def test_the_results_of_the_issue_are_those_of_the_present_runs(tmp_path, ask):
    """Steps 20 -> 400 and replicates 3 -> 2 were shown as the mean of two runs of 400 steps and one of 20."""
    for run in ask(f"replicates: 3\n{NLL}", "train.steps=20").runs:
        write_finished_run(run, tmp_path / "runs", {"nll_bpd": 9999.0})
    for run in ask(f"replicates: 2\n{NLL}", "train.steps=400").runs:
        write_finished_run(run, tmp_path / "runs", {"nll_bpd": 3.0})
    frame = load_runs("tiny", runs_folder=tmp_path / "runs").runs
    assert frame["eval/nll_bpd"].tolist() == [3.0, 3.0]
    assert frame["replicate"].tolist() == [0, 1]


def test_an_evaluation_that_is_no_longer_asked_for_stays_in_the_run_but_not_in_its_table(tmp_path, ask):
    [run] = ask(NLL).runs
    directory = write_finished_run(run, tmp_path / "runs", {"nll_bpd": 9.0})
    assert "eval/nll_bpd" in load_runs("tiny", runs_folder=tmp_path / "runs").runs
    ask(NLL.replace("16", "17"))
    table = load_runs("tiny", runs_folder=tmp_path / "runs")
    assert "eval/nll_bpd" not in table.runs
    assert "eval/nll_bpd" in set(table.curves["key"])
    directory.set_status(Status("done", 12, 12, 1))
    [row] = json.loads(invoke("status", "tiny", "--runs", tmp_path / "runs", "--json"))
    assert row["nll_bpd"] is None, "of the other protocol"


def test_what_a_job_does_for_a_run_is_what_its_present_studies_ask(tmp_path, ask, tiny_study):
    [run] = ask(NLL).runs
    directory = RunDirectory(tmp_path / "runs" / run.run_key)
    directory.add_to_study("other", run.membership() | {"evaluations": []})
    ask_for(tmp_path / "runs", "other", {run.run_key: run.membership() | {"evaluations": []}})
    assert len(RunRequest.of(directory).evaluations) == 1
    ask(NLL, "train.steps=13")  # so the run is only the other study's
    assert RunRequest.of(directory).evaluations == ()
    ask_for(tmp_path / "runs", "other", {})
    assert len(RunRequest.of(directory).evaluations) == 1, "of no study any more: it ends as it was begun"


def test_plan_and_submit_say_what_is_no_longer_asked_for(tmp_path, ask):
    before = ask("replicates: 3\n")
    options = ("--runs", tmp_path / "runs")
    assert "no longer asked for" not in invoke("plan", tmp_path / "tiny.yaml", *options)
    (tmp_path / "tiny.yaml").write_text((tmp_path / "tiny.yaml").read_text().replace("replicates: 3", "replicates: 1"))
    assert "2 runs of this study are no longer asked for" in invoke("plan", tmp_path / "tiny.yaml", *options)
    planned = json.loads(invoke("plan", tmp_path / "tiny.yaml", *options, "--json"))
    assert planned["no_longer_asked_for"] == sorted(keys(before)[1:])
    assert len(Manifests(tmp_path / "runs").runs("tiny")) == 3, "a plan changes nothing"


def test_runs_that_still_wait_are_shown_apart_with_the_command_that_cancels_them(tmp_path, ask):
    before = ask("replicates: 2\n")
    waiting = RunDirectory(tmp_path / "runs" / before.runs[1].run_key)
    waiting.set_status(Status("queued", updated_seconds=0))
    ask("replicates: 1\n")
    shown = invoke("status", "tiny", "--runs", tmp_path / "runs").splitlines()
    assert sum(waiting.key in line for line in shown) == 1
    assert shown[-2].startswith("1 run of this study is no longer asked for: harness forget tiny")
    assert shown[-1].startswith(f"of them queued or running: 1; to cancel: harness cancel {waiting.key}")
    everything = invoke("status", "--runs", tmp_path / "runs")
    assert f"harness cancel {waiting.key}" in everything


@pytest.mark.slow
def test_a_study_of_which_no_run_exists_yet_has_an_empty_section_and_no_error(tmp_path, ask):
    before = ask(NLL)
    for run in before.runs:
        write_finished_run(run, tmp_path / "runs")
    ask_for(tmp_path / "runs", "tiny", {"f" * 16: before.runs[0].membership()})
    assert load_runs("tiny", runs_folder=tmp_path / "runs").runs.empty
    invoke("figures", "--runs", tmp_path / "runs", "--out", tmp_path / "figures")
    page = (tmp_path / "figures" / "index.html").read_text()
    assert "<h2>tiny</h2>" in page and "Without 1 earlier run, no longer asked for." in page
    with pytest.raises(LaunchError, match=r"study tiny has no runs in .* yet"):
        invoke("status", "tiny", "--runs", tmp_path / "runs")


def test_a_verb_that_stops_or_uploads_runs_reaches_earlier_ones_too(tmp_path, ask):
    before = ask("replicates: 2\n")
    ask("replicates: 1\n")
    assert {directory.key for directory in studies_or_runs(["tiny"], tmp_path / "runs")} == set(keys(before))
    assert "1 run of this study is no longer asked for" in invoke("list", "tiny", "--runs", tmp_path / "runs")


def test_another_file_of_the_same_name_is_said_before_it_takes_the_name_over(tmp_path, ask):
    ask("replicates: 2\n")
    text = (tmp_path / "tiny.yaml").read_text()
    (tmp_path / "copy.yaml").write_text(text.replace("replicates: 2", "replicates: 1"))
    shown = invoke("plan", tmp_path / "copy.yaml", "--runs", tmp_path / "runs")
    assert f"{tmp_path / 'tiny.yaml'} is another study named tiny" in shown
    (tmp_path / "tiny.yaml").unlink()  # moved, so it is the same study
    assert "another study" not in invoke("plan", tmp_path / "copy.yaml", "--runs", tmp_path / "runs")


def test_a_retry_changes_nothing_of_what_a_study_asks_for(tmp_path, ask):
    before = ask("replicates: 2\n", "train.steps=7")
    failed = RunDirectory(tmp_path / "runs" / load_study(tmp_path / "tiny.yaml").runs[0].run_key)
    plan = planning.plan(load_study(tmp_path / "tiny.yaml"), tmp_path / "runs")
    failed.register(plan.runs[0].run)
    failed.set_status(Status("failed", step=3))
    plan = planning.plan(load_study(tmp_path / "tiny.yaml"), tmp_path / "runs")
    chosen = manage.select_retries(plan, failed=True, killed=False)
    submit(chosen, cluster="debug", sync=False, asks=False)
    assert list(read_manifest(tmp_path / "runs", "tiny").runs) == keys(before)


# --------------------------------------------------------------------------------------------------------------- forget


def test_forget_ends_the_membership_and_removes_no_record(tmp_path, ask):
    before = ask("replicates: 3\n")
    runs = tmp_path / "runs"
    shared = RunDirectory(runs / before.runs[1].run_key)
    shared.add_to_study("other", before.runs[1].membership())
    ask("replicates: 1\n")
    files = {path for path in runs.rglob("*") if path.is_file() and ".studies" not in path.parts}
    said = invoke("forget", "tiny", "--runs", runs, "--dry-run")
    assert "2 runs would be forgotten" in said
    assert {path for path in runs.rglob("*") if path.is_file() and ".studies" not in path.parts} == files
    document = json.loads(invoke("forget", "tiny", "--runs", runs, "--json"))
    assert document == {"study": "tiny", "forgotten": sorted(keys(before)[1:]), "active": []}
    gone = files - {path for path in runs.rglob("*") if path.is_file() and ".studies" not in path.parts}
    assert gone == {RunDirectory(runs / key).study_path("tiny") for key in keys(before)[1:]}
    assert set(shared.studies()) == {"other"}
    assert "nothing to forget" in invoke("forget", "tiny", "--runs", runs)
    again = ask("replicates: 3\n")
    assert [directory.key for directory in Manifests(runs).runs("tiny")] == keys(again)


def test_forget_keeps_what_is_queued_and_refuses_a_name_that_no_study_has(tmp_path, ask):
    before = ask("replicates: 2\n")
    waiting = RunDirectory(tmp_path / "runs" / before.runs[1].run_key)
    waiting.set_status(Status("queued"))
    ask("replicates: 1\n")
    document = json.loads(invoke("forget", "tiny", "--runs", tmp_path / "runs", "--json"))
    assert document == {"study": "tiny", "forgotten": [], "active": [waiting.key]}
    with pytest.raises(LaunchError, match="no study 'tinny'"):
        invoke("forget", "tinny", "--runs", tmp_path / "runs")


# -------------------------------------------------------------------------------------------------------- other folders


def test_imported_runs_are_asked_for_where_the_study_has_a_manifest(tmp_path, ask, tiny_study):
    [run] = tiny_study(NLL, "seed=5")
    archived = write_finished_run(run, tmp_path / "theirs")
    archive.export_study("tiny", [archived], tmp_path / "tiny.tar")
    ours = ask(NLL)
    archive.import_study(tmp_path / "tiny.tar", tmp_path / "runs")
    assert list(read_manifest(tmp_path / "runs", "tiny").runs) == [*keys(ours), run.run_key]


def test_somebody_elses_incomplete_membership_does_not_join(tmp_path, ask):
    study = ask()
    join(tmp_path / "runs", "tiny", {"a" * 16: {"arm": 5, "replicate": 0, "evaluations": []}, "b" * 16: {}})
    assert list(read_manifest(tmp_path / "runs", "tiny").runs) == keys(study)


# ---------------------------------------------------------------------------------------------------------------- costs


def test_status_opens_no_more_files_of_a_run_with_a_manifest_than_without(tmp_path, ask, file_accesses):
    runs = tmp_path / "runs"
    for run in ask(f"replicates: 4\n{NLL}").runs:
        write_finished_run(run, runs).set_status(Status("done", 12, 12, 1))
    from harness.cli.status_view import _size_of, status_rows

    def opened() -> int:
        _size_of.cache_clear()
        with file_accesses() as accesses:
            rows = status_rows(Manifests(runs).runs("tiny"), "tiny")
        assert [row.nll_bpd for row in rows] == [3.0] * 4
        return sum(event == "open" and ".studies" not in str(path) for event, path, *_ in accesses)

    with_manifest = opened()
    (runs / ".studies" / "tiny" / "manifest.json").unlink()
    assert with_manifest <= opened()


def test_a_plan_opens_the_manifest_once_and_no_file_of_other_runs(tmp_path, ask, file_accesses):
    study = ask("replicates: 3\n")
    ask("replicates: 2\n")
    runs = tmp_path / "runs"
    with file_accesses() as accesses:
        planning.plan(study, runs)
    opened = [str(path) for event, path, *_ in accesses if event == "open"]
    assert sum(".studies" in path for path in opened) <= 1
    assert len(opened) <= 1 + 3
