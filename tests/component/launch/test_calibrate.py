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


@pytest.fixture
def plan(tmp_path, tiny_study):
    """Return a function that plans the tiny study with extra lines of YAML and `--set`s."""

    def make(extra: str = "", *sets: str) -> planning.Plan:
        tiny_study(extra)
        return planning.plan(load_study(tmp_path / "tiny.yaml", sets=sets), tmp_path / "runs")

    return make


def a_fact(planned: planning.PlannedRun, **change) -> Throughput:
    timing = Throughput(planned.run.spec.cost_key, 3600.0, device="cpu", device_name="a CPU", threads=1)
    return replace(timing, **change)


def run_cli(*arguments: str | Path):
    return CliRunner().invoke(cli, [str(one) for one in arguments])


# --------------------------------------------------------------------------------------------------------------- facts


def test_each_device_and_each_number_of_processes_keeps_a_fact_of_its_own_and_the_newest_comes_first(tmp_path):
    timing = Throughput("a", 1.0, "cpu", "slow CPU", 1)
    others = [replace(timing, device_name="fast CPU"), replace(timing, num_processes=2)]
    for one in (timing, *others):
        throughput.record(tmp_path, one)
    throughput.record(tmp_path, replace(timing, seconds_per_step=2.0))
    found = throughput.load(tmp_path)["a"]
    assert found[0] == replace(timing, seconds_per_step=2.0)
    assert len(found) == 3
    assert all(one in found for one in others)


def test_a_fact_of_version_0_1_is_read_still(tmp_path):
    (tmp_path / ".throughput").mkdir()
    (tmp_path / ".throughput" / "abc.json").write_text('{"seconds_per_step": 2.0, "device": "cpu", "threads": 4}')
    assert throughput.load(tmp_path) == {"abc": [Throughput("abc", 2.0, "cpu", "cpu", 4)]}


# ---------------------------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize(
    "sets", [("resources.device=cuda",), ("resources.device=auto", "resources.gpus_per_node=1")], ids=["cuda", "a node"]
)
def test_an_hour_of_a_cpu_is_not_taken_for_an_hour_of_the_gpu_that_a_run_asks_for(tmp_path, plan, sets):
    planned = plan("", *sets).runs[0]
    throughput.record(tmp_path / "runs", a_fact(planned))
    assert plan("", *sets).training_seconds(planned) is None
    throughput.record(tmp_path / "runs", a_fact(planned, device="cuda", device_name="a GPU", seconds_per_step=2.0))
    assert plan("", *sets).training_seconds(planned) == 24.0


def test_a_run_of_several_processes_pays_for_each_and_needs_a_fact_of_as_many(tmp_path, plan):
    extra = "arms: {four: {resources.nodes: 4}}\n"
    planned = plan(extra).runs[0]
    throughput.record(tmp_path / "runs", a_fact(planned))
    assert plan(extra).device_hours(planned) is None
    throughput.record(tmp_path / "runs", a_fact(planned, num_processes=4, seconds_per_step=600.0))
    assert plan(extra).training_seconds(planned) == 7200.0
    assert plan(extra).device_hours(planned) == 8.0


def test_the_disk_is_for_the_last_two_checkpoints_and_those_that_are_kept(tmp_path, plan):
    for extra, num_checkpoints in (("", 2), ("arms: {kept: {records.keep_every: 5}}\n", 4)):
        planned = plan(extra).runs[0]
        throughput.record(tmp_path / "runs", a_fact(planned, checkpoint_bytes=1000))
        assert plan(extra).checkpoint_bytes(planned) == 1000 * num_checkpoints
    assert plan().checkpoint_bytes(replace(planned, state="done")) == 0


# ---------------------------------------------------------------------------------------------------------- measuring


def test_timed_steps_are_those_of_the_real_loop_and_their_checkpoint_has_16_bytes_a_parameter(tmp_path, plan):
    run = plan("", "model.channels=32", "model.channel_mult=[1,2]").runs[0].run
    timing = calibrate.time_steps(run.spec, run.resources, None, steps=5, scratch=tmp_path / "scratch")
    assert 0 < timing.seconds_per_step < 5
    assert (timing.cost_key, timing.device, timing.num_processes, timing.precision) == (
        run.spec.cost_key,
        "cpu",
        1,
        "fp32",
    )
    assert timing.device_name == throughput.cpu_name() != ""

    from harness.training.checkpoints import Checkpoints

    (folder,) = (tmp_path / "scratch").glob("*/checkpoints")
    network = Checkpoints(folder).latest()[1]["method"]["network"]
    # Weights, their EMA and Adam's two moments, 4 bytes each.
    assert timing.checkpoint_bytes == pytest.approx(16 * sum(one.numel() for one in network.values()), rel=0.05)


