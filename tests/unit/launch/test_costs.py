"""What a step costs is known from records, and a plan adds it up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.launch import planning
from harness.records import throughput
from harness.records.throughput import Throughput
from harness.study.expand import load_study


@pytest.fixture
def plan(tmp_path, tiny_study):
    """Return a function that plans the tiny study with extra lines of YAML and `--set`s."""

    def make(extra: str = "", *sets: str) -> planning.Plan:
        tiny_study(extra)
        return planning.plan(load_study(tmp_path / "tiny.yaml", sets=sets), tmp_path / "runs")

    return make


def a_fact(planned: planning.PlannedRun, **change) -> Throughput:
    fact = Throughput(planned.run.spec.cost_key, 3600.0, device="cpu", device_name="a CPU", threads=1)
    return replace(fact, **change)


def test_each_device_and_each_number_of_processes_keeps_a_fact_of_its_own_and_the_newest_comes_first(tmp_path):
    fact = Throughput("a", 1.0, "cpu", "slow CPU", 1)
    others = [replace(fact, device_name="fast CPU"), replace(fact, num_processes=2)]
    for one in (fact, *others):
        throughput.record(tmp_path, one)
    throughput.record(tmp_path, replace(fact, seconds_per_step=2.0))
    found = throughput.load(tmp_path)["a"]
    assert found[0] == replace(fact, seconds_per_step=2.0)
    assert len(found) == 3
    assert all(one in found for one in others)


def test_a_fact_of_version_0_1_is_read_still(tmp_path):
    (tmp_path / ".throughput").mkdir()
    (tmp_path / ".throughput" / "abc.json").write_text('{"seconds_per_step": 2.0, "device": "cpu", "threads": 4}')
    assert throughput.load(tmp_path) == {"abc": [Throughput("abc", 2.0, "cpu", "cpu", 4)]}


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
