"""`harness doctor` on this machine and on a live cluster."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from harness.cli import cli
from harness.doctor import examine, machine
from harness.launch import planning
from harness.slurm.profile import Profile
from harness.study.expand import load_study
from harness.testing import TINY_STUDY


def messages(findings, level: str) -> str:
    return "\n".join(finding.message for finding in findings if finding.level == level)


def run_cli(*arguments: str | Path):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_a_laptop_that_is_ready_is_ok_all_over(tmp_path, tiny_study, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_study()
    done = run_cli("doctor", tmp_path / "tiny.yaml", "--runs", tmp_path / "runs")
    assert done.exit_code == 0, done.output
    assert "data digits: 1442 images" in done.output
    assert re.search(r"^ok       torch \d", done.output, re.MULTILINE)
    assert done.output.splitlines()[-1].startswith("0 problems")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]  # it looked, and left nothing


def test_missing_data_and_a_runs_folder_that_cannot_be_written_are_problems_and_exit_1(
    tmp_path, tiny_study, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tiny_study(f"arms: {{m: {{data: mnist}}}}\ndata_root: {tmp_path}\n")
    done = run_cli("doctor", tmp_path / "tiny.yaml", "--runs", "/proc/runs")
    assert done.exit_code == 1
    assert "problem  runs folder /proc/runs: cannot be written" in done.output
    assert "problem  data: mnist: missing train-images" in done.output
    assert done.output.splitlines()[-1].startswith("2 problems")


def test_weights_of_inception_that_are_not_there_are_a_problem(tmp_path, tiny_study, monkeypatch):
    tiny_study("evaluate: [{fidelity: {num_samples: 16, num_steps: 5}}]\n")
    plan = planning.plan(load_study(tmp_path / "tiny.yaml"), tmp_path / "runs")
    assert messages(machine.check_extractors(plan), "ok") == "extractors without weights from elsewhere: classifier"
    monkeypatch.setenv("HARNESS_INCEPTION_WEIGHTS", str(tmp_path / "none.pth"))
    assert "none.pth: there is no such file" in messages(machine.check_extractors(plan), "problem")


def test_the_weights_of_inception_are_opened(tmp_path, monkeypatch):
    evaluate = "evaluate: [{fidelity: {num_samples: 16, num_steps: 5, extractor: inception}}]\n"
    (tmp_path / "tiny.yaml").write_text(TINY_STUDY + evaluate)
    plan = planning.plan(load_study(tmp_path / "tiny.yaml", inception=True), tmp_path / "runs")
    monkeypatch.delenv("HARNESS_INCEPTION_WEIGHTS", raising=False)
    assert "set HARNESS_INCEPTION_WEIGHTS" in messages(machine.check_extractors(plan), "problem")
    path = tmp_path / "weights.pth"
    monkeypatch.setenv("HARNESS_INCEPTION_WEIGHTS", str(path))
    path.write_bytes(b"<!DOCTYPE html><title>404</title>")
    assert "not a file of weights: a web page" in messages(machine.check_extractors(plan), "problem")
    torch.save({"fc.weight": torch.ones(2)}, path)
    assert "the weights of another network" in messages(machine.check_extractors(plan), "problem")


def test_the_account_of_an_image_folder_is_a_warning_where_files_were_ignored(tmp_path, tiny_study, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data" / "pictures"
    folder.mkdir(parents=True)
    for number in range(30):
        Image.new("L", (8, 8), number).save(folder / f"a_{number}.png")
    sets = ["data={name: image_folder, path: pictures, image_size: 8}", f"data_root={tmp_path / 'data'}"]
    tiny_study()
    plan = planning.plan(load_study(tmp_path / "tiny.yaml", sets=sets), tmp_path / "runs")
    findings = list(machine.check_data(plan))
    assert "data image_folder: 30 files seen, 30 used, 0 ignored; " in messages(findings, "ok")
    (folder / "list.txt").touch()
    findings = list(machine.check_data(plan))
    assert "31 files seen, 30 used, 1 ignored (1 .txt); " in messages(findings, "warning")
    assert "1 class: 30 a; digest " in messages(findings, "warning")


@pytest.mark.parametrize(
    ("cache", "words"), [("/proc/x", "the cache cannot be written"), ("~no-such-user/x", "HARNESS_CACHE")]
)
def test_a_cache_that_cannot_be_written_is_a_problem(monkeypatch, cache, words):
    monkeypatch.setenv("HARNESS_CACHE", cache)
    assert words in messages(machine.check_cache(), "problem")


def test_without_slurm_a_profile_cannot_be_examined_and_the_message_says_where(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = list(examine.examine_cluster(Profile(), None, tmp_path, timeout_seconds=None))
    assert "run this on a login node or load the SLURM module" in messages(findings, "problem")


@pytest.fixture
def profile(tmp_path):
    """Return a function that writes a profile of the one-machine cluster with extra lines."""

    def write(extra: str = "") -> Path:
        path = tmp_path / "dev.yaml"
        path.write_text(f"memory_gib: 1\ntime_minutes: 20\n{extra}")
        return path

    return write


@pytest.mark.slow
@pytest.mark.slurm
def test_a_live_cluster_is_ok_and_its_probe_job_answers(tmp_path, profile, slurm, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_cli("doctor", "--profile", profile("partition: main\n"), "--runs", tmp_path / "runs")
    assert done.exit_code == 0, done.output
    assert "probe job: answered from" in done.output
    assert not [line for line in done.output.splitlines() if line.startswith(("warning", "problem"))], done.output


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("partition: none\n", "choices: main"),
        ("partition: cancel\n", "preempt_mode: cancel"),
        ("partition: main\nmax_array_size: 5000\n", "over the cluster's 1001"),
        ("partition: main\nconstraint: a100\n", "SLURM would not accept such a job"),
        ("partition: main\ncompute_nodes_reach_server: true\n", "profile and store do not match"),
    ],
)
def test_what_is_wrong_with_a_profile_is_found_on_a_live_cluster(tmp_path, profile, slurm, monkeypatch, extra, words):
    monkeypatch.chdir(tmp_path)
    done = run_cli("doctor", "--profile", profile(extra), "--no-job")
    assert done.exit_code == 1
    assert any(line.startswith("problem") and words in line for line in done.output.splitlines()), done.output


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_that_waits_too_long_is_a_warning_and_one_that_fails_is_a_problem_with_its_last_words(
    tmp_path, profile, slurm, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    done = run_cli("doctor", "--profile", profile("setup: [sleep 30]\n"), "--timeout", "1")
    assert done.exit_code == 0, done.output
    assert re.search(r"^warning  probe job \d+ was \w+( .*)? after 1 s and was cancelled", done.output, re.MULTILINE)
    done = run_cli("doctor", "--profile", profile("modules: [cuda/99]\n"))
    assert done.exit_code == 1
    assert re.search(r"^warning  `module load cuda/99` fails on this machine \(.*module", done.output, re.MULTILINE)
    ended = r"^problem  probe job \d+ ended in the profile's modules: and setup:.*: .*module load cuda/99 failed$"
    assert re.search(ended, done.output, re.MULTILINE)
