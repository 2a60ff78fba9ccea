import gzip
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from harness.cli import cli
from harness.job.profile import OTHER, parts_of
from harness.methods.ranges import RANGES, named_range, recorded_ranges


def complete(name, category, start, duration, correlation=None):
    arguments = {} if correlation is None else {"correlation": correlation}
    return {"ph": "X", "name": name, "cat": category, "ts": start, "dur": duration, "args": arguments}


def test_a_kernel_belongs_to_the_part_that_launched_it_whenever_it_runs_and_from_whatever_thread():
    annotations = [
        complete("ProfilerStep#7", "user_annotation", 0, 1000),
        complete("ProfilerStep#8", "user_annotation", 1000, 1000),
        complete("forward", "user_annotation", 100, 200),
        complete("backward", "user_annotation", 300, 400),
        complete("forward", "user_annotation", 1100, 100),
        complete("forward", "gpu_user_annotation", 100, 5000),  # torch's own guess, by thread
    ]
    launches = [complete("cudaLaunchKernel", "cuda_runtime", start, 5, start) for start in (150, 350, 900)]
    kernels = [complete("gemm", "kernel", 1500 + start, 70, start) for start in (150, 350, 900)]
    copy = complete("Memcpy", "gpu_memcpy", 1110, 30)  # without a launch in the trace: when it ran
    step_numbers = {"ph": "i", "name": "marker", "ts": 3}
    num_steps, step_ms, parts = parts_of([*annotations, *launches, *kernels, copy, step_numbers], on_device=True)
    assert (num_steps, step_ms) == (2, 1.0)
    by_name = {part.name: (part.host_ms, part.device_ms) for part in parts}
    assert list(by_name) == [*RANGES, OTHER]
    assert by_name["forward"] == (pytest.approx(0.15), pytest.approx(0.05))
    assert by_name["backward"] == (pytest.approx(0.2), pytest.approx(0.035))
    assert by_name[OTHER] == (pytest.approx(0.65), pytest.approx(0.035))
    assert by_name["data"] == (0, 0)
    _, _, on_host = parts_of([*annotations, *launches], on_device=False)
    assert {part.device_ms for part in on_host} == {None}


def test_ranges_are_named_only_while_they_are_recorded():
    assert named_range("data") is named_range("forward")
    with recorded_ranges(), torch.profiler.profile() as profiler, named_range("EMA"):
        torch.ones(3)
    assert "EMA" in {event.key for event in profiler.key_averages()}
    assert named_range("data") is named_range("forward")


@pytest.mark.slow
def test_a_profile_names_all_parts_of_a_step_and_leaves_the_run_as_it_was(tiny_run, tmp_path):
    path = tiny_run("", "records.log_every=2", "train.batch_size=8", "resources.processes_per_node=2")
    before = {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}
    arguments = ["profile", path.name, "--steps", "4", "--runs", str(path.parent), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert result.exception is None, result.output
    [profile] = json.loads(result.stdout)
    assert (profile["run_key"], profile["device"], profile["num_steps"]) == (path.name, "cpu", 4)
    assert (profile["num_processes"], profile["batch_size"]) == (2, 4)
    parts = {part["name"]: part["host_ms"] for part in profile["parts"]}
    assert list(parts) == [*RANGES, OTHER]
    assert all(milliseconds > 0 for milliseconds in parts.values())
    assert sum(parts.values()) == pytest.approx(profile["profiled_step_ms"])
    assert "aten::convolution_backward" in {operator["name"] for operator in profile["operators"]}
    with gzip.open(profile["trace"]) as trace:
        names = [event["name"] for event in json.load(trace)["traceEvents"] if event.get("cat") == "user_annotation"]
    assert names.count("backward") == names.count("EMA") == 4
    assert Path(profile["picture"]).read_bytes().startswith(b"\x89PNG")
    assert {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()} == before
