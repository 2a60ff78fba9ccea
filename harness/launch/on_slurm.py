"""Submit job arrays to SLURM."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.errors import LaunchError
from harness.launch import requeue
from harness.launch.planning import Plan, PlannedRun
from harness.launch.processes import make_executor, process_environment, thread_environment
from harness.launch.slurm_job import Task
from harness.launch.submission import Submission
from harness.records import snapshot, throughput
from harness.records.files import replace_file
from harness.records.layout import SubmissionLayout
from harness.slurm.cluster import max_array_size
from harness.slurm.jobs import ignored_defaults, login_environment
from harness.slurm.profile import Profile, python_command, slurm_parameters
from harness.spec.resources import Resources
from harness.text import count


def launch_slurm(
    plan: Plan,
    runs: list[PlannedRun],
    folder: Path,
    code: dict[str, snapshot.Snapshot],
    *,
    jobs: int | None,
    profile: Profile,
    after: Sequence[str] = (),
    **options: Any,
) -> Submission:
    """Submit job arrays, one for each class of resources.

    Args:
        after: numbers of jobs that must have ended before these start.
    """
    submission = Submission(runs, folder)
    if not runs:
        return submission
    largest = max_array_size(profile)
    measured = throughput.load(plan.runs_folder)
    classes: dict[tuple[Resources, str], list[PlannedRun]] = {}
    for planned in runs:
        classes.setdefault((planned.run.resources, code[planned.run_key].id), []).append(planned)
        # Before sbatch: a job may start and write its status at once.
        planned.directory.set_status(replace(planned.status, state="queued", reason="", cause="", stopped_by=""))
    for (resources, _), members in classes.items():
        variables = snapshot.environment(code[members[0].run_key])
        parameters = slurm_parameters(resources, profile, jobs, _checkpoint_seconds(members, measured))
        if after:
            dependency = {"dependency": ":".join(["afterany", *after])}
            parameters["slurm_additional_parameters"] = parameters["slurm_additional_parameters"] | dependency
        parameters["slurm_setup"] = [*requeue.SETUP, *parameters["slurm_setup"]]
        pack = profile.resolve(resources, "pack") if resources.num_processes == 1 else 1
        threads = max(1, parameters["cpus_per_task"] // pack)
        chain = profile.chain if resources.num_processes == 1 else 1
        task = Task(
            folder,
            threads,
            preemption_cancels=profile.preempt_mode == "cancel",
            at_once=pack,
            notify=profile.notify or "",
            limit_seconds=60.0 * parameters["timeout_min"],
            lead_seconds=parameters["slurm_signal_delay_s"],
            **options,
        )
        parameters |= {"name": f"harness-{plan.study.name}", "python": python_command(profile)}
        canary = resources.canary and len(members) > 1
        size = pack * chain
        packs = [members[first : first + size] for first in range(0, len(members), size)]
        arrays = [packs[first : first + largest] for first in range(0, len(packs), largest)]
        parallel = parameters["slurm_array_parallelism"]
        unset = _unset_variables(parameters["slurm_additional_parameters"])
        with process_environment(unset | thread_environment(threads) | variables):
            if canary:
                try:
                    job = _submit_array(submission, replace(task, canary=True), [members[:1]], parameters)[0]
                except LaunchError:
                    _take_back(submission, folder)
                    raise
                canary_ends = {"dependency": f"afterok:{job.job_id}", "kill-on-invalid-dep": "yes"}
                parameters["slurm_additional_parameters"] = parameters["slurm_additional_parameters"] | canary_ends
            for array in arrays:
                share = max(1, parallel * len(array) // len(packs))  # of what may run at the same time
                limited = parameters | {"slurm_array_parallelism": share}
                for tasks, accepted in _submit_what_fits(submission, task, array, limited):
                    number = tasks[0].job_id.split("_")[0]
                    if canary:
                        _note_canary(folder, number, members[0].run_key)
                    shared = count(sum(map(len, accepted)), "run") + (f", {size} to a job" if size > 1 else "")
                    submission.notes.append(f"job {number}: {shared}, {count(threads, 'core')} each")
    _take_back(submission, folder)
    if submission.left:
        submission.notes.append(
            f"{count(len(submission.left), 'run')} not submitted, since SLURM takes no more jobs now: "
            f"{submission.refusal}; submit again when some have ended, or with --watch"
        )
    if ignored := ignored_defaults(parameters["slurm_additional_parameters"]):
        submission.notes.append(f"not used, since the study and the profile say it: {', '.join(ignored)}")
    submission.notes.append(f"logs: {folder}")
    return submission


def _checkpoint_seconds(
    members: Sequence[PlannedRun], measured: Mapping[str, Sequence[throughput.Throughput]]
) -> float | None:
    """Return the longest that a checkpoint of such runs took on any device; None if none was measured."""
    facts = (fact for planned in members for fact in measured.get(planned.run.spec.cost_key, ()))
    return max((fact.checkpoint_seconds for fact in facts if fact.checkpoint_seconds is not None), default=None)


def _submit_what_fits(
    submission: Submission, task: Task, packs: list[list[PlannedRun]], parameters: dict[str, Any]
) -> Iterator[tuple[list[Any], list[list[PlannedRun]]]]:
    """Submit packs as one array, or in smaller ones where SLURM refuses it; yield the jobs of each with their packs.

    A limit on the number of jobs is one of many reasons for a refusal, and no program can tell which from its text. So
    half as many are tried, down to one job.

    Raises:
        LaunchError: SLURM refused every one, and has taken none of this submission before.
    """
    size = len(packs)
    while packs and size:
        size = min(size, len(packs))
        try:
            jobs = _submit_array(submission, task, packs[:size], parameters)
        except LaunchError as error:
            submission.refusal = str(error)
            size //= 2
            if not size and not submission.jobs:
                _take_back(submission, task.folder)
                raise
            continue
        yield jobs, packs[:size]
        packs = packs[size:]


def _take_back(submission: Submission, folder: Path) -> None:
    """Give runs without a job the state that they had, and note them as left."""
    for planned in submission.runs:
        if not SubmissionLayout(folder).claim_path(planned.run_key).exists():
            planned.directory.set_status(planned.status)
            submission.left.append(planned)
    submission.runs = [planned for planned in submission.runs if planned not in submission.left]


def _submit_array(
    submission: Submission, task: Task, packs: list[list[PlannedRun]], parameters: dict[str, Any]
) -> list[Any]:
    """Submit one job array, and record which job has which run.

    Raises:
        LaunchError: SLURM refused.
    """
    try:
        executor = make_executor(task.folder, "slurm", max_time_limits=requeue.MAX_TIME_LIMITS, **parameters)
        array = executor.map_array(task, [tuple(planned.path.absolute() for planned in pack) for pack in packs])
    except Exception as error:
        raise LaunchError(f"SLURM did not accept the jobs: {' '.join(str(error).split())[-400:]}") from error
    for pack, job in zip(packs, array, strict=True):
        for planned in pack:
            with SubmissionLayout(task.folder).claim_path(planned.run_key).open("a") as file:
                file.write(f"{job.job_id}\n")
    submission.jobs.extend(array)
    return array


def _note_canary(folder: Path, number: str, run_key: str) -> None:
    path = SubmissionLayout(folder).submission_path
    description = json.loads(path.read_text())
    description.setdefault("canaries", {})[number] = run_key
    replace_file(path, json.dumps(description, indent=1), durable=False)


def _unset_variables(options: Iterable[str]) -> dict[str, str | None]:
    """Return the variables to unset: by which an outer job or the user's shell would change what the options say."""
    return dict.fromkeys(os.environ.keys() - login_environment(options).keys())
