"""What a study would take on a cluster: from measured steps, else from a card's peak, and it says which."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from harness.cli import cli
from harness.cli.cost_view import estimate_of
from harness.errors import LaunchError
from harness.job.compute import step_compute
from harness.launch import arithmetic, planning
from harness.launch.estimate import LEAST_STEP_SECONDS, Estimate, makespan
from harness.metrics.flops import forward_compute
from harness.records import throughput
from harness.records.status import Status
from harness.records.throughput import Throughput
from harness.registry import make_method
from harness.slurm.profile import Profile
from harness.spec.cards import CARDS, find_card
from harness.spec.resources import Resources
from harness.study.expand import load_study
from harness.testing import write_run


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count each network once for the tests of this file."""
    monkeypatch.setenv("HARNESS_CACHE", str(shared_cache))


@pytest.fixture
def plan(tmp_path: Path, tiny_study: Callable[..., list]) -> Callable[..., planning.Plan]:
    """Return a function that plans the tiny study on GPUs, with an evaluation of 480 network evaluations."""

    def make(*sets: str) -> planning.Plan:
        sets = ("resources.device=auto", *sets)
        tiny_study("evaluate: [{name: eval, fidelity: {num_samples: 96, num_steps: 5}}]\nreplicates: 2\n")
        return planning.plan(load_study(tmp_path / "tiny.yaml", sets=sets), tmp_path / "runs")

    return make


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("Tesla V100-SXM2-16GB", "V100 SXM2"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA L40S", "L40S"),
        ("nvidia_a100_1g.5gb", None),
        ("NVIDIA RTX A1000", None),
        ("a100|h100", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        (None, None),
    ],
)
def test_a_card_is_known_by_the_name_that_torch_or_a_cluster_gives_it(text, name):
    card = find_card(text)
    assert (card and card.name) == name


def test_a_variant_or_a_slice_of_a_card_is_of_its_family():
    assert CARDS["h100"].is_family_of("NVIDIA H100 PCIe") and CARDS["4090"].is_family_of("NVIDIA GeForce RTX 4090")
    assert CARDS["a100"].is_family_of("NVIDIA A100-SXM4-40GB MIG 1g.5gb")
    assert not CARDS["a10"].is_family_of("NVIDIA A100-SXM4-40GB")


def test_peaks_are_dense_and_fall_from_bf16_to_fp32():
    for card in CARDS.values():
        assert card.peak_tflops("fp32") <= card.peak_tflops("tf32")
        assert card.bf16 is None or card.tf32 <= card.bf16 <= 4.1 * card.tf32


def test_jobs_start_in_their_order_as_soon_as_a_place_is_free():
    assert makespan([3.0, 1.0, 1.0, 2.0], 2) == 4.0
    assert makespan([3.0, 1.0], 20) == 3.0
    assert makespan([], 4) == 0.0


