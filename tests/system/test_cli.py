"""The command line from outside: what it prints, what it loads, how it ends."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from harness.cli import cli
from harness.errors import LaunchError, SpecError
from harness.records.directory import RunDirectory
from harness.records.status import Status
from harness.spec.base import SCHEMA_VERSION
from harness.text import harness_command

EVALUATE = "evaluate: [{nll: {num_images: 16, evaluations_per_image: 4}}]\n"
HEAVY = ("torch", "mlflow", "optuna", "submitit", "rich")


def harness(*arguments: str | Path, cwd: Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        **options,
    )


def environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("HARNESS_RUNS", "MLFLOW_TRACKING_URI")
    }
    return inherited | {"PYTHONPATH": root, "PYTHONUNBUFFERED": "1"}


def invoke(*arguments: str | Path):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def imports_of(*arguments: str, cwd: Path) -> set[str]:
    """Return which heavy packages a command has loaded when it ends."""
    program = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr))\n"
        "from harness.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


@pytest.fixture
def runs(tmp_path: Path, tiny_study: Callable[..., list]) -> list[RunDirectory]:
    """Write the tiny study with two arms, both begun and not at work, and return its runs."""
    found = []
    for run in tiny_study("arms: {slow: {}, fast: {optim.lr: 2.0e-3}}\n"):
        directory = RunDirectory(tmp_path / "runs" / run.run_key)
        directory.register(run)
        with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
            journal.metrics(12, {"eval/nll_bpd": 3.25})
            journal.event("failed", reason="the disk is full")
        directory.set_status(Status("failed", 7, 12, 1, "the disk is full", loss=0.5, cause="error"))
        found.append(directory)
    return found


# ---------------------------------------------------------------------------------------------------------------- plan


def test_help_loads_neither_rich_nor_pydantic(tmp_path):
    assert imports_of("--help", cwd=tmp_path) == set()
    program = "import sys; import harness.cli; print('pydantic' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_plan_loads_nothing_heavy(tmp_path, tiny_study):
    tiny_study()
    assert imports_of("plan", "tiny.yaml", "--json", cwd=tmp_path) == set()
    assert imports_of("plan", "tiny.yaml", cwd=tmp_path) == set()


def test_status_loads_nothing_heavy(tmp_path, runs):
    assert imports_of("status", cwd=tmp_path) == set()


def test_plan_as_json_answers_for_a_thousand_runs_in_less_than_a_second(tmp_path, tiny_study):
    tiny_study("grid: {optim.lr: [1.0e-3, 2.0e-3]}\nreplicates: 500\n")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = harness("plan", "tiny.yaml", "--json", cwd=tmp_path, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len(json.loads(done.stdout)["runs"]) == 1000
    # The processor's time, interpreter start included, since the tests may share the machine.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_plan_shows_arms_and_runs_warnings_and_cost(tmp_path, tiny_study, runs):
    tiny_study("arms: {slow: {}, fast: {optim.lr: 2.0e-3}}\nreplicates: 30\n")
    shown = invoke("plan", tmp_path / "tiny.yaml", "--runs", tmp_path / "runs", "--set", "train.ema_rate=0.99").output
    assert shown.startswith("study tiny: 60 runs, 60 new\n")
    assert re.search(r"^fast +30 +30 new +\? +\? +\?$", shown, re.MULTILINE)
    assert "optim.lr=0.002 train.ema_rate=0.99" in shown
    assert "... and 20 more (--all shows them)" in shown
    assert "warning: slow, fast: train.ema_rate 0.99 over 12 steps keeps 89%" in shown
    assert "training left: an unknown time for 60 runs (no similar run has been measured yet)" in shown
    everything = invoke("plan", tmp_path / "tiny.yaml", "--runs", tmp_path / "runs", "--all").output
    assert "1 failed" in everything
    assert "more (--all" not in everything


def test_the_folder_of_the_runs_comes_from_the_environment(tmp_path, tiny_study, monkeypatch):
    tiny_study()
    monkeypatch.setenv("HARNESS_RUNS", str(tmp_path / "elsewhere"))
    planned = json.loads(invoke("plan", tmp_path / "tiny.yaml", "--json").output)
    assert planned["runs"][0]["run_dir"].startswith(str(tmp_path / "elsewhere"))


def test_a_mistake_is_one_message_with_exit_code_2_and_no_traceback(tmp_path, tiny_study):
    tiny_study()
    with (tmp_path / "tiny.yaml").open("a") as file:
        file.write("optm: {lr: 1}\n")
    done = harness("plan", "tiny.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: tiny.yaml:10: optm: unknown key; did you mean 'optim'?\n"
    assert done.stdout == ""


def test_a_study_that_is_not_there_is_named(tmp_path):
    done = harness("plan", "none.yaml", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: none.yaml: cannot be read: No such file or directory\n")


def test_a_reader_that_goes_away_is_no_error(tmp_path, tiny_study):
    tiny_study("replicates: 1000\n")
    command = f"{sys.executable} -m harness.cli plan tiny.yaml --all | head -1"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "study tiny: 1000 runs, 1000 new\n"
    assert done.stderr == ""


def test_a_file_that_is_named_as_inceptions_weights_must_be_one_before_anything_is_planned(
    tmp_path, tiny_study, monkeypatch
):
    tiny_study()
    study = tmp_path / "tiny.yaml"
    study.write_text(
        study.read_text() + "evaluate: [{fidelity: {num_samples: 16, num_steps: 30, extractor: inception}}]\n"
    )
    monkeypatch.delenv("HARNESS_INCEPTION_WEIGHTS", raising=False)
    refused = invoke("plan", study)
    assert isinstance(refused.exception, SpecError)
    assert "set HARNESS_INCEPTION_WEIGHTS to the file of its weights" in str(refused.exception)
    path = tmp_path / "weights.pth"
    monkeypatch.setenv("HARNESS_INCEPTION_WEIGHTS", str(path))
    assert f"HARNESS_INCEPTION_WEIGHTS: {path}: there is no such file" in str(invoke("plan", study).exception)
    path.write_bytes(b"<!DOCTYPE html><title>404: Not found</title>")
    assert "not a file of weights: a web page" in str(invoke("plan", study).exception)
    torch.save({"fc.weight": torch.ones(2)}, path)
    assert invoke("plan", study).exit_code == 0
    refused = invoke("submit", study, "--runs", tmp_path / "runs", "--no-sync", "--cluster", "debug")
    assert "the weights of another network" in str(refused.exception)
    assert not (tmp_path / "runs").exists()  # nothing was begun


# -------------------------------------------------------------------------------------------------------------- submit


def test_a_profile_without_slurm_is_refused(tmp_path, tiny_study):
    tiny_study()
    refused = invoke("submit", tmp_path / "tiny.yaml", "--profile", "x.yaml", "--runs", tmp_path / "runs").exception
    assert isinstance(refused, LaunchError)
    assert str(refused) == "--profile describes a SLURM cluster; add --cluster slurm"


def test_an_unknown_cluster_is_refused_with_the_choices(tmp_path, tiny_study):
    tiny_study()
    done = harness("submit", "tiny.yaml", "--cluster", "cloud", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: no cluster 'cloud'; the choices are local, debug, slurm\n"


# ---------------------------------------------------------------------------------------------- status, why, logs, run


def test_status_says_where_each_run_stands(tmp_path, runs):
    shown = invoke("status", "tiny", "--runs", tmp_path / "runs").output
    assert re.search(
        rf"^{runs[0].key} +slow r0 +failed +7/12 +- +- +0.5000 +3.2500 +- +the disk is full$", shown, re.MULTILINE
    )
    assert shown.endswith("2 runs: 2 failed\n")
    by_file = invoke("status", tmp_path / "tiny.yaml", "--runs", tmp_path / "runs").output
    assert set(by_file.splitlines()) == set(shown.splitlines())


def test_status_as_json_has_every_field(tmp_path, runs):
    [first, _] = json.loads(invoke("status", tmp_path / "tiny.yaml", "--json", "--runs", tmp_path / "runs").output)
    assert first == {
        "run_key": runs[0].key,
        "studies": ["tiny"],
        "arm": "slow",
        "replicate": 0,
        "state": "failed",
        "step": 7,
        "num_steps": 12,
        "steps_per_second": None,
        "eta_seconds": None,
        "loss": 0.5,
        "nll_bpd": 3.25,
        "reason": "the disk is full",
        "run_dir": str(runs[0].path),
        "fid": None,
        "job": "",
        "node": "",
        "cause": "error",
        "stopped_by": "",
        "evaluation": "",
        "evaluation_done": None,
        "evaluation_total": None,
        "asked_for": True,
        "unanswered": False,
        "collapse": [],
    }


def test_watching_ends_when_nothing_is_left_to_run(tmp_path, runs):
    assert invoke("status", "--watch", "--runs", tmp_path / "runs").exit_code == 0


def test_status_without_runs_says_so(tmp_path):
    assert invoke("status", "--runs", tmp_path / "runs").output == f"no runs in {tmp_path / 'runs'}\n"


def test_an_unknown_study_is_refused_with_the_choices(tmp_path, runs):
    refused = invoke("status", "tny", "--runs", tmp_path / "runs").exception
    assert isinstance(refused, LaunchError)
    assert str(refused) == f"no study 'tny' in {tmp_path / 'runs'}; choices: tiny"


def test_a_study_that_was_never_submitted_says_how(tmp_path, tiny_study):
    tiny_study()
    refused = invoke("status", tmp_path / "tiny.yaml", "--runs", tmp_path / "runs").exception
    assert str(refused) == (
        f"study tiny has no runs in {tmp_path / 'runs'} yet: "
        f"harness submit {tmp_path / 'tiny.yaml'} --runs {tmp_path / 'runs'}"
    )


def test_why_tells_the_events_and_the_reason(tmp_path, runs):
    shown = invoke("why", runs[1].key[:6], "--runs", tmp_path / "runs").output.splitlines()
    assert shown[0] == f"{runs[1].key} fast r0 of tiny"
    assert re.search(r"started on \S+ \(attempt 1, process \d+\)$", shown[1])
    assert shown[2].endswith("failed  reason=the disk is full")
    assert shown[3] == "failed at step 7 of 12: the disk is full"


@pytest.mark.parametrize("verb", ["why", "logs", "sample"])
def test_a_run_that_is_not_clear_is_refused_with_the_choices(tmp_path, runs, verb):
    folder = tmp_path / "runs"
    labels = sorted(f"{one.key} ({arm} r0)" for one, arm in zip(runs, ("slow", "fast"), strict=True))
    choices = ", ".join(labels)

    def refusal(prefix: str) -> str:
        error = invoke(verb, prefix, "--runs", folder).exception
        assert isinstance(error, LaunchError)
        return str(error)

    assert refusal("ab") == "'ab' is too short: give at least 4 digits of the run's key"
    assert refusal("zzzz") == f"no run 'zzzz' in {folder}; choices: {choices}"
    twin = folder / (runs[0].key[:8] + "0" * 8)
    RunDirectory(twin).create(runs[0].spec(), SCHEMA_VERSION)
    assert re.fullmatch(rf"'{twin.name[:8]}' matches 2 runs; choices: {twin.name[:8]}.*", refusal(twin.name[:8]))


def test_logs_of_a_run_that_no_job_took_says_why(tmp_path, runs):
    refused = invoke("logs", runs[0].key, "--runs", tmp_path / "runs").exception
    assert str(refused).startswith(f"run {runs[0].key} has no log: no job of `harness submit` has started it")


def test_following_a_log_is_a_tail_that_goes_over_to_the_next_attempts_and_ends_with_the_run(tmp_path, runs):
    runs[0].set_status(Status("interrupted"))
    first, second = runs[0].log_path(1), runs[0].log_path(2)
    first.parent.mkdir()
    first.write_text("one\ntw")
    command = [sys.executable, "-m", "harness.cli", "logs", runs[0].key, "-f"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True) as follower:
        try:
            assert follower.stdout.readline() == "one\n"
            with first.open("a") as log:
                log.write("o\n== run of nobody\n")
            assert [follower.stdout.readline() for _ in range(2)] == ["two\n", "== run of nobody\n"]
            with first.open("a") as log:
                log.write("the last\n")
            second.write_text("three\n")
            assert [follower.stdout.readline() for _ in range(2)] == ["the last\n", "three\n"]
            runs[0].set_status(Status("done"))
            assert (follower.wait(240), follower.stdout.read()) == (0, "")
        finally:
            follower.kill()


# -------------------------------------------------------------------------------------------------------- sample, sync


@pytest.mark.slow
def test_sampling_refuses_an_unknown_sampler_and_a_run_without_weights(tmp_path, runs):
    folder = tmp_path / "runs"
    refused = invoke("sample", runs[0].key, "--sampler", "ddmi", "--runs", folder).exception
    assert str(refused) == "--sampler ddmi: unknown; did you mean 'ddim'?"
    refused = invoke("sample", runs[0].key, "--num-steps", "31", "--runs", folder).exception
    assert str(refused).startswith("--num-steps 31: cannot keep exactly 31 of 30 steps")
    refused = invoke("sample", runs[0].key, "--runs", folder).exception
    shows = harness_command("status", runs_folder=folder)
    assert str(refused) == f"run {runs[0].key} has no checkpoint yet; `{shows}` shows its progress"


# --------------------------------------------------------------------------------------------------------------- clean


def test_clean_removes_nothing_unasked(tmp_path, runs):
    folder = runs[0].path / "checkpoints"
    folder.mkdir()
    for step in (6, 12):
        name = {6: "0" * 64, 12: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}[step]
        (folder / f"step-{step:08d}-{name}.pt").write_bytes(b"x" * 2048 if step == 6 else b"")
    runs[0].set_status(Status("done", 12, 12, 1))
    shown = invoke("clean", "--runs", tmp_path / "runs").output
    assert re.search(r"^checkpoints +2.0 KiB$", shown, re.MULTILINE)
    assert "safe to remove: 1 file, 2.0 KiB: checkpoint before the last of a done run" in shown
    assert "nothing removed; --yes removes them" in shown
    assert len(list(folder.iterdir())) == 2
    assert "freed 2.0 KiB" in invoke("clean", "tiny", "--yes", "--runs", tmp_path / "runs").output
    assert [path.name[:13] for path in folder.iterdir()] == ["step-00000012"]
    assert "nothing is safe to remove" in invoke("clean", "--runs", tmp_path / "runs").output


# ---------------------------------------------------------------------------------------------------------- end to end


def submit(cwd: Path, *arguments: str) -> subprocess.Popen:
    """Start a submission in a session of its own, as a terminal would."""
    command = [sys.executable, "-m", "harness.cli", "submit", "tiny.yaml", *arguments]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # As a terminal starts it, also where the tests themselves run in the background and SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def writer_at_step(run: RunDirectory, step: int, attempt: int = 1) -> int:
    """Wait until a run has trained so far, some of it in this attempt, and return the process that works on it."""
    for _ in range(4800):
        owner, began = run.writer(), run.events("started")
        if owner and len(began) == attempt:
            trained = max(step, began[-1].fields["resumed_from_step"] + 1)
            if any(row.train_step >= trained for row in run.latest().values()):
                return owner["pid"]
        time.sleep(0.05)
    raise AssertionError(f"run {run.key} never came to step {step} of attempt {attempt}")


def final_state(run: RunDirectory) -> dict:
    """Return what the last checkpoint holds, tensors as bytes."""
    import torch

    def plain(value):
        if isinstance(value, torch.Tensor):
            return value.numpy().tobytes()
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        return [plain(one) for one in value] if isinstance(value, (list, tuple)) else value

    [newest] = (run.path / "checkpoints").glob("step-00000120-*.pt")
    return plain(torch.load(newest, weights_only=True))


@pytest.mark.slow
def test_a_submission_killed_and_stopped_and_repeated_ends_in_the_bits_of_an_unbroken_one(tmp_path, tiny_study):
    """SIGKILL a worker: submit notices, says so and ends with 1. Ctrl-C: workers stop gently, 130. Again: all done."""
    tiny_study("arms: {slow: {}, fast: {optim.lr: 2.0e-3}}\n" + EVALUATE)
    path = tmp_path / "tiny.yaml"
    long = path.read_text().replace("steps: 12", "steps: 120")
    path.write_text(long.replace("log_every: 5", "log_every: 5, checkpoint_every_seconds: 0.05"))
    keys = [run["run_key"] for run in json.loads(invoke("plan", path, "--json").output)["runs"]]
    runs = [RunDirectory(tmp_path / "runs" / key) for key in keys]

    first = submit(tmp_path, "--jobs", "1", "--no-sync")
    os.kill(writer_at_step(runs[0], 10), signal.SIGKILL)
    said, _ = first.communicate(timeout=240)
    assert first.returncode == 1, said
    assert f"{keys[0]} slow r0 interrupted: killed: its process is gone" in said
    assert "a worker was killed (out of memory?); its log: " in said
    assert "to resume: harness submit tiny.yaml" in said

    second = submit(tmp_path, "--jobs", "1", "--no-sync")
    writer_at_step(runs[0], 30, attempt=2)
    os.killpg(second.pid, signal.SIGINT)
    said, _ = second.communicate(timeout=240)
    assert second.returncode == 130, said
    assert "Stopping after this step and saving a checkpoint. Press Ctrl-C again to quit at once." in said
    assert runs[0].status().state == "interrupted"
    assert runs[0].events("interrupted"), "it was not stopped gently"

    third = harness("submit", "tiny.yaml", "--jobs", "2", cwd=tmp_path)
    assert third.returncode == 0, third.stdout + third.stderr
    assert "2 of 2 runs done" in third.stdout
    assert [run.status().state for run in runs] == ["done", "done"]
    assert len(runs[0].attempts()) == 3

    fourth = harness("submit", "tiny.yaml", cwd=tmp_path)
    assert fourth.returncode == 0
    assert fourth.stdout == "skipped: 2 done\nnothing to submit\n"

    unbroken = harness("submit", "tiny.yaml", "--runs", "unbroken", "--jobs", "1", "--no-sync", cwd=tmp_path)
    assert unbroken.returncode == 0
    for run in runs:
        assert final_state(run) == final_state(RunDirectory(tmp_path / "unbroken" / run.key))

    checked = harness("sync", "tiny", "--check", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    picture = harness("sample", keys[0][:5], "--num-samples", "4", cwd=tmp_path, check=True).stdout.strip()
    assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    log = harness("logs", keys[1], cwd=tmp_path, check=True).stdout
    assert f"{keys[1]} is done" in log
    assert keys[0] not in log  # though one worker had both
