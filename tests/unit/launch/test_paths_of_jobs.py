"""Where jobs can be started from, and which of a user's variables reach them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli.common import same_runs
from harness.doctor import cluster
from harness.errors import LaunchError
from harness.launch import planning, submit
from harness.launch.on_slurm import _unset_variables
from harness.launch.processes import unusable_path
from harness.study.expand import load_study


@pytest.mark.parametrize("name", ["a b", "100%20x", "q?x#y", "[a]*", "x\\j", "ünïcode", 'it\'s "q"', "-rf", "a\nb"])
def test_workers_of_this_machine_start_in_a_folder_of_any_name(name):
    assert unusable_path(Path("/scratch") / name, "local") == ""


@pytest.mark.parametrize("name", ["a:b", "%j", "x%ty", "%A", "%a"])
@pytest.mark.parametrize("on", ["local", "slurm"])
def test_a_name_that_stands_for_something_else_is_refused_before_anything_is_written(tmp_path, tiny_study, name, on):
    tiny_study("")
    study, runs = load_study(tmp_path / "tiny.yaml"), tmp_path / name / "runs"
    with pytest.raises(LaunchError, match=r"jobs cannot be started from .*Choose another folder by --runs"):
        submit.submit(planning.plan(study, runs), cluster=on, sync=False)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
    [finding] = cluster.check_path(runs, on)
    assert finding.level == "problem"
    assert repr(str(runs)) in finding.message


@pytest.mark.parametrize("name", ["100%20x", "50%", "x\\j", "a\nb", "a\rb"])
def test_on_slurm_what_its_file_names_and_scripts_would_take_for_something_else_is_refused(name):
    assert "SLURM" in unusable_path(Path("/scratch") / name, "slurm") or "batch script" in unusable_path(
        Path("/scratch") / name, "slurm"
    )


@pytest.mark.parametrize(
    "variable",
    ["SBATCH_EXPORT", "SLURM_EXPORT_ENV", "SBATCH_WAIT", "SBATCH_ARRAY_INX", "SBATCH_CLUSTERS", "SBATCH_GET_USER_ENV"],
)
def test_a_users_default_that_would_change_what_a_job_is_does_not_reach_it(monkeypatch, variable):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv(variable, "NONE")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    assert _unset_variables([]) == {variable: None}


def test_a_debugged_run_imports_no_frozen_code_but_has_submitits_file_names():
    assert unusable_path(Path("/scratch/a:b"), "debug") == ""
    assert unusable_path(Path("/scratch/%j"), "debug")


def test_a_suggested_command_can_be_pasted_into_a_shell():
    assert same_runs(Path("a b/$x")) == " --runs 'a b/$x'"
