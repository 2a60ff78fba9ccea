"""Estimate the cost before submitting: time a few training steps of each kind of run, and check the study's budget.

Steps are timed where the runs will run: in a separate process on this machine, or in a short job on the target
partition. They train in a scratch folder; run directories are not touched.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness import PACKAGE_ROOT
from harness.errors import HarnessError, LaunchError
from harness.launch.planning import Plan, PlannedRun, on_cluster
from harness.launch.processes import available_cores, thread_environment, visible_gpus
from harness.records import throughput
from harness.records.directory import RunDirectory
from harness.records.files import replace_file
from harness.records.plugins import freeze, read_spec
from harness.records.throughput import Throughput, cpu_name
from harness.slurm.probe import ANSWER, run_probe_job
from harness.slurm.profile import Profile, pack_of, slurm_parameters
from harness.spec.base import SCHEMA_VERSION
from harness.spec.resources import Records, Resources
from harness.spec.run import RunSpec
from harness.text import harness_command

BLOCKS = 5  # timed ones; one more before them warms up
JOB_MINUTES = 60
REQUEST = "request.json"


# ---------------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Calibrated:
    """The result of one cost class: its timing, or an error."""

    arms: tuple[str, ...]
    batch_size: int
    timing: Throughput | None
    error: str = ""


def calibrate(
    plan: Plan,
    *,
    cluster: str = "local",
    profile: Profile | None = None,
    steps: int = 20,
    only_unknown: bool = False,
    timeout_seconds: float = 1800.0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[Calibrated]:
    """Time some steps of each cost class of the runs that are left to train, and store the timings for `plan`.

    Args:
        cluster: local, or slurm: one job for each class of resources, with the settings of the real jobs.
        steps: timed steps of each class; a fifth more for warm-up.
        only_unknown: skip what has been measured on such a device already.
        timeout_seconds: how long to wait for a job, in the queue and running.
        on_progress: called with lines that report progress.

    Raises:
        LaunchError: SLURM does not accept the job, or it does not end in time or ends without an answer.
    """
    if cluster == "slurm":
        plan = on_cluster(plan, profile or Profile())
    classes: dict[Resources, dict[str, list[PlannedRun]]] = {}
    for planned in plan.runs:
        left = plan.training_seconds(planned, target_device(planned, cluster, profile))
        if left is None or (left and not only_unknown):
            by_cost = classes.setdefault(planned.run.resources, {})
            by_cost.setdefault(planned.run.spec.cost_key, []).append(planned)
    results = []
    for resources, by_cost in classes.items():
        threads, at_once = resources.threads or max(1, available_cores() // max(1, len(plan.to_do))), 1
        if cluster == "slurm":
            at_once = pack_of(resources, profile or Profile())
            threads = max(1, slurm_parameters(resources, profile or Profile())["cpus_per_task"] // at_once)
        classes_to_time = [_class_to_time(group[0]) for group in by_cost.values()]
        request = {"steps": steps, "threads": threads, "at_once": at_once, "classes": classes_to_time}
        answers = _answers(request, resources, plan, cluster, profile, timeout_seconds, on_progress)
        for group, answer in zip(by_cost.values(), answers, strict=True):
            timing = Throughput(**answer["fact"]) if "fact" in answer else None
            if timing:
                throughput.record(plan.runs_folder, timing)
            arms = tuple(dict.fromkeys(planned.run.arm for planned in group))
            results.append(Calibrated(arms, group[0].run.spec.train.batch_size, timing, answer.get("error", "")))
    return results


def target_device(planned: PlannedRun, cluster: str, profile: Profile | None = None) -> str:
    """Return the kind of device that a run would compute on: cpu or cuda."""
    resources = planned.run.resources
    if resources.device != "auto":
        return resources.device
    if cluster == "slurm":
        return "cuda" if (profile or Profile()).gpus(resources)[0] else "cpu"
    return "cuda" if visible_gpus() else "cpu"


def _class_to_time(planned: PlannedRun) -> dict[str, Any]:
    return {
        "spec": planned.run.spec.model_dump(mode="json"),
        "resources": planned.run.resources.model_dump(mode="json"),
        "data_root": planned.run.data_root,
    }


def _answers(
    request: dict[str, Any],
    resources: Resources,
    plan: Plan,
    cluster: str,
    profile: Profile | None,
    timeout_seconds: float,
    on_progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Answer `request` in a local process or in a job."""
    plan.runs_folder.mkdir(parents=True, exist_ok=True)
    # Below the runs folder, which all nodes see.
    with tempfile.TemporaryDirectory(prefix=".calibrate-", dir=plan.runs_folder, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for cost_class in request["classes"]:
            freeze(folder, cost_class["spec"].get("plugins", {}))
        (folder / REQUEST).write_text(json.dumps(request))
        if cluster == "slurm":
            result = run_probe_job(
                "harness.launch.calibrate",
                folder,
                resources,
                profile or Profile(),
                minutes=JOB_MINUTES,
                timeout_seconds=timeout_seconds,
                on_progress=on_progress,
            )
            if result.state_at_timeout:
                calibrate = harness_command(
                    "calibrate", plan.study.path, runs_folder=plan.runs_folder, sets=plan.study.sets
                )
                raise LaunchError(
                    f"calibration: job {result.job_id} was {result.state_at_timeout} after {timeout_seconds:.0f} s and "
                    "was cancelled; try again later, or wait longer: "
                    f"{calibrate} --timeout SECONDS"
                )
            answer, log = result.answer, result.log
        else:
            path = os.pathsep.join(filter(None, [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))
            threads = {"OMP_NUM_THREADS": str(request["threads"]), "PYTHONPATH": path}
            command = [sys.executable, "-m", "harness.launch.calibrate", name]
            done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
            answered = folder / ANSWER
            answer, log = answered.read_text() if answered.exists() else None, done.stderr
        if answer is None:
            last = " | ".join(log.strip().splitlines()[-3:]) or "it left no log (out of memory? a folder not shared?)"
            raise LaunchError(f"calibration ended without an answer: {last}")
        return json.loads(answer)


def time_steps(spec: RunSpec, resources: Resources, data_root: str | None, *, steps: int, scratch: Path) -> Throughput:
    """Train some steps of a run by the real loop, and return the time per step and the size of a checkpoint.

    The loop synchronises with the device where it logs, so it logs only at the ends of blocks. The first block is
    warm-up; of the others the median is used. Several processes are timed as one with its share of the batch, so the
    time for communication is not included.
    """
    import torch

    from harness.datasets import make_dataset
    from harness.job.environment import choose_device
    from harness.job.kernels import keep_freed_memory, prepare_compiler
    from harness.registry import make_method
    from harness.training.checkpoints import Checkpoints
    from harness.training.loop import Training, train

    block = max(1, steps // BLOCKS)
    processes = resources.num_processes
    share = max(1, spec.train.batch_size // processes)
    short = spec.train.model_copy(update={"steps": block * (BLOCKS + 1), "batch_size": share})
    timed = spec.model_copy(update={"train": short})
    device = choose_device(resources.device)
    torch.use_deterministic_algorithms(resources.deterministic)
    prepare_compiler(resources.kernels, device)
    keep_freed_memory()
    data = make_dataset(spec.data, data_root)
    training = Training(timed, make_method(timed, data, resources, device), device)
    directory = RunDirectory(scratch / spec.run_key).create(timed.model_dump(mode="json"), SCHEMA_VERSION)
    speeds: list[float] = []
    checkpoints = Checkpoints(directory.checkpoints_folder)
    with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
        train(
            training,
            data,
            journal=journal,
            checkpoints=checkpoints,
            records=Records(log_every=block, checkpoint_every_seconds=1e9),
            measure=lambda step: None,
            on_log=lambda step, values: speeds.append(values["perf/steps_per_second"]),
            stop_requested=lambda: False,
        )
    (checkpoint,) = checkpoints.folder.glob("step-*.pt")
    return Throughput(
        spec.cost_key,
        1 / statistics.median(speeds[1:]),
        device=device.type,
        device_name=cpu_name() if device.type == "cpu" else torch.cuda.get_device_name(device),
        threads=torch.get_num_threads(),
        num_processes=processes,
        runs_per_gpu=throughput.runs_sharing_gpu() if device.type == "cuda" else 1,
        precision=spec.train.precision,
        kernels=resources.kernels,
        checkpoint_bytes=checkpoint.stat().st_size,
        checkpoint_seconds=checkpoints.slowest_seconds,
    )


def main(folder: Path) -> None:
    """Answer the request in a folder; an error in one class does not affect the others.

    Runs that share a job are timed as they will run: as many processes at once, with their share of the cores and GPUs.
    """
    request = json.loads((folder / REQUEST).read_text())
    if request["at_once"] == 1:
        answers = _time_classes(folder, request)
    else:
        answers = _slowest(_time_side_by_side(folder, request["at_once"], request["threads"]))
    replace_file(folder / ANSWER, json.dumps(answers), durable=True)


def _time_side_by_side(folder: Path, at_once: int, threads: int) -> list[list[dict[str, Any]]]:
    """Return the answers of several processes that time the same classes at once."""
    gpus, processes = visible_gpus(), []
    for slot in range(at_once):
        variables = thread_environment(threads) | {throughput.RUNS_PER_GPU: str(math.ceil(at_once / max(1, len(gpus))))}
        if gpus:
            variables["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        command = [sys.executable, "-m", "harness.launch.calibrate", str(folder), str(slot)]
        processes.append(subprocess.Popen(command, env=os.environ | variables))
    if failed := [code for process in processes if (code := process.wait())]:
        raise LaunchError(f"{len(failed)} of {at_once} processes of a shared job ended with exit code {failed[0]}")
    return [json.loads((folder / f"answer-{slot}.json").read_text()) for slot in range(at_once)]


def _slowest(answers: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return for each class the slowest of its timings, an error if there is one."""
    return [
        max(of_class, key=lambda answer: answer["fact"]["seconds_per_step"] if "fact" in answer else math.inf)
        for of_class in zip(*answers, strict=True)
    ]


def _time_classes(folder: Path, request: dict[str, Any]) -> list[dict[str, Any]]:
    import torch

    torch.set_num_threads(request["threads"])
    answers: list[dict[str, Any]] = []
    for entry in request["classes"]:
        spec, resources = read_spec(folder, entry["spec"]), Resources.model_validate(entry["resources"])
        with tempfile.TemporaryDirectory() as scratch:
            try:
                timing = time_steps(spec, resources, entry["data_root"], steps=request["steps"], scratch=Path(scratch))
                answers.append({"fact": asdict(timing)})
            except (HarnessError, RuntimeError) as error:  # such as CUDA out of memory
                answers.append({"error": " ".join(str(error).split())[:300]})
    return answers


def _main_of_one(folder: Path, slot: str) -> None:
    """Time the classes of a request as one of several processes."""
    answers = _time_classes(folder, json.loads((folder / REQUEST).read_text()))
    replace_file(folder / f"answer-{slot}.json", json.dumps(answers), durable=False)


# ------------------------------------------------------------------------------------------------------------- budget


def require_within_budget(
    plan: Plan,
    *,
    cluster: str = "local",
    profile: Profile | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Refuse a study whose training and evaluations would exceed its budget; time what is unknown first.

    What remains of the whole study is counted, and all GPUs that its jobs hold; of its evaluations that whose number of
    network evaluations is known. An hour of a run without a GPU counts like a GPU hour.

    Raises:
        LaunchError: over the budget, or the cost could not be measured; nothing is queued then.
    """
    budget = plan.study.budget_gpu_hours
    if budget is None:
        return
    plan = on_cluster(plan, profile or Profile()) if cluster == "slurm" else plan

    def hours_left(plan: Plan) -> list[float | None]:
        return [plan.device_hours(planned, target_device(planned, cluster, profile)) for planned in plan.runs]

    if None in hours_left(plan):
        on_progress("the study has a budget and its cost is not known yet: timing some steps first")
        results = calibrate(plan, cluster=cluster, profile=profile, only_unknown=True, on_progress=on_progress)
        if failed := [result for result in results if result.timing is None]:
            raise LaunchError(f"{', '.join(failed[0].arms)}: no step could be timed: {failed[0].error}")
        plan = replace(plan)  # without the cached timings
    hours = hours_left(plan)
    if None in hours:
        raise LaunchError(
            "the steps were timed on another kind of device than the study's resources request; "
            "set resources.device and gpus_per_node to match the cluster"
        )
    training = sum(known for known in hours if known is not None)
    to_evaluate = [plan.evaluation_hours(planned, target_device(planned, cluster, profile)) for planned in plan.runs]
    if uncounted := plan.uncounted_parts():
        on_progress(f"not in the budget, since their cost is not known before: {', '.join(uncounted)}")
    if training + sum(to_evaluate) > budget:
        arms: dict[str, float] = {}
        for planned, left, more in zip(plan.runs, hours, to_evaluate, strict=True):
            arms[planned.run.arm] = arms.get(planned.run.arm, 0.0) + (left or 0.0) + more
        most_expensive = max(arms, key=lambda arm: arms[arm])
        evaluations = f" and about {sum(to_evaluate):.3g} to evaluate" if any(to_evaluate) else ""
        shown = harness_command("plan", plan.study.path, runs_folder=plan.runs_folder, sets=plan.study.sets)
        raise LaunchError(
            f"over budget: {training:.3g} device hours are left to train{evaluations}, budget_gpu_hours is {budget:g}; "
            f"nothing was submitted. The most expensive arm is {most_expensive} "
            f"({arms[most_expensive]:.3g} device hours); "
            f"`{shown}` shows each run"
        )


if __name__ == "__main__":
    if len(sys.argv) > 2:
        _main_of_one(Path(sys.argv[1]), sys.argv[2])
    else:
        main(Path(sys.argv[1]))
