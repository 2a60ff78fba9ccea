"""What a study would take on a cluster: from measured steps, else from a card's peak, and it says which."""

from __future__ import annotations

import json
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
from harness.records.throughput import Throughput
from harness.registry import make_method
from harness.slurm.profile import Profile
from harness.spec.cards import CARDS, find_card
from harness.spec.resources import Resources
from harness.study.expand import load_study


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