def test_of_several_processes_one_is_timed_with_its_share_of_the_batch(tmp_path, plan):
    run = plan("", "resources.nodes=4").runs[0].run
    timing = calibrate.time_steps(run.spec, run.resources, None, steps=5, scratch=tmp_path)
    assert timing.num_processes == 4
    assert RunDirectory(tmp_path / run.run_key).spec()["train"]["batch_size"] == 16 // 4


def test_one_class_that_cannot_be_timed_does_not_keep_the_others_from_it(tmp_path, plan):
    there, missing = plan("arms: {there: {}, missing: {data: mnist}}\n", f"data_root={tmp_path}").runs
    classes = [calibrate._class_to_time(missing), calibrate._class_to_time(there)]
    (tmp_path / calibrate.REQUEST).write_text(json.dumps({"steps": 5, "threads": 1, "classes": classes}))
    calibrate.main(tmp_path)
    answers = json.loads((tmp_path / "answer.json").read_text())
    assert "mnist: missing" in answers[0]["error"]
    assert answers[1]["fact"]["cost_key"] == there.run.spec.cost_key


@pytest.mark.slow
def test_calibrate_times_each_class_once_and_plan_then_knows_the_cost(tmp_path, plan):
    planned = plan("arms: {small: {}, lr: {optim.lr: 0.1}, wide: {model.channels: 16}}\nreplicates: 2\n")
    arguments = (tmp_path / "tiny.yaml", "--runs", tmp_path / "runs")
    done = run_cli("calibrate", *arguments, "--steps", "5")
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.output.splitlines()] == ["arm", "small,", "wide", "cost:"]
    assert not any((tmp_path / "runs" / one.run_key).exists() for one in planned.runs)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".throughput"]  # and no scratch is left
    said = run_cli("plan", *arguments).output
    assert f"hours on {throughput.cpu_name()}, without evaluations" in said
    assert "?" not in said


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
    (timing,) = throughput.load(path.parent)[spec.cost_key]
    assert replace(timing, seconds_per_step=0.0, checkpoint_bytes=0) == replace(
        timed, seconds_per_step=0.0, checkpoint_bytes=0
    )
    assert timing.checkpoint_bytes == pytest.approx(timed.checkpoint_bytes, rel=0.05)


# ------------------------------------------------------------------------------------------------------------- budget


def test_a_study_over_its_budget_is_refused_with_the_figures_before_anything_is_written(tmp_path, plan):
    planned = plan("arms: {small: {}, wide: {model.channels: 16}}\nbudget_gpu_hours: 40\n")
    throughput.record(tmp_path / "runs", a_fact(planned.runs[0]))
    throughput.record(tmp_path / "runs", a_fact(planned.runs[1], seconds_per_step=7200.0 * 1.25))
    done = run_cli("submit", tmp_path / "tiny.yaml", "--runs", tmp_path / "runs", "--no-sync")
    assert isinstance(done.exception, LaunchError)
    assert str(done.exception) == (
        "over budget: 42 device hours are left to train, budget_gpu_hours is 40; nothing was submitted. "
        f"The most expensive arm is wide (30 device hours); `harness plan {tmp_path / 'tiny.yaml'}` shows each run"
    )
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".throughput"]


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
def test_a_job_on_the_cluster_times_the_steps_there(tmp_path, plan, slurm):
    plan("", "resources.memory_gib=1")
    profile = tmp_path / "dev.yaml"
    profile.write_text("partition: main\nmemory_gib: 1\ncpus: 2\n")
    arguments = (tmp_path / "tiny.yaml", "--runs", tmp_path / "runs", "--cluster", "slurm", "--profile", profile)
    done = run_cli("calibrate", *arguments, "--steps", "5")
    assert done.exit_code == 0, done.output
    ((timing,),) = throughput.load(tmp_path / "runs").values()
    assert (timing.device, timing.threads) == ("cpu", 2)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".throughput"]


@pytest.mark.slow
@pytest.mark.slurm
def test_a_job_that_does_not_end_in_time_is_cancelled_and_says_so(tmp_path, plan, slurm):
    from harness.slurm.jobs import live_jobs
    from harness.slurm.profile import Profile

    with pytest.raises(LaunchError, match="after 1 s and is cancelled"):
        calibrate.calibrate(plan(), cluster="slurm", profile=Profile(memory_gib=1), timeout_seconds=1)
    ends = time.monotonic() + 30  # SLURM takes a while to clean up behind a cancelled job
    while live_jobs() and time.monotonic() < ends:
        time.sleep(0.5)
    assert live_jobs() == {}
