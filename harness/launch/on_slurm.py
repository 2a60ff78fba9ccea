"""Submit job arrays to SLURM."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.launch import requeue
from harness.launch.lanes import Lanes, count_arrays, earlier_arrays, lanes_of
from harness.launch.nodes import exclude_option, excluded, note_failed_nodes
from harness.launch.planning import Plan, PlannedRun
from harness.launch.processes import batch_script, make_executor, process_environment, thread_environment
from harness.launch.slurm_job import Task
from harness.launch.submission import Refused, Submission
from harness.records import snapshot, throughput
from harness.records.files import replace_file
from harness.records.layout import SubmissionLayout
from harness.slurm.cluster import max_array_size
from harness.slurm.jobs import check_script, ignored_defaults, live_jobs, login_environment
from harness.slurm.limits import room_for_jobs
from harness.slurm.profile import Profile, pack_of, python_command, slurm_parameters
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
    at_most: int | None = None,
    **options: Any,
) -> Submission:
    """Submit job arrays, one for each class of resources.

    Args:
        after: numbers of jobs that must have ended before these start.
        at_most: how many jobs are submitted; None submits all.

    Raises:
        Refused: SLURM takes not one job.
    """
    submission = Submission(runs, folder)
    if not runs:
        return submission
    largest = max_array_size(profile)
    measured = throughput.load(plan.runs_folder)
    note_failed_nodes(plan.runs_folder, [planned.job for planned in plan.runs])
    broken = excluded(plan.runs_folder)
    profile = profile.model_copy(update={"exclude": exclude_option(profile.exclude, broken)})
    submission.notes += [entry.describe(plan.runs_folder) for entry in broken]
    classes: dict[tuple[Resources, str], list[PlannedRun]] = {}
    for planned in runs:
        classes.setdefault((planned.run.resources, code[planned.run_key].id), []).append(planned)
    sizes = {key: runs_of_a_job(key[0], profile) for key in classes}
    num_jobs = sum(math.ceil(len(members) / sizes[key]) for key, members in classes.items())
    queue = _Queue(
        submission, _lanes(plan, folder, jobs or profile.max_parallel), profile, num_jobs, at_most or num_jobs
    )
    for key, members in classes.items():
        queue.begin_class()
        resources, size = key[0], sizes[key]
        variables = snapshot.environment(code[members[0].run_key])
        parameters = job_parameters(resources, profile, plan.study.name, _checkpoint_seconds(members, measured))
        pack = pack_of(resources, profile)
        threads = max(1, parameters["cpus_per_task"] // pack)
        task = Task(
            folder,
            threads,
            preemption_cancels=profile.preempt_mode == "cancel",
            at_once=pack,
            notify=profile.notify or "",
            limit_seconds=60.0 * parameters["timeout_min"],
            lead_seconds=parameters["slurm_signal_delay_s"],
            exclude=profile.exclude or "",
            **options,
        )
        packs = [members[first : first + size] for first in range(0, len(members), size)]
        conditions = [":".join(["afterany", *after])] if after else []
        unset = _unset_variables(parameters["slurm_additional_parameters"])
        with process_environment(unset | thread_environment(threads) | variables):
            canary = ""
            if resources.canary and len(members) > 1:
                try:
                    alone = _with_options(parameters, dependency=",".join(conditions))
                    canary = _submit_array(submission, replace(task, canary=True), [members[:1]], alone)[0].job_id
                except Refused as error:
                    queue.refused(error)
                    continue
                conditions = [f"afterok:{canary}"]
                parameters = _with_options(parameters, **{"kill-on-invalid-dep": "yes"})
            for first in range(0, len(packs), largest):
                array = packs[first : first + largest]
                for tasks, accepted in queue.submit_what_fits(task, array, parameters, conditions):
                    number = tasks[0].job_id.split("_")[0]
                    if canary:
                        _describe(folder, "canaries", number, members[0].run_key)
                    shared = count(sum(map(len, accepted)), "run") + (f", {size} to a job" if size > 1 else "")
                    submission.notes.append(f"job {number}: {shared}, {count(threads, 'core')} each")
    if not submission.jobs:
        raise Refused(submission.refusal)
    _set_aside(submission)
    if submission.left and submission.refusal:
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


def job_parameters(
    resources: Resources, profile: Profile, study: str, checkpoint_seconds: float | None = None
) -> dict[str, Any]:
    """Return the parameters of `make_executor` for the jobs of one class of resources."""
    parameters = slurm_parameters(resources, profile, checkpoint_seconds)
    parameters["slurm_setup"] = [*requeue.SETUP, *parameters["slurm_setup"]]
    limits = {"max_time_limits": requeue.MAX_TIME_LIMITS}
    return parameters | limits | {"name": f"harness-{study}", "python": python_command(profile)}


def check_accepted(resources: Resources, profile: Profile, study: str) -> None:
    """Let SLURM check the script by which such jobs are submitted; nothing is.

    Raises:
        LaunchError: SLURM would not accept it; with its reason.
    """
    parameters = job_parameters(resources, profile, study) | {"slurm_array_parallelism": 1}
    options = parameters["slurm_additional_parameters"]
    with tempfile.TemporaryDirectory(prefix="harness-doctor-") as name:
        script = Path(name) / "job.sh"
        script.write_text(batch_script(Path(name), 1, **parameters))
        check_script(script, options)


def runs_of_a_job(resources: Resources, profile: Profile) -> int:
    """Return how many runs share a job: those at the same time and those one after another."""
    return pack_of(resources, profile) * (profile.chain if resources.num_processes == 1 else 1)


def _lanes(plan: Plan, folder: Path, limit: int) -> Lanes:
    """Return the lanes of a study, of which its earlier submissions may have some.

    Raises:
        LaunchError: SLURM does not answer.
    """
    arrays = earlier_arrays(plan.runs_folder, plan.study.name, folder)
    queued = count_arrays(live_jobs()) if arrays else {}
    return lanes_of(arrays, queued, limit)


@dataclass
class _Queue:
    """What SLURM takes of one submission.

    Attributes:
        num_left: jobs that SLURM has not taken yet.
        budget: how many jobs may be tried still, so that SLURM is not asked for what it is known to refuse.
        size: how many jobs are tried next.
    """

    submission: Submission
    lanes: Lanes
    profile: Profile
    num_left: int
    budget: int
    size: int = 0

    def begin_class(self) -> None:
        """Begin with all jobs, after a refusal too: another reason than a limit may not hold for the next class."""
        self.size = self.num_left

    def submit_what_fits(
        self, task: Task, packs: list[list[PlannedRun]], parameters: dict[str, Any], conditions: Sequence[str]
    ) -> Iterator[tuple[list[Any], list[list[PlannedRun]]]]:
        """Submit packs as one array, or in smaller ones where SLURM refuses it; yield each one's jobs with their packs.

        A limit on the number of jobs is one of many reasons for a refusal, and no program can tell which from its text.
        So half as many are tried, or as many as there is room for below the limits that are known, down to one job.

        Args:
            conditions: dependencies of the jobs.
        """
        while packs and (size := min(self.size, self.budget, len(packs))):
            lane = self.lanes.place(size, size if self.budget < self.num_left else max(size, self.num_left))
            before = lane.last
            depends = [*conditions, *([f"afterany:{before}"] if before else [])]
            limited = _with_options(parameters | {"slurm_array_parallelism": lane.share}, dependency=",".join(depends))
            try:
                jobs = _submit_array(self.submission, task, packs[:size], limited)
            except Refused as error:
                self.refused(error, size)
                continue
            number = jobs[0].job_id.split("_")[0]
            self.lanes.add(lane, number, size)
            _describe(task.folder, "arrays", number, [lane.share, before])
            yield jobs, packs[:size]
            packs, self.num_left, self.budget = packs[size:], self.num_left - size, self.budget - size

    def refused(self, error: Refused, size: int = 1) -> None:
        """Choose how many jobs are tried next: none of this class after a single one was refused."""
        first = not self.submission.refusal
        self.submission.refusal = str(error)
        self.size = size // 2
        if first and self.size and (room := room_for_jobs(self.profile)) is not None:
            self.budget = max(1, min(room, size - 1))
            self.size = self.budget


def _with_options(parameters: dict[str, Any], **options: str) -> dict[str, Any]:
    """Return parameters with more options of sbatch, those that are not empty."""
    given = {name: value for name, value in options.items() if value}
    return parameters | {"slurm_additional_parameters": parameters["slurm_additional_parameters"] | given}


def _set_aside(submission: Submission) -> None:
    """Note as left the runs without a job."""
    layout = SubmissionLayout(submission.folder)
    submission.left = [planned for planned in submission.runs if not layout.claim_path(planned.run_key).exists()]
    left = {planned.run_key for planned in submission.left}
    submission.runs = [planned for planned in submission.runs if planned.run_key not in left]
    if left:  # its jobs tell when all of its runs have ended
        description = json.loads(layout.submission_path.read_text())
        description["runs"] = [planned.run_key for planned in submission.runs]
        replace_file(layout.submission_path, json.dumps(description, indent=1), durable=False)


def _submit_array(
    submission: Submission, task: Task, packs: list[list[PlannedRun]], parameters: dict[str, Any]
) -> list[Any]:
    """Submit one job array, and record which job has which run.

    Raises:
        Refused: SLURM refused. The runs keep the state that they had.
    """
    runs = [planned for pack in packs for planned in pack]
    for planned in runs:  # before sbatch: a job may start and write its status at once
        planned.directory.set_status(replace(planned.status, state="queued", reason="", cause="", stopped_by=""))
    try:
        executor = make_executor(task.folder, "slurm", **parameters)
        array = executor.map_array(task, [tuple(planned.path.absolute() for planned in pack) for pack in packs])
    except Exception as error:
        for planned in runs:
            if not SubmissionLayout(task.folder).claim_path(planned.run_key).exists():  # a canary has a job already
                planned.directory.set_status(planned.status)
        raise Refused(f"SLURM did not accept the jobs: {' '.join(str(error).split())[-400:]}") from error
    for pack, job in zip(packs, array, strict=True):
        for planned in pack:
            with SubmissionLayout(task.folder).claim_path(planned.run_key).open("a") as file:
                file.write(f"{job.job_id}\n")
    submission.jobs.extend(array)
    return array


def _describe(folder: Path, kind: str, number: str, value: Any) -> None:
    """Note a fact of an array in the description of its submission."""
    path = SubmissionLayout(folder).submission_path
    description = json.loads(path.read_text())
    description.setdefault(kind, {})[number] = value
    replace_file(path, json.dumps(description, indent=1), durable=False)


def _unset_variables(options: Iterable[str]) -> dict[str, str | None]:
    """Return the variables to unset: by which an outer job or the user's shell would change what the options say."""
    return dict.fromkeys(os.environ.keys() - login_environment(options).keys())
