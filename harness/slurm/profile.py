"""Profiles of SLURM clusters (slurm/clusters/*.yaml), and the job parameters of a class of resources."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from harness.errors import LaunchError
from harness.spec.base import SpecModel
from harness.spec.resources import Resources
from harness.study.document import SourceLocation, parse_yaml
from harness.text import did_you_mean


class Profile(SpecModel):
    """What jobs request on a cluster, and how it treats them. A study's `resources` override these values."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time_minutes: int | None = Field(None, ge=1)
    gpus_per_node: int | None = Field(None, ge=0)
    cpus: int | None = Field(None, ge=1)
    memory_gib: float | None = Field(None, gt=0)
    pack: int | None = Field(None, ge=1)
    max_parallel: int = Field(64, ge=1)  # jobs of one array that run at the same time
    max_array_size: int | None = Field(None, ge=1)  # None: from `scontrol show config`
    modules: tuple[str, ...] = ()  # loaded before the job: cuda/12.4
    setup: tuple[str, ...] = ()  # more shell lines before the job
    scratch: str | None = None  # a folder on the compute node for temporary files; may name $SLURM_JOB_ID
    preempt_mode: Literal["requeue", "cancel"] = "requeue"  # cancel: SLURM does not requeue a preempted job
    tracking_uri: str | None = None  # an MLflow server
    compute_nodes_reach_server: bool = False  # else `harness sync --watch` on the login node uploads the records

    def resolve(self, resources: Resources, name: str) -> Any:
        """Return the study's value, else this profile's, else the default."""
        value = getattr(self, name)
        return value if value is not None and name not in resources.model_fields_set else getattr(resources, name)


def load_profile(path: Path) -> Profile:
    """Read a profile from its YAML file.

    Raises:
        LaunchError: the file cannot be read, or has an unknown key or a wrong value: `file:line: key: what is wrong`.
        SpecError: it is not valid YAML.
    """
    try:
        value, locations = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(value, dict | None):
        raise LaunchError(f"{path}:1: a profile is a mapping, such as partition: gpu")
    try:
        return Profile.model_validate(value or {})
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = problem["loc"][0]
            message = problem["msg"][0].lower() + problem["msg"][1:]
            if problem["type"] == "extra_forbidden":
                message = f"unknown key; {did_you_mean(str(key), list(Profile.model_fields))}"
            lines.append(f"{locations.get((key,), SourceLocation(str(path), 1))}: {key}: {message}")
        raise LaunchError("\n".join(lines)) from None


def slurm_parameters(resources: Resources, profile: Profile, jobs: int | None = None) -> dict[str, Any]:
    """Return submitit's parameters for one class of resources.

    Args:
        jobs: how many jobs of an array run at a time; None takes the profile's max_parallel.
    """
    cpus = max(profile.resolve(resources, "cpus"), resources.threads or 1)
    gpus, minutes = profile.resolve(resources, "gpus_per_node"), profile.resolve(resources, "time_minutes")
    scratch = [f'export TMPDIR="{profile.scratch}"', 'mkdir -p "$TMPDIR"'] if profile.scratch else []
    setup = [*(f"module load {module}" for module in profile.modules), *scratch, *profile.setup]
    return {
        "timeout_min": minutes,
        "nodes": resources.nodes,
        "tasks_per_node": resources.num_processes // resources.nodes,
        "cpus_per_task": cpus,
        "gpus_per_node": gpus or None,
        "mem_gb": profile.resolve(resources, "memory_gib"),
        "slurm_partition": profile.partition,
        "slurm_account": profile.account,
        "slurm_qos": profile.qos,
        "slurm_constraint": profile.constraint,
        "slurm_signal_delay_s": min(90, 6 * minutes),  # signal before the time limit, to write a checkpoint
        "slurm_array_parallelism": jobs or profile.max_parallel,
        "slurm_setup": setup,
        # Since 22.05 srun does not inherit the number from sbatch, and the task would be bound to one core.
        "slurm_srun_args": [f"--cpus-per-task={cpus}"],
        "slurm_additional_parameters": {"requeue": True},  # after a node failure, whatever the cluster's default is
    }
