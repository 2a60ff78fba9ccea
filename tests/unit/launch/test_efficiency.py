"""What jobs asked for against what they used, and memory that is raised after a kill for it."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.launch import efficiency, planning
from harness.launch.efficiency import Request, Use
from harness.launch.memory import memory_requests
from harness.records.devices import mixed_devices
from harness.records.directory import RunDirectory
from harness.records.status import Status
from harness.slurm.profile import Profile
from harness.slurm.usage import JobUsage
from harness.study.expand import load_study
from harness.testing import write_finished_run

REQUEST = Request(time_minutes=1440, memory_gib=32, cores=8, gpus=1)
USE = Use(("base",), REQUEST, 3, 6.0, 7200.0, 4.1, 1.3, 30.0, 9.0, 0, "accounting")


@pytest.fixture
def plan(tmp_path: Path, tiny_study: Callable[..., list]) -> Callable[..., planning.Plan]:
    """Return a function that plans three replicates of the tiny study."""

    def make(*sets: str) -> planning.Plan:
        tiny_study("replicates: 3\n")
        return planning.plan(load_study(tmp_path / "tiny.yaml", sets=sets), tmp_path / "runs")

    return make


def write_with_gauges(planned: planning.PlannedRun, runs: Path, memory: float, device: str = "cpu") -> RunDirectory:
    directory = write_finished_run(planned.run, runs)
    directory.write_environment(2, {"harness": "1.2.3", "threads": 1, "device": device})
    with directory.lock(), directory.open_journal(resumed_from_step=12) as journal:
        for cpu in (50.0, 150.0):
            journal.metrics(12, {"system/process_cpu_percent": cpu, "system/process_memory_gib": memory})
            time.sleep(0.002)  # the journal's times are whole milliseconds, and a life of none has no length
    return directory


def submitted(runs: list[planning.PlannedRun], job: str, **description: object) -> None:
    """Write the claims of a submission to SLURM, a task of an array for each run."""
    folder = runs[0].path.parent / ".jobs" / "tiny" / f"20260101-{job}"
    (folder / "claims").mkdir(parents=True)
    for task, planned in enumerate(runs):
        (folder / "claims" / planned.run_key).write_text(f"{job}_{task}")
    (folder / "submission.json").write_text(json.dumps({"cluster": "slurm", "profile": {}} | description))


def test_what_would_fit_is_what_was_used_and_some_room():
    assert USE.fits() == {"memory_gib": 5.5, "time_minutes": 180, "cpus": 2, "pack": 3}
    assert replace(USE, request=Request(180, 5.5, 2, 1), gpu_percent=80.0).fits() == {}


def test_little_room_and_kills_for_memory_ask_for_more_and_a_run_that_reaches_its_limit_for_no_less():
    assert replace(USE, peak_memory_gib=31.0).fits()["memory_gib"] == 41
    assert replace(USE, memory_kills=1).fits() == {"memory_gib": 48}
    assert "time_minutes" not in replace(USE, longest_seconds=1380 * 60.0).fits()
    unknown = replace(USE, peak_memory_gib=None, cores=None, gpu_percent=None, longest_seconds=0.0)
    assert unknown.fits() == {}


@pytest.mark.process
def test_without_accounting_the_runs_own_gauges_tell(tmp_path, plan, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no sacct
    runs = plan().runs
    directories = [write_with_gauges(run, tmp_path / "runs", 0.5 + place) for place, run in enumerate(runs)]
    submitted(list(runs), "7", profile={"memory_gib": 8, "cpus": 4, "time_minutes": 60})
    [use] = efficiency.efficiency(directories, "tiny")
    assert (use.arms, use.jobs, use.source) == (("base",), 3, "gauges")
    assert use.request == Request(60, 8, 4, 0)
    assert (use.peak_memory_gib, use.cores, use.gpu_percent) == (2.5, 1.0, None)
    assert use.fits() == {"memory_gib": 3.5, "time_minutes": 11, "cpus": 2}
    result = CliRunner().invoke(cli, ["efficiency", "tiny", "--runs", str(tmp_path / "runs"), "--json"])
    document = json.loads(result.stdout)
    assert document["requests"][0]["fits"] == use.fits() and document["notes"] == []
    shown = CliRunner().invoke(cli, ["efficiency", "tiny", "--runs", str(tmp_path / "runs")]).output
    assert "2.5 of 8 GiB" in shown and "    cpus: 2\n" in shown


def test_jobs_are_grouped_by_what_they_asked_for_and_a_shared_job_counts_once(tmp_path, plan, monkeypatch):
    runs = plan().runs
    directories = [write_with_gauges(run, tmp_path / "runs", 0.5) for run in runs]
    submitted(list(runs[:2]), "7")
    submitted(list(runs[2:]), "8")
    small = JobUsage("7_0", "COMPLETED", 3600, 7200, 1800, 4, 1, 1, 16.0, 2.0)
    usages = [
        small,
        replace(small, job_id="7_1", elapsed_seconds=1800, peak_memory_gib=3.0),
        replace(small, job_id="8_0", memory_gib=32.0, state="REQUEUED", peak_memory_gib=32.0),
        replace(small, job_id="8_0", memory_gib=32.0, state="RUNNING"),
    ]
    asked: list[set[str]] = []
    monkeypatch.setattr(efficiency, "read_usage", lambda job_ids: asked.append(set(job_ids)) or usages)
    first, second = efficiency.efficiency(directories, "tiny")
    assert asked == [{"7_0", "7_1", "8_0"}]
    assert (first.jobs, first.device_hours, first.longest_seconds, first.peak_memory_gib) == (2, 1.5, 3600, 3.0)
    assert first.cores == pytest.approx(4 * 3600 / (5400 * 4))
    assert (second.jobs, second.memory_kills, second.fits()["memory_gib"]) == (1, 1, 48)


def test_replicates_of_an_arm_on_different_cards_are_named(tmp_path, plan):
    runs = plan().runs
    cards = ("NVIDIA A100", "NVIDIA H100", "NVIDIA A100")
    directories = [write_with_gauges(run, tmp_path / "runs", 0.5, card) for run, card in zip(runs, cards, strict=True)]
    [note] = mixed_devices(directories, "tiny")
    assert note.startswith("base: its replicates ran on different devices: NVIDIA A100 (0, 2), NVIDIA H100 (1); ")
    assert mixed_devices([directories[0], directories[2]], "tiny") == []


@pytest.mark.slow
def test_compare_warns_of_replicates_on_different_cards(tmp_path, tiny_study):
    runs = tiny_study("arms: {a: {}, b: {optim.lr: 0.01}}\nreplicates: 2\nevaluate: [{nll: {}}]\n")
    for run in runs:
        directory = write_finished_run(run, tmp_path / "runs", {"nll_bpd": 3.0 + run.replicate})
        card = f"NVIDIA A{100 - 60 * run.replicate * (run.arm == 'b')}"
        directory.write_environment(1, {"harness": "1.2.3", "threads": 1, "device": card})
    shown = CliRunner().invoke(cli, ["compare", "tiny", "--runs", str(tmp_path / "runs")], catch_exceptions=False)
    warnings = [line for line in shown.output.splitlines() if line.startswith("warning: ")]
    assert [line.split(": its")[0] for line in warnings] == ["warning: b"]
    assert "NVIDIA A100 (0), NVIDIA A40 (1)" in warnings[0]


def test_memory_is_raised_by_half_after_a_kill_for_it_up_to_the_limit_and_stays_raised(plan):
    profile = Profile(memory_gib=4, max_memory_gib=10)
    killed, calm, _ = plan().runs
    killed = replace(killed, state="failed", status=Status("failed", cause="out_of_memory"))

    def ask(said: float = 4.0, again: bool = True) -> tuple[float, float]:
        run = killed if again else replace(killed, status=Status("interrupted"))
        asking = profile.model_copy(update={"memory_gib": said})
        requests = memory_requests([run, calm], asking)
        submitted([killed, calm], str(next(numbers)), **requests.record())
        resources = requests.applied_to(run).run.resources
        assert asking.resolve(resources, "memory_gib") == requests.asked[run.run_key]
        return requests.asked[killed.run_key], requests.asked[calm.run_key]

    numbers = itertools.count(100)
    assert ask() == (6.0, 4.0)
    assert ask() == (9.0, 4.0)
    assert ask(again=False) == (9.0, 4.0)
    assert ask() == (10.0, 4.0)
    at_limit = memory_requests([killed], profile)
    assert at_limit.raised == () and at_limit.at_limit == (killed.run_key,)
    assert at_limit.notes(10)[0].startswith(f"killed for memory at max_memory_gib 10: {killed.run_key}; ")
    assert ask(said=12.0) == (12.0, 12.0)  # the user has raised it


def test_without_a_limit_in_the_profile_memory_stays_as_it_is(plan):
    killed = replace(plan().runs[0], status=Status("failed", cause="out_of_memory"))
    for profile in (Profile(memory_gib=4), Profile(memory_request="all", max_memory_gib=8)):
        requests = memory_requests([killed], profile)
        assert requests.record() == {} and requests.applied_to(killed) is killed
