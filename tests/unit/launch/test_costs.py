"""What a step costs is known from records, and a plan adds it up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.doctor.cluster import check_idle_gpus
from harness.launch import planning
from harness.records import throughput
from harness.records.throughput import Throughput
from harness.slurm.profile import Profile
from harness.study.expand import load_study


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


def test_a_run_pays_for_all_the_gpus_that_its_job_holds_and_of_a_pack_for_its_share(tmp_path, plan):
    planned = plan("", "resources.device=cuda").runs[0]
    fact = a_fact(planned, device="cuda", device_name="a GPU")
    throughput.record(tmp_path / "runs", fact)
    hours = {}
    for profile in (Profile(gpus_per_node=1), Profile(gpus_per_node="h100:4"), Profile(gpus_per_node=4, pack=4)):
        hours[profile.gpus_per_node, profile.pack] = replace(plan(), profile=profile).device_hours(planned)
    assert hours == {(1, None): 12.0, ("h100:4", None): 48.0, (4, 4): 12.0}
    shared = replace(plan(), profile=Profile(gpus_per_node=1, pack=4))
    assert shared.device_hours(planned) is None  # nothing is known of four runs on one GPU
    throughput.record(tmp_path / "runs", replace(fact, runs_per_gpu=4, seconds_per_step=7200.0))
    assert replace(shared).device_hours(planned) == 6.0
    assert replace(plan(), profile=Profile(gpus_per_node=1)).device_hours(planned) == 12.0


def test_a_step_that_was_measured_with_other_kernels_says_nothing(tmp_path, plan):
    planned = plan().runs[0]
    for kernels, seconds in (("reference", 7200.0), ("fused", 3600.0)):  # beside each other
        throughput.record(tmp_path / "runs", replace(a_fact(planned), kernels=kernels, seconds_per_step=seconds))
    hours = {kernels: plan("", f"resources.kernels={kernels}") for kernels in ("reference", "fused", "compiled")}
    assert {kernels: one.device_hours(one.runs[0]) for kernels, one in hours.items()} == {
        "reference": 24.0,
        "fused": 12.0,
        "compiled": None,
    }


EVALUATED = "evaluate: [{name: eval, fidelity: {num_samples: 96, num_steps: 5}}]\n"  # 480 network evaluations


def test_an_evaluation_is_the_work_of_one_of_several_processes_and_keeps_the_devices_of_all(tmp_path, plan):
    planned = plan(EVALUATED).runs[0]
    throughput.record(tmp_path / "runs", a_fact(planned))
    assert plan(EVALUATED).evaluation_seconds(planned, planned.run.evaluations[0]) == 36000.0
    several = f"{EVALUATED}arms: {{four: {{resources.nodes: 4}}}}\n"
    planned = plan(several).runs[0]
    throughput.record(tmp_path / "runs", a_fact(planned, num_processes=4, seconds_per_step=900.0))
    assert plan(several).evaluation_seconds(planned, planned.run.evaluations[0]) == 36000.0
    assert plan(several).evaluation_hours(planned) == 40.0


def test_of_an_evaluation_the_known_parts_count_and_the_others_are_named(tmp_path, plan):
    extra = (
        EVALUATED.replace("}]", ", nll: {}}]")
        + "arms: {folder: {data: {name: image_folder, image_size: 8, path: images}}}\n"
    )
    of_a_folder = plan(extra)
    planned = of_a_folder.runs[0]
    throughput.record(tmp_path / "runs", a_fact(planned))
    assert of_a_folder.evaluation_seconds(planned, planned.run.evaluations[0]) is None
    assert of_a_folder.evaluation_hours(planned) == 10.0
    assert of_a_folder.uncounted_parts() == ["eval: nll"]


def test_gpus_that_no_process_would_use_are_named_with_what_to_change(plan):
    def idle(profile: Profile, *sets: str) -> list[str]:
        return replace(plan("", *sets), profile=profile).idle_gpus()

    four = Profile(gpus_per_node=4)
    assert idle(four, "resources.device=cuda") == [
        "base: 3 of the 4 GPUs that a job asks for on each node would be idle: set gpus_per_node to 1, "
        "resources.processes_per_node to 4, or pack"
    ]
    assert idle(four) == [
        "base: 4 of the 4 GPUs that a job asks for on each node would be idle: resources.device is cpu; "
        "set gpus_per_node to 0"
    ]
    assert idle(four, "resources.device=cuda", "resources.processes_per_node=4") == []
    assert idle(Profile(gpus_per_node=4, pack=4), "resources.device=cuda") == []
    assert idle(Profile(), "resources.device=cuda", "resources.gpus_per_node=2") == []
    [finding] = check_idle_gpus(four, plan("", "resources.device=cuda"))
    assert finding.level == "warning" and "3 of the 4 GPUs" in finding.message
