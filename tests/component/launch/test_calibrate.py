"""What a study costs is known before it is queued: steps are timed, `plan` adds them up, and a budget is held."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.errors import LaunchError
from harness.launch import calibrate, planning
from harness.records import throughput
from harness.records.directory import RunDirectory
from harness.records.status import Status
from harness.records.throughput import Throughput
from harness.spec.base import SCHEMA_VERSION
from harness.study.expand import load_study
from harness.text import harness_command


@pytest.fixture
def plan(tmp_path, tiny_study):
    """Return a function that plans the tiny study with extra lines of YAML and `--set`s."""

    def make(extra: str = "", *sets: str) -> planning.Plan:
        tiny_study(extra)
        return planning.plan(load_study(tmp_path / "tiny.yaml", sets=sets), tmp_path / "runs")

    return make


def a_fact(planned: planning.PlannedRun, **change) -> Throughput:
    fact = Throughput(planned.run.spec.cost_key, 3600.0, device="cpu", device_name="a CPU", threads=1, kernels="fused")
    return replace(fact, **change)


def run_cli(*arguments: str | Path):
    return CliRunner().invoke(cli, [str(one) for one in arguments])


# --------------------------------------------------------------------------------------------------------------- facts


# ---------------------------------------------------------------------------------------------------------------- plan


# ---------------------------------------------------------------------------------------------------------- measuring


def test_timed_steps_are_those_of_the_real_loop_and_their_checkpoint_has_16_bytes_a_parameter(tmp_path, plan):
    run = plan("", "model.channels=32", "model.channel_mult=[1,2]").runs[0].run
    fact = calibrate.time_steps(run.spec, run.resources, None, steps=5, scratch=tmp_path / "scratch")
    assert 0 < fact.seconds_per_step < 5
    assert (fact.cost_key, fact.device, fact.num_processes, fact.precision) == (run.spec.cost_key, "cpu", 1, "fp32")
    assert fact.device_name == throughput.cpu_name() != ""

    from harness.training.checkpoints import Checkpoints

    (folder,) = (tmp_path / "scratch").glob("*/checkpoints")
    network = Checkpoints(folder).latest()[1]["method"]["network"]
    # Weights, their EMA and Adam's two moments, 4 bytes each.
    assert fact.checkpoint_bytes == pytest.approx(16 * sum(one.numel() for one in network.values()), rel=0.05)


def test_of_several_processes_one_is_timed_with_its_share_of_the_batch(tmp_path, plan):
    run = plan("", "resources.nodes=4").runs[0].run
    fact = calibrate.time_steps(run.spec, run.resources, None, steps=5, scratch=tmp_path)
    assert fact.num_processes == 4
    assert RunDirectory(tmp_path / run.run_key).spec()["train"]["batch_size"] == 16 // 4


def test_one_class_that_cannot_be_timed_does_not_keep_the_others_from_it(tmp_path, plan):
    there, missing = plan("arms: {there: {}, missing: {data: mnist}}\n", f"data_root={tmp_path}").runs
    classes = [calibrate._class_to_time(missing), calibrate._class_to_time(there)]
    (tmp_path / calibrate.REQUEST).write_text(json.dumps({"steps": 5, "threads": 1, "at_once": 1, "classes": classes}))
    calibrate.main(tmp_path)
    answers = json.loads((tmp_path / "answer.json").read_text())
    assert "mnist: missing" in answers[0]["error"]
    assert answers[1]["fact"]["cost_key"] == there.run.spec.cost_key


@pytest.mark.slow
def test_calibrate_times_each_class_once_and_plan_then_knows_the_cost(tmp_path, plan):
    evaluated = "evaluate: [{name: eval, fidelity: {num_samples: 100, num_steps: 5}}]\n"
    planned = plan(
        f"arms: {{small: {{}}, lr: {{optim.lr: 0.1}}, wide: {{model.channels: 16}}}}\nreplicates: 2\n{evaluated}"
    )
    arguments = (tmp_path / "tiny.yaml", "--runs", tmp_path / "runs")
    done = run_cli("calibrate", *arguments, "--steps", "5")
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.output.splitlines()] == [
        *("arm", "small,", "wide", "training", "checkpoints", "each")
    ]
    cost = done.output.splitlines()[3]
    assert f" on {throughput.cpu_name()}; evaluations: about " in cost and "?" not in cost
    assert not any((tmp_path / "runs" / one.run_key).exists() for one in planned.runs)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".throughput"]  # and no scratch is left
    said = run_cli("plan", *arguments).output
    assert cost in said


@pytest.mark.slow
def test_a_training_leaves_the_same_kind_of_fact_and_its_own_checkpoint_is_as_large_as_the_calibrated_one(
    tmp_path, tiny_run
):
    from harness.job.job import run_job
    from harness.spec.resources import Resources
    from harness.spec.run import RunSpec

    path = tiny_run()
    spec = RunSpec.model_validate(RunDirectory(path).spec())
    resources = Resources(device="cpu", threads=1)
    timed = calibrate.time_steps(spec, resources, None, steps=5, scratch=tmp_path / "scratch")
    assert run_job(path, sync=False, show_progress=False) == "done"
    (fact,) = throughput.load(path.parent)[spec.cost_key]
    measured = {"seconds_per_step": 0.0, "checkpoint_bytes": 0, "checkpoint_seconds": 0.0}
    assert replace(fact, **measured) == replace(timed, **measured)
    assert fact.checkpoint_seconds and timed.checkpoint_seconds
    assert fact.checkpoint_bytes == pytest.approx(timed.checkpoint_bytes, rel=0.05)


# ------------------------------------------------------------------------------------------------------------- budget


def test_a_study_over_its_budget_is_refused_with_the_figures_before_anything_is_written(tmp_path, plan):
    planned = plan("arms: {small: {}, wide: {model.channels: 16}}\nbudget_gpu_hours: 40\n")
    throughput.record(tmp_path / "runs", a_fact(planned.runs[0]))
    throughput.record(tmp_path / "runs", a_fact(planned.runs[1], seconds_per_step=7200.0 * 1.25))
    done = run_cli("submit", tmp_path / "tiny.yaml", "--runs", tmp_path / "runs", "--no-sync")
    assert isinstance(done.exception, LaunchError)
    shows = harness_command("plan", tmp_path / "tiny.yaml", runs_folder=tmp_path / "runs")
    assert str(done.exception) == (
        "over budget: 42 device hours are left to train, budget_gpu_hours is 40; nothing was submitted. "
        f"The most expensive arm is wide (30 device hours); `{shows}` shows each run"
    )
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".throughput"]
    again = run_cli("retry", tmp_path / "tiny.yaml", "--failed", "--runs", tmp_path / "runs")
    assert str(again.exception) == str(done.exception)


def test_evaluations_that_are_left_count_too(tmp_path, plan):
    evaluated = "evaluate: [{name: eval, fidelity: {num_samples: 100, num_steps: 5}}]\n"  # 500 network evaluations
    planned = plan(f"budget_gpu_hours: 12.1\n{evaluated}")
    fact = a_fact(planned.runs[0])
    throughput.record(tmp_path / "runs", fact)
    hours = 500 * fact.seconds_per_step / planned.runs[0].run.spec.train.batch_size / 3 / 3600
    assert hours == pytest.approx(plan(evaluated).evaluation_hours(planned.runs[0])) and hours > 0.1
    with pytest.raises(LaunchError, match=f"12 device hours are left to train and about {hours:.3g} to evaluate, "):
        calibrate.require_within_budget(plan(f"budget_gpu_hours: 12.1\n{evaluated}"))
    calibrate.require_within_budget(plan(f"budget_gpu_hours: {13 + hours}\n{evaluated}"))
    calibrate.require_within_budget(plan("budget_gpu_hours: 12.1\n"))


def test_what_is_trained_already_does_not_count(tmp_path, plan):
    planned = plan("replicates: 2\nbudget_gpu_hours: 15\n")
    throughput.record(tmp_path / "runs", a_fact(planned.runs[0]))
    with pytest.raises(LaunchError, match="24 device hours"):
        calibrate.require_within_budget(plan("replicates: 2\nbudget_gpu_hours: 15\n"))
    run = planned.runs[1].run
    directory = RunDirectory(tmp_path / "runs" / run.run_key).create(run.spec.model_dump(mode="json"), SCHEMA_VERSION)
    directory.set_status(Status("interrupted", step=9))
    calibrate.require_within_budget(plan("replicates: 2\nbudget_gpu_hours: 15\n"))


def test_without_a_budget_nothing_is_timed(tmp_path, plan):
    calibrate.require_within_budget(plan())
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_with_a_budget_and_an_unknown_cost_steps_are_timed_first(tmp_path, plan):
    news = []
    with pytest.raises(LaunchError, match="over budget"):
        calibrate.require_within_budget(plan("budget_gpu_hours: 1.0e-9\n"), on_progress=news.append)
    assert "timing some steps first" in news[0]
    assert plan().training_seconds(plan().runs[0]) > 0
    calibrate.require_within_budget(plan("budget_gpu_hours: 1\n"), on_progress=news.append)
    assert len(news) == 1  # it is known by now


@pytest.mark.slow
def test_a_cost_that_cannot_be_found_out_is_no_permission(tmp_path, plan):
    with pytest.raises(LaunchError, match="no step could be timed: mnist: missing"):
        calibrate.require_within_budget(plan("budget_gpu_hours: 1\n", "data=mnist", f"data_root={tmp_path}"))


# --------------------------------------------------------------------------------------------------------------- SLURM


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_on_the_cluster_times_the_steps_there_with_the_cores_of_a_run_that_shares_it(tmp_path, plan, slurm):
    plan("", "resources.memory_gib=1")
    profile = tmp_path / "dev.yaml"
    profile.write_text("partition: main\nmemory_gib: 2\ncpus: 2\npack: 2\n")
    arguments = (tmp_path / "tiny.yaml", "--runs", tmp_path / "runs", "--cluster", "slurm", "--profile", profile)
    done = run_cli("calibrate", *arguments, "--steps", "5")
    assert done.exit_code == 0, done.output
    ((fact,),) = throughput.load(tmp_path / "runs").values()
    assert (fact.device, fact.threads) == ("cpu", 1)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".throughput"]


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_that_does_not_end_in_time_is_cancelled_and_says_so(tmp_path, plan, slurm):
    from harness.slurm.jobs import live_jobs
    from harness.slurm.profile import Profile

    with pytest.raises(LaunchError, match="after 1 s and was cancelled"):
        calibrate.calibrate(plan(), cluster="slurm", profile=Profile(memory_gib=1), timeout_seconds=1)
    ends = time.monotonic() + 240  # SLURM takes a while to clean up behind a cancelled job
    while live_jobs() and time.monotonic() < ends:
        time.sleep(0.5)
    assert live_jobs() == {}