@pytest.mark.slow
def test_the_arithmetic_is_that_of_the_real_network_and_is_counted_once(tmp_path, plan, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    spec = plan().runs[0].run.spec
    counted = arithmetic.arithmetic_of(spec)
    method = make_method(spec, spec.data.facts, Resources(device="cpu"), torch.device("cpu"))
    of_a_step = step_compute(method, spec.data.facts)
    forward = forward_compute(method.network, torch.empty(1, 1, 8, 8), torch.empty(1))
    assert counted == arithmetic.Arithmetic(of_a_step.parameters, of_a_step.multiply_adds, forward.multiply_adds)
    (kept,) = (tmp_path / "cache" / "arithmetic").iterdir()
    kept.write_text(json.dumps({"parameters": 7, "step_multiply_adds": 1.0, "forward_multiply_adds": 1.0}))
    assert arithmetic.arithmetic_of(spec).parameters == 7
    kept.write_text("{")
    assert arithmetic.arithmetic_of(spec) == counted


def test_what_is_not_measured_is_estimated_from_the_peak_of_the_card_and_marked_so(plan):
    sets = ("train.precision=tf32", "model.channels=64", "train.batch_size=16384")
    estimate = estimate_of(plan(*sets), Profile(gpus_per_node="a100:1"), None, 1, 0.25)
    cost = estimate.runs[0]
    flops_per_second = 0.25 * 156e12
    step = 2 * cost.arithmetic.step_multiply_adds * 16384 / flops_per_second
    assert cost.step_seconds == pytest.approx(step) and step > LEAST_STEP_SECONDS
    assert cost.evaluation_seconds == pytest.approx(480 * 2 * cost.arithmetic.forward_multiply_adds / flops_per_second)
    assert estimate.device_hours == pytest.approx(2 * (12 * cost.step_seconds + cost.evaluation_seconds) / 3600)
    assert estimate.wall_seconds == pytest.approx(3600 * estimate.device_hours)
    assert replace(estimate, parallel=2).wall_seconds == pytest.approx(1800 * estimate.device_hours)
    assert estimate.notes()[0].startswith("estimate, not measured: 25 % of the 156 TFLOPS that A100 has in tf32")
    small = estimate_of(plan(), None, "h100", 1, None)
    assert small.runs[0].step_seconds == LEAST_STEP_SECONDS and "calibrate" in small.notes()[1]


def test_steps_that_were_measured_on_such_a_card_count_and_those_on_others_do_not(tmp_path, plan):
    fact = Throughput(plan().runs[0].run.spec.cost_key, 3600.0, "cuda", "NVIDIA H100 PCIe", threads=1, kernels="fused")
    throughput.record(tmp_path / "runs", fact)
    on_h100 = estimate_of(plan(), Profile(gpus_per_node="h100:2"), None, None, None)
    assert on_h100.device_hours == 2 * 2 * (12 + 480 / 16 / 3)  # two runs of one process that hold two GPUs
    assert on_h100.notes()[0] == "measured on NVIDIA H100 PCIe"
    assert estimate_of(plan(), Profile(gpus_per_node=1), None, None, None).device_hours == 44
    assert estimate_of(plan(), Profile(gpus_per_node=1), "a100", None, None).runs[0].measured is None


def test_packs_and_chains_and_time_limits_count_in_the_wall_time(tmp_path, plan):
    throughput.record(
        tmp_path / "runs",
        Throughput(plan().runs[0].run.spec.cost_key, 3600.0, "cuda", "a GPU", threads=1, kernels="fused"),
    )

    def on(**fields: int) -> Estimate:
        return estimate_of(plan(), Profile(gpus_per_node=2, **fields), None, 1, None)

    hours = 12 + 480 / 16 / 3
    assert on().wall_seconds == 2 * hours * 3600
    assert on(pack=2).wall_seconds == hours * 3600
    assert on(pack=2).device_hours == 2 * hours
    assert on(chain=2).wall_seconds == 2 * hours * 3600
    assert on(time_minutes=120).most_time_limits == 12  # of 2 h less 90 s
    assert on(time_minutes=24 * 60).most_time_limits == 1


def test_plan_shows_the_cost_as_a_table_as_markdown_and_as_json(tmp_path, plan):
    plan()
    study = [str(tmp_path / "tiny.yaml"), "--runs", str(tmp_path / "runs"), "--set", "resources.device=auto"]

    def show(*options: str) -> str:
        result = CliRunner().invoke(cli, ["plan", *study, *options])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "device seconds; " in show("--card", "h100", "--parallel", "2")
    table = show("--card", "h100", "--markdown").splitlines()
    assert table[0].startswith("| arm | runs left | parameters |") and table[1].startswith("| --- | ---: |")
    assert table[2].startswith("| base | 2 | ")
    assert any(line.startswith("- estimate, not measured: 50 % of the 66.9 TFLOPS") for line in table)
    document = json.loads(show("--card", "h100", "--json"))
    assert (document["card"], document["parallel"], document["time_limits"]) == ("H100 SXM", 1, 1)
    assert document["device_hours"] == pytest.approx(sum(run["device_hours"] for run in document["runs"]))
    assert "?" in show("--parallel", "2")  # neither measured nor a card
    with pytest.raises(LaunchError, match="--card h1000: not a card whose peak is known; did you mean 'h100'"):
        CliRunner().invoke(cli, ["plan", *study, "--card", "h1000"], catch_exceptions=False)
    assert not (tmp_path / "runs").exists()


RUNGS = """
grid: {optim.lr: [1.0e-4, 2.0e-4, 3.0e-4, 4.0e-4]}
rungs: [2, 4, 12]
reduction_factor: 2
compare: {metric: nll}
evaluate: [{name: eval, every: 2, nll: {estimator: full, num_images: 16}}]
"""


@pytest.fixture
def with_rungs(tmp_path: Path, tiny_study: Callable[..., list]) -> Callable[[], Estimate]:
    """Return a function that estimates four arms of two replicates with three rungs, a step of each taking an hour."""
    first = tiny_study(f"replicates: 2\n{RUNGS}", "resources.device=auto")[0]
    fact = Throughput(first.spec.cost_key, 3600.0, "cuda", "NVIDIA H100 PCIe", threads=1, kernels="fused")
    throughput.record(tmp_path / "runs", fact)

    def make() -> Estimate:
        study = load_study(tmp_path / "tiny.yaml", sets=("resources.device=auto",))
        return estimate_of(planning.plan(study, tmp_path / "runs"), Profile(gpus_per_node=1), None, 4, None)

    return make


def test_rungs_are_estimated_by_how_many_go_on(with_rungs):
    estimate = with_rungs()
    [first, second, third] = estimate.rungs
    assert [(rung.step, rung.arms, rung.runs) for rung in estimate.rungs] == [(2, 4, 8), (4, 2, 4), (12, 1, 2)]
    cost = estimate.runs[0]
    once = cost.evaluation_seconds / 3600 / 7  # every 2 of 12 steps, and after the last
    assert once > 0
    assert first.device_hours == pytest.approx(8 * (2 + once))
    assert second.device_hours == pytest.approx(4 * (2 + once))
    assert third.device_hours == pytest.approx(2 * (8 + 5 * once))
    assert first.wall_seconds == pytest.approx(2 * (2 + once) * 3600)  # eight runs, four at a time
    assert third.wall_seconds == pytest.approx((8 + 5 * once) * 3600)
    flat = sum(rung.device_hours for rung in estimate.rungs) + 4 * (2 + once) + 6 * (8 + 5 * once)
    assert estimate.device_hours == pytest.approx(flat)


def test_what_a_rung_has_decided_is_no_longer_expected_but_known(with_rungs):
    before = with_rungs()
    for planned in before.plan.runs:  # all arms are at the first rung, the two highest rates in front
        directory = write_run(planned.run, planned.path.parent)
        evaluation, value = planned.run.evaluations[0], 3 - 1000 * planned.run.spec.optim.lr
        with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
            journal.metrics(2, {f"{evaluation.name}/nll_bpd": value})
            journal.event("checkpoint", step=2)
        directory.set_status(Status("paused", 2, 12, 1, cause="rung"))
    estimate = with_rungs()
    states = {cost.planned.run.spec.optim.lr: cost.planned.state for cost in estimate.runs}
    assert states == {1e-4: "pruned", 2e-4: "pruned", 3e-4: "interrupted", 4e-4: "interrupted"}
    assert [(rung.step, rung.arms, rung.runs) for rung in estimate.rungs] == [(2, 2, 4), (4, 2, 4), (12, 1, 2)]
    assert [rung.device_hours for rung in estimate.rungs] == [0, *(rung.device_hours for rung in before.rungs[1:])]


def test_plan_says_what_rungs_save(tmp_path, with_rungs):
    with_rungs()
    study = [str(tmp_path / "tiny.yaml"), "--runs", str(tmp_path / "runs"), "--set", "resources.device=auto"]
    result = CliRunner().invoke(cli, ["plan", *study, "--card", "h100"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    header = next(index for index, line in enumerate(lines) if line.startswith("rung "))
    assert [line.split()[:4] for line in lines[header + 1 : header + 4]] == [
        ["1", "2", "4", "8"],
        ["2", "4", "2", "4"],
        ["3", "12", "1", "2"],
    ]
    assert lines[header + 5].startswith("with rungs: 480 device hours expected; ")
    assert re.match(r"without rungs, as by arm above: [\d,]+ device hours; ", lines[header + 6])
    result = CliRunner().invoke(cli, ["plan", *study, "--card", "h100", "--json"])
    assert [rung["arms"] for rung in json.loads(result.stdout)["rungs"]] == [4, 2, 1]


def test_where_slurm_chooses_the_partition_each_card_that_was_measured_has_its_cost(tmp_path, plan):
    key = plan().runs[0].run.spec.cost_key
    for name, seconds in (("NVIDIA A100-SXM4-40GB", 7200.0), ("NVIDIA H100 PCIe", 3600.0)):
        throughput.record(tmp_path / "runs", Throughput(key, seconds, "cuda", name, threads=1, kernels="fused"))

    def notes(profile: Profile) -> list[str]:
        return estimate_of(plan(), profile, None, None, None).notes()

    of_both = notes(Profile(partition="a,b", gpus_per_node=1))
    assert of_both[0] == "measured on NVIDIA H100 PCIe"  # the newest
    assert sorted(of_both[1].removeprefix("by the card that was measured: ").split(", ")) == [
        "44 GPU hours on NVIDIA H100 PCIe",
        "88 GPU hours on NVIDIA A100-SXM4-40GB",
    ]
    assert of_both[2].startswith("partition a,b: SLURM takes whatever starts a job first, so jobs may get different ")
    either = notes(Profile(constraint="a100|h100", gpus_per_node=1))
    assert either[2].startswith("constraint a100|h100: SLURM takes whatever")
    for profile in (Profile(partition="a,b", gpus_per_node="a100:1"), Profile(partition="a", gpus_per_node="h100:1")):
        assert not any("whatever" in note or "by the card" in note for note in notes(profile))
    assert not any("whatever" in note for note in notes(Profile(partition="a,b")))
