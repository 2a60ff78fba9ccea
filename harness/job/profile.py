"""Profile some training steps of a run by the real loop, in a scratch folder: the run's own records are not touched."""

from __future__ import annotations

import bisect
import gzip
import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from harness.datasets import make_dataset
from harness.job.environment import choose_device, set_tf32
from harness.job.kernels import keep_freed_memory, prepare_compiler
from harness.methods.ranges import RANGES, recorded_ranges
from harness.records.directory import RunDirectory
from harness.records.throughput import cpu_name
from harness.registry import make_method
from harness.spec.base import SCHEMA_VERSION
from harness.spec.resources import Records, Resources
from harness.spec.run import RunSpec
from harness.training.checkpoints import Checkpoints
from harness.training.loop import Training, train

WARM_UP = 5
"""Steps before those that are timed; allocators and caches are not yet in order in them."""
PROFILER_WARM_UP = 2
"""Steps in which the profiler runs already, and that are not counted."""

MOST_OPERATORS = 12
OTHER = "other"


@dataclass(frozen=True)
class Part:
    """A part of a training step.

    Attributes:
        host_ms: a step, as the process that trains sees it: on a GPU it only launches kernels, and waits for some.
        device_ms: a step, of the kernels that were launched in this part; None without a GPU.
    """

    name: str
    host_ms: float
    device_ms: float | None


@dataclass(frozen=True)
class Operator:
    """An operator of torch: its own time a step, without that of the operators that it calls."""

    name: str
    calls: float  # a step
    self_ms: float  # on the device, or on the host if there is none


@dataclass(frozen=True)
class Profile:
    """Where the time of a training step goes.

    Attributes:
        batch_size: of the profiled process.
        num_processes: that train the run, of which one was profiled.
        step_ms: without the profiler.
        profiled_step_ms: with it, which slows the host; parts and operators add up to this.
        trace: a file for ui.perfetto.dev or chrome://tracing.
    """

    device: str
    device_name: str
    threads: int
    batch_size: int
    num_processes: int
    num_steps: int
    step_ms: float
    profiled_step_ms: float
    parts: tuple[Part, ...]
    operators: tuple[Operator, ...]
    trace: Path


def profile_training(
    spec: RunSpec, resources: Resources, records: Records, data_root: str | None, *, steps: int, trace: Path
) -> Profile:
    """Train from the initial weights in one process: some steps to warm up, `steps` timed ones, as many profiled ones.

    Of a run of several processes it is one with its share of the batch, so the time for communication is not included.

    Args:
        records: how often a line is logged; checkpoints and evaluations are left out.
        trace: is written, ending in .json.gz.

    Raises:
        DataError, HarnessError: the data are missing, or the device that the resources ask for is.
    """
    device = choose_device(resources.device)
    set_tf32(spec.train.precision, [])
    prepare_compiler(resources.kernels, device)
    keep_freed_memory()
    if resources.threads:
        torch.set_num_threads(resources.threads)
    idle = WARM_UP + steps
    total = idle + PROFILER_WARM_UP + steps + 1  # the last one ends the training, with a checkpoint
    share = max(1, spec.train.batch_size // resources.num_processes)
    short = spec.train.model_copy(update={"steps": total, "batch_size": share})
    profiled = spec.model_copy(update={"train": short})
    data = make_dataset(spec.data, data_root)
    training = Training(profiled, make_method(profiled, data, resources, device), device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    times: dict[int, float] = {}

    averages: list[Any] = []

    def on_trace(profiler: Any) -> None:
        averages.extend(profiler.key_averages())
        profiler.export_chrome_trace(str(trace))

    plan = schedule(wait=idle, warmup=PROFILER_WARM_UP, active=steps, repeat=1)
    with (
        tempfile.TemporaryDirectory() as scratch,
        profile(activities=activities, schedule=plan, on_trace_ready=on_trace, acc_events=True) as profiler,
        recorded_ranges(),
    ):

        def after_step(done: int) -> None:
            if done in (WARM_UP, idle):
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times[done] = time.perf_counter()
            profiler.step()

        directory = RunDirectory(Path(scratch) / spec.run_key).create(profiled.plain, SCHEMA_VERSION)
        with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
            train(
                training,
                data,
                journal=journal,
                checkpoints=Checkpoints(directory.checkpoints_folder),
                records=Records(log_every=records.log_every, checkpoint_every_seconds=1e9),
                measure=after_step,
                on_log=lambda step, values: None,
                stop_requested=lambda: False,
            )
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    num_steps, profiled_step_ms, parts = parts_of(events, on_device=device.type == "cuda")
    return Profile(
        device=device.type,
        device_name=cpu_name() if device.type == "cpu" else torch.cuda.get_device_name(device),
        threads=torch.get_num_threads(),
        batch_size=share,
        num_processes=resources.num_processes,
        num_steps=num_steps,
        step_ms=1e3 * (times[idle] - times[WARM_UP]) / steps,
        profiled_step_ms=profiled_step_ms,
        parts=tuple(parts),
        operators=tuple(_operators(averages, num_steps, on_device=device.type == "cuda")),
        trace=trace,
    )


def parts_of(events: Iterable[Mapping[str, Any]], *, on_device: bool) -> tuple[int, float, list[Part]]:
    """Return the number of steps in a Chrome trace, the milliseconds of one, and those of its parts, `other` last.

    A kernel belongs to the part in which the host launched it. It may run much later, and the backward pass launches
    its kernels from a thread of its own while the training's waits.
    """
    complete = [event for event in events if event.get("ph") == "X"]
    annotations = [event for event in complete if event.get("cat") == "user_annotation"]
    steps = [event for event in annotations if event["name"].startswith("ProfilerStep")]
    ranges = sorted((event for event in annotations if event["name"] in RANGES), key=itemgetter("ts"))
    num_steps, step_us = len(steps), sum(step["dur"] for step in steps)
    host = dict.fromkeys(RANGES, 0.0)
    for event in ranges:
        host[event["name"]] += event["dur"]
    device = {name: 0.0 for name in (*RANGES, OTHER)}
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in complete
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    starts = [event["ts"] for event in ranges]
    for event in complete:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            moment = launched.get(event.get("args", {}).get("correlation"), event["ts"])
            index = bisect.bisect_right(starts, moment) - 1
            inside = index >= 0 and moment <= ranges[index]["ts"] + ranges[index]["dur"]
            device[ranges[index]["name"] if inside else OTHER] += event["dur"]
    host_of = host | {OTHER: step_us - sum(host.values())}
    parts = [
        Part(name, us / num_steps / 1e3, device[name] / num_steps / 1e3 if on_device else None)
        for name, us in host_of.items()
    ]
    return num_steps, step_us / num_steps / 1e3, parts


def _operators(averages: Any, num_steps: int, *, on_device: bool) -> list[Operator]:
    """Return the operators that take the most time of their own."""

    def self_us(average: Any) -> float:
        return average.self_device_time_total if on_device else average.self_cpu_time_total

    operators = [average for average in averages if average.key.startswith(("aten::", "c10d::", "triton"))]
    costly = sorted(operators, key=self_us, reverse=True)[:MOST_OPERATORS]
    return [Operator(each.key, each.count / num_steps, self_us(each) / num_steps / 1e3) for each in costly]
