"""The command line as a newcomer meets it: help, version, the reference, study names, --json, list and figures."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from harness import __version__
from harness.cli import GROUPS, cli, reference
from harness.cli.study_files import StudyFile, find_study_file
from harness.errors import HarnessError, LaunchError
from harness.records.directory import RunDirectory
from harness.records.manifest import ask_for
from harness.records.status import Status
from harness.spec.base import SCHEMA_VERSION
from harness.testing import write_finished_run

ROOT = Path(__file__).parents[3]
VERBS = [verb for verbs in GROUPS.values() for verb in verbs]
SHORT_HELP_COLUMNS = 45


def invoke(*arguments: str | Path):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def document(*arguments: str | Path):
    """Return what a verb prints to standard output with --json."""
    result = invoke(*arguments, "--json")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return json.loads(result.stdout)


@pytest.fixture
def runs(tmp_path, tiny_study):
    """Write the tiny study with two arms, one failed and one never begun, and return its runs."""
    directories = []
    for run in tiny_study("arms: {slow: {}, fast: {optim.lr: 2.0e-3}}\n"):
        directory = RunDirectory(tmp_path / "runs" / run.run_key)
        directory.create(run.spec.model_dump(mode="json"), SCHEMA_VERSION)
        directory.add_to_study("tiny", run.membership())
        directories.append(directory)
    directories[0].set_status(Status("failed", 7, 12, 1, "the disk is full"))
    return directories


# ---------------------------------------------------------------------------------------------------------------- help


def test_help_lists_every_verb_once_under_its_heading():
    lines = CliRunner(env={"COLUMNS": "80"}).invoke(cli, ["--help"]).output.splitlines()
    headings = {line.rstrip(":"): index for index, line in enumerate(lines) if line.rstrip(":") in GROUPS}
    assert list(headings) == ["Run", "Look", "Keep", "Check"]
    for heading, verbs in GROUPS.items():
        below = lines[headings[heading] + 1 :][: len(verbs)]
        assert [line.split()[0] for line in below] == [verb.name for verb in verbs]
    assert len(VERBS) == len({verb.name for verb in VERBS}) == len(cli.commands)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_the_first_line_of_a_verbs_help_is_shown_whole(verb):
    first = verb.help.split("\n\n")[0].strip()
    assert first == verb.get_short_help_str(SHORT_HELP_COLUMNS)
    assert len(first) <= SHORT_HELP_COLUMNS and "\n" not in first


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_option_has_a_help_text(verb):
    for option in verb.params:
        if isinstance(option, click.Option):
            assert option.help, option.name


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.name != "schema"], ids=lambda verb: verb.name)
def test_every_verb_prints_json_and_documents_its_shape(verb):
    assert any("--json" in option.opts for option in verb.params)
    assert "With --json:" in verb.help


def test_the_version_is_that_of_the_package():
    assert invoke("--version").output == f"harness {__version__}\n"


def test_the_reference_is_up_to_date():
    page = (ROOT / "docs" / "cli.md").read_text()
    assert page == reference.reference(), "python -m harness.cli.reference > docs/cli.md"


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "slurm" / "README.md", *sorted(ROOT.glob("docs/**/*.md"))],
    ids=lambda page: page.name,
)
def test_the_pages_name_verbs_and_options_that_exist(page):
    commands = {verb.name: verb for verb in VERBS}
    for line in page.read_text().splitlines():
        for name, rest in re.findall(r"(?:^|`)harness ([a-z-]+)([^`#|;]*)", line):
            assert name in commands, line
            options = {option for parameter in commands[name].params for option in parameter.opts} | {"--help"}
            assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= options, line


# --------------------------------------------------------------------------------------------------------- study names


def test_a_study_is_named_by_its_file_or_by_its_name(tmp_path, tiny_study, monkeypatch):
    tiny_study()
    monkeypatch.chdir(tmp_path)
    assert document("plan", "tiny") == document("plan", "tiny.yaml")
    (tmp_path / "experiments" / "deeper").mkdir(parents=True)
    (tmp_path / "tiny.yaml").rename(tmp_path / "experiments" / "deeper" / "other.yaml")
    assert document("plan", "tiny") == document("plan", "experiments/deeper/other.yaml")


def test_a_name_that_no_file_or_several_have_is_refused_with_the_choices(tmp_path, tiny_study, monkeypatch):
    tiny_study()
    monkeypatch.chdir(tmp_path)
    error = invoke("plan", "tinny").exception
    assert isinstance(error, LaunchError)
    assert str(error) == (
        "no study 'tinny' in runs or in the YAML files of this folder and of experiments/; choices: tiny; or give its "
        "file"
    )
    (tmp_path / "copy.yaml").write_text((tmp_path / "tiny.yaml").read_text())
    error = invoke("plan", "tiny").exception
    assert str(error) == "study 'tiny' is in 2 files, give one: copy.yaml, tiny.yaml"


TAKE_A_FILE = [verb for verb in VERBS if any(isinstance(parameter.type, StudyFile) for parameter in verb.params)]


@pytest.mark.parametrize("verb", TAKE_A_FILE, ids=lambda verb: verb.name)
def test_every_verb_that_reads_a_studys_file_knows_that_of_a_name_that_was_submitted(verb, tmp_path, tiny_study):
    [run] = tiny_study("replicates: 1\n")
    runs = tmp_path / "runs"
    ask_for(runs, "tiny", {run.run_key: run.membership()}, file=tmp_path / "tiny.yaml")
    for words in (["tiny", "--runs", str(runs)], ["--runs", str(runs), "tiny"]):
        assert verb.make_context(verb.name, words).params["study"] == tmp_path / "tiny.yaml"


def test_a_file_that_a_study_was_submitted_from_counts_until_it_is_gone(tmp_path, tiny_study, monkeypatch):
    [run] = tiny_study("replicates: 1\n")
    elsewhere, here = tmp_path / "elsewhere" / "tiny.yaml", tmp_path / "here"
    elsewhere.parent.mkdir()
    here.mkdir()
    (tmp_path / "tiny.yaml").rename(elsewhere)
    ask_for(here / "runs", "tiny", {run.run_key: run.membership()}, file=elsewhere)
    monkeypatch.chdir(here)
    assert [entry["run_key"] for entry in document("plan", "tiny")["runs"]] == [run.run_key]
    (here / "experiments").mkdir()
    for copy in ("one", "two"):  # of which none was submitted
        (here / "experiments" / f"{copy}.yaml").write_text(elsewhere.read_text())
    assert find_study_file("tiny", here / "runs") == elsewhere
    text = elsewhere.read_text()
    elsewhere.unlink()
    with pytest.raises(LaunchError, match="study 'tiny' is in 2 files"):
        find_study_file("tiny", here / "runs")
    (here / "experiments" / "two.yaml").unlink()
    assert find_study_file("tiny", here / "runs") == Path("experiments/one.yaml")
    (here / "experiments" / "one.yaml").unlink()
    with pytest.raises(LaunchError, match=rf"'tiny' was submitted from {elsewhere}, which is gone; give its file"):
        find_study_file("tiny", here / "runs")
    elsewhere.write_text(text.replace("study: tiny", "study: other"))
    with pytest.raises(LaunchError, match=rf"'tiny' was submitted from {elsewhere}, which has another name now"):
        find_study_file("tiny", here / "runs")


def test_a_profile_that_is_not_there_is_refused_with_the_choices(tmp_path, tiny_study, monkeypatch):
    tiny_study()
    monkeypatch.chdir(tmp_path)
    clusters = tmp_path / "slurm" / "clusters"
    clusters.mkdir(parents=True)
    (clusters / "mine.yaml").write_text("partition: gpu\n")
    error = invoke("plan", "tiny.yaml", "--profile", "mien").exception
    assert isinstance(error, LaunchError)
    assert str(error) == "no profile 'mien' in slurm/clusters; choices: mine; or give a file"


# ---------------------------------------------------------------------------------------------------------------- list


def test_list_counts_the_states_of_each_study(tmp_path, runs):
    shown = invoke("list", "--runs", tmp_path / "runs").output
    assert re.search(r"^tiny +2 +1 new, 1 failed +\d{4}-\d\d-\d\d \d\d:\d\d$", shown, re.MULTILINE)
    [study] = document("list", "--runs", tmp_path / "runs")["studies"]
    seconds = study.pop("last_active_seconds")
    assert seconds == runs[0].status().updated_seconds
    states = {"failed": 1, "new": 1}
    assert study == {"study": "tiny", "num_runs": 2, "num_no_longer_asked_for": 0, "states": states}


@pytest.mark.parametrize("named", ["tiny", "tiny.yaml"])
def test_list_shows_the_runs_of_a_study(tmp_path, runs, named, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = document("list", named)
    assert listed["study"] == "tiny"
    by_key = {run["run_key"]: run for run in listed["runs"]}
    assert by_key[runs[0].key] == {
        "run_key": runs[0].key,
        "arm": "slow",
        "replicate": 0,
        "state": "failed",
        "step": 7,
        "num_steps": 12,
        "last_active_seconds": runs[0].status().updated_seconds,
        "run_dir": f"runs/{runs[0].key}",
    }
    assert by_key[runs[1].key]["last_active_seconds"] is None
    assert re.search(rf"^{runs[1].key} +fast r0 +new +0/12 +-$", invoke("list", named).output, re.MULTILINE)


def test_list_without_runs_says_so(tmp_path):
    assert invoke("list", "--runs", tmp_path / "runs").output == f"no studies in {tmp_path / 'runs'}\n"
    assert document("list", "--runs", tmp_path / "runs") == {"studies": []}


# ---------------------------------------------------------------------------------------------------------------- json


def test_why_logs_and_status_as_json_describe_the_same_run(tmp_path, runs):
    folder = ("--runs", tmp_path / "runs")
    explained = document("why", runs[0].key[:6], *folder)
    assert (
        explained.pop("timeline") == explained.pop("advice") == []
        and explained.pop("log") is None
        and explained.pop("log_lines") == []
    )
    assert explained in document("status", "tiny", *folder)


def test_status_warns_where_replicates_of_one_arm_ran_on_different_cards(tmp_path, tiny_study):
    for run, card in zip(tiny_study("replicates: 2\n"), ("NVIDIA A100", "NVIDIA H100"), strict=True):
        write_finished_run(run, tmp_path / "runs").write_environment(2, {"harness": "1.2.3", "device": card})
    shown = invoke("status", "tiny", "--runs", tmp_path / "runs").output
    assert "warning: base: its replicates ran on different devices: NVIDIA A100 (0), NVIDIA H100 (1); " in shown


def test_clean_as_json_removes_only_with_yes(tmp_path, runs):
    folder = runs[0].path / "checkpoints"
    folder.mkdir()
    (folder / f"step-00000006-{'0' * 64}.pt").write_bytes(b"x" * 2048)
    (folder / f"step-00000012-{hashlib.sha256(b'').hexdigest()}.pt").write_bytes(b"")
    runs[0].set_status(Status("done", 12, 12, 1))
    shown = document("clean", "tiny", "--runs", tmp_path / "runs")
    assert [item["num_bytes"] for item in shown["removable"]] == [2048] and shown["num_bytes_freed"] == 0
    assert document("clean", "tiny", "--yes", "--runs", tmp_path / "runs")["num_bytes_freed"] == 2048


def test_an_archive_is_described_by_export_and_import_alike(tmp_path, runs):
    exported = document("export", "tiny", "-o", tmp_path / "tiny.tar.gz", "--runs", tmp_path / "runs")
    assert (exported["study"], exported["num_runs"], exported["left_out"]) == ("tiny", 2, [])
    imported = document("import", exported["file"], "--runs", tmp_path / "elsewhere")
    assert imported == {
        "study": "tiny",
        "added": sorted(directory.key for directory in runs),
        "present": [],
        "num_figures": 0,
        "left_out": [],
    }


def test_cancel_and_retry_with_nothing_to_do_print_empty_documents(tmp_path, runs):
    assert document("cancel", "tiny", "--runs", tmp_path / "runs") == {"cancelled": []}
    retried = document("retry", tmp_path / "tiny.yaml", "--killed", "--runs", tmp_path / "runs")
    assert retried == {"study": "tiny", "submitted": [], "skipped": [], "notes": [], "runs": []}


def test_a_retry_without_the_set_of_the_submission_says_what_is_missing(tmp_path, tiny_study):
    asked = {run.run_key: run.membership() for run in tiny_study("replicates: 2\n", "train.steps=6")}
    ask_for(tmp_path / "runs", "tiny", asked, file=tmp_path / "tiny.yaml")
    said = invoke("retry", "tiny", "--failed", "--runs", tmp_path / "runs").output
    assert "2 runs that were submitted are not what " in said and "--set, repeat it here" in said
    repeated = invoke("retry", "tiny", "--failed", "--set", "train.steps=6", "--runs", tmp_path / "runs").output
    assert "nothing to retry" in repeated and "repeat it here" not in repeated


@pytest.mark.parametrize(("lines", "shown"), [(0, []), (2, ["two", "three"])])
def test_why_shows_as_many_lines_of_the_log_as_asked_for(tmp_path, runs, lines, shown):
    log = runs[0].path / "logs" / "attempt-0001.log"
    log.parent.mkdir()
    log.write_text("one\ntwo\nthree\n")
    told = document("why", runs[0].key, "--lines", lines, "--runs", tmp_path / "runs")
    assert told["log_lines"] == shown


def test_messages_go_to_standard_error_with_json(tmp_path, runs):
    result = invoke("cancel", "tiny", "--json", "--runs", tmp_path / "runs")
    assert result.stderr == "nothing is queued or running\n" and json.loads(result.stdout) == {"cancelled": []}


@pytest.mark.parametrize("arguments", [("status", "--watch"), ("sync", "--watch"), ("logs", "abcd", "--follow")])
def test_json_is_refused_with_what_never_ends(tmp_path, arguments):
    error = invoke(*arguments, "--json", "--runs", tmp_path / "runs").exception
    assert isinstance(error, LaunchError)
    assert str(error) == f"--json prints one document, but {arguments[-1]} keeps printing; use one of them"


# ------------------------------------------------------------------------------------------------------------- figures


@pytest.mark.slow
def test_figures_are_drawn_where_they_are_asked_for(tmp_path):
    arguments = ("figures", "--out", tmp_path / "figures", "--runs", tmp_path / "runs")
    made = ["schedules/beta_ratio", "schedules/alpha_bar", "schedules/forward_noising"]
    page = str(tmp_path / "figures" / "index.html")
    assert document(*arguments) == {"page": page, "studies": [], "made": made}
    assert (tmp_path / "figures" / "schedules" / "alpha_bar.pdf").is_file()
    assert document(*arguments) == {"page": page, "studies": [], "made": []}


def test_figures_of_a_study_without_runs_are_refused_with_the_choices(tmp_path, runs):
    error = invoke("figures", "tinny", "--out", tmp_path / "figures", "--runs", tmp_path / "runs").exception
    assert str(error) == f"no study 'tinny' in {tmp_path / 'runs'}; choices: tiny"


# ---------------------------------------------------------------------------------------------------------- runs' names


@pytest.mark.parametrize(
    ("name", "arms"),
    [
        ("tiny/slow/0", ["slow"]),
        ("tiny/slow/r0", ["slow"]),
        ("tiny/slow", ["slow"]),
        ("tiny/fast/0", ["fast"]),
    ],
)
def test_a_run_is_named_by_study_arm_and_replicate_in_every_verb(tmp_path, runs, name, arms):
    folder = tmp_path / "runs"
    [key] = [run.key for run in runs if run.studies()["tiny"]["arm"] in arms]
    assert document("why", name, "--runs", folder)["run_key"] == key
    assert [row["run_key"] for row in document("status", name, "--runs", folder)] == [key]
    assert [run["run_key"] for run in document("list", name, "--runs", folder)["runs"]] == [key]
    assert document("cancel", name, "--runs", folder) == {"cancelled": []}
    assert document("clean", name, "--runs", folder)["removable"] == []


@pytest.mark.parametrize("verb", ["why", "status", "cancel"])
@pytest.mark.parametrize("name", ["tiny/slwo/0", "tiny/slow/7", "tiny/", "tiny//", "tiny/slow/0/0", "tiny/../slow"])
def test_a_name_of_no_run_is_refused_with_those_that_there_are(tmp_path, runs, verb, name):
    refused = invoke(verb, name, "--runs", tmp_path / "runs").exception
    assert isinstance(refused, LaunchError)
    assert str(refused).endswith("choices: tiny/fast/0, tiny/slow/0")


@pytest.mark.parametrize(
    "name", ["tny/slow/0", "/", "x" * 5000, "x" * 5000 + "/a/0", "..", "\0", "tiny\n", "x" * 300 + ".yaml"]
)
@pytest.mark.parametrize("verb", ["why", "status", "cancel", "plan"])
def test_any_text_for_a_name_is_refused_in_words(tmp_path, runs, verb, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    refused = invoke(verb, name, "--runs", tmp_path / "runs")
    assert isinstance(refused.exception, HarnessError | SystemExit), refused.exception


def test_an_arm_with_a_slash_in_its_name_is_found(tmp_path, runs):
    runs[0].add_to_study("tiny", runs[0].studies()["tiny"] | {"arm": "lr/low"})
    assert document("why", "tiny/lr/low/0", "--runs", tmp_path / "runs")["run_key"] == runs[0].key


def test_several_runs_of_an_arm_are_no_single_run(tmp_path, runs):
    runs[1].add_to_study("tiny", runs[1].studies()["tiny"] | {"arm": "slow", "replicate": 1})
    refused = invoke("why", "tiny/slow", "--runs", tmp_path / "runs").exception
    assert str(refused).startswith("'tiny/slow' names 2 runs; choices: ")
    assert len(document("status", "tiny/slow", "--runs", tmp_path / "runs")) == 2
