"""Check what a submission to SLURM would meet: its limits on jobs, its rules for the script, and the job's modules."""

from __future__ import annotations

import math
import shlex
import subprocess
from collections.abc import Iterator, Mapping

from harness.doctor.findings import Finding, ok, one_line, problem, warning
from harness.errors import LaunchError
from harness.launch.on_slurm import check_accepted, runs_of_a_job
from harness.launch.planning import Plan
from harness.slurm.cluster import ClusterInfo
from harness.slurm.limits import SubmitLimit, read_submit_limit
from harness.slurm.profile import Profile, slurm_parameters
from harness.spec.resources import Resources
from harness.text import count, harness_command

MODULE_SECONDS = 30  # `module load` reads a shared file system


def check_limits(slurm: ClusterInfo, profile: Profile, plan: Plan | None) -> Iterator[Finding]:
    """Check a study's number of jobs against the limits on those in the queue."""
    limits = [SubmitLimit(int(slurm.config.get("MaxJobCount", 10_000)), "MaxJobCount of the whole cluster")]
    enforced = {"limits", "safe", "all"} & set(slurm.config.get("AccountingStorageEnforce", "").lower().split(","))
    try:
        if enforced and (own := read_submit_limit(profile)):
            limits.append(own)
    except LaunchError as error:
        yield warning(f"the limits on your jobs are not known: {one_line(str(error))}")
    yield check_number_of_jobs(min(limits, key=lambda limit: limit.jobs), profile, plan)


def check_number_of_jobs(limit: SubmitLimit, profile: Profile, plan: Plan | None) -> Finding:
    """Check a study's number of jobs against a limit."""
    state = f"up to {count(limit.jobs, 'job')} of yours may be in the queue ({limit.name})"
    if plan is None:
        return ok(state)
    of_class: dict[Resources, int] = {}
    for planned in plan.to_do:
        of_class[planned.run.resources] = of_class.get(planned.run.resources, 0) + 1
    jobs = sum(math.ceil(runs / runs_of_a_job(resources, profile)) for resources, runs in of_class.items())
    if jobs <= limit.jobs:
        return ok(f"{state}, and the study has {count(jobs, 'job')} to submit")
    submit = harness_command("submit", plan.study.path, "--cluster", "slurm", "--watch", runs_folder=plan.runs_folder)
    return warning(
        f"{state}, and the study has {count(jobs, 'job')} to submit: `{submit}` "
        "brings the rest as others end; several runs to a job (pack, chain) take fewer jobs"
    )


def check_jobs(profile: Profile, classes: Mapping[str, Resources], plan: Plan | None) -> Iterator[Finding]:
    """Let SLURM itself check the script of the jobs, since it has rules that no table shows; nothing is submitted."""
    study = plan.study.name if plan else "doctor"
    for arms, resources in classes.items():
        try:
            check_accepted(resources, profile, study)
        except LaunchError as error:
            options = slurm_parameters(resources, profile)["slurm_additional_parameters"]
            shown = " ".join(f"--{name}={value}" for name, value in options.items())
            yield problem(f"{arms}: SLURM would not accept such a job: {one_line(str(error))}; options: {shown}")


def check_modules(profile: Profile) -> Iterator[Finding]:
    """Load the profile's modules on this machine, one after another as a job does; a job without one ends at once."""
    for number, module in enumerate(profile.modules, start=1):
        lines = [f"module load {shlex.quote(name)} >/dev/null" for name in profile.modules[:number]]
        try:
            done = subprocess.run(
                ["bash", "-c", " && ".join(lines)],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=MODULE_SECONDS,
            )
            reason = one_line(done.stderr) or f"exit code {done.returncode}"
        except (OSError, subprocess.TimeoutExpired) as error:
            done, reason = None, one_line(str(error))
        if done is None or done.returncode:
            yield warning(
                f"`module load {module}` fails on this machine ({reason}), and where it fails a job ends at once: "
                f"`module avail {module.split('/')[0]}` shows what there is; correct modules: in the profile"
            )
            return
    if profile.modules:
        yield ok(f"modules that can be loaded here: {', '.join(profile.modules)}")
