"""Profiles of SLURM clusters (slurm/clusters/*.yaml), and the job parameters of a class of resources."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from harness.errors import LaunchError
from harness.slurm.time_limit import needed_lead_seconds
from harness.spec.base import SpecModel
from harness.spec.resources import Resources
from harness.study.document import SourceLocation, parse_yaml
from harness.text import did_you_mean

_GPUS = r"^([A-Za-z0-9_.-]+:)?[0-9]+$"  # 4, h100:4
_PRINTABLE = r"^[^\x00-\x1f\x7f]+$"
_OPTION = r"^[a-z][a-z0-9-]*$"
Text = Annotated[str, Field(pattern=_PRINTABLE)]
Options = dict[Annotated[str, Field(pattern=_OPTION)], bool | int | float | Text]

OF_THE_HARNESS = {
    **dict.fromkeys(("array", "job-name", "output", "error", "open-mode", "signal", "requeue", "no-requeue"), ""),
    **dict.fromkeys(("wrap", "parsable", "test-only", "wait", "export", "export-file", "dependency", "chdir"), ""),
    **{"time": "time_minutes", "nodes": "resources.nodes", "cpus-per-task": "cpus", "ntasks": "resources.nodes"},
    **{"ntasks-per-node": "resources.processes_per_node", "input": "", "kill-on-bad-exit": "", "unbuffered": ""},
}
"""Options of sbatch and srun that a profile cannot give -> the field that says it; empty: the harness needs its own."""


class Stage(SpecModel):
    """What every node of a job gets a copy of, and where."""

    data: Text  # a folder of the node's own disk: $SLURM_TMPDIR


class Profile(SpecModel):
    """What jobs request on a cluster, and how it treats them. A study's `resources` override these values."""

    clusters: Text | None = None  # other clusters than the login node's own: a,b
    partition: Text | None = None  # or several, a,b: SLURM takes the first that is free
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    reservation: Text | None = None
    nodelist: Text | None = None
    exclude: Text | None = None  # nodes
    exclusive: bool | Literal["user", "mcs"] = False
    licenses: Text | None = None
    wckey: Text | None = None
    comment: Text | None = None
    mail_user: Text | None = None
    mail_type: Text | None = None
    nice: int | None = None
    begin: Text | None = None  # not before: 20:00, now+1hour
    hint: Literal["compute_bound", "memory_bound", "multithread", "nomultithread"] | None = None
    sbatch: Options = Field(default_factory=dict)  # any other option: {switches: 1}
    srun: Options = Field(default_factory=dict)  # {container-image: ...}
    time_minutes: int | None = Field(None, ge=1)
    gpus_per_node: Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=_GPUS)] | None = None
    gpu_request: Literal["gpus-per-node", "gres", "gpus-per-task"] = "gpus-per-node"  # the option that asks for GPUs
    cpus: int | None = Field(None, ge=1)
    memory_gib: float | None = Field(None, gt=0)
    max_memory_gib: float | None = Field(None, gt=0)  # up to which a run asks for more after a kill for memory
    memory_request: Literal["mem", "mem-per-cpu", "all", "none"] = "mem"  # all: --mem=0; none: no option
    pack: int | None = Field(None, ge=1)
    chain: int = Field(1, ge=1)  # runs that one job works on one after another, beside those of `pack`
    max_parallel: int = Field(64, ge=1)  # jobs of a study that run at the same time
    max_array_size: int | None = Field(None, ge=1)  # None: from `scontrol show config`
    signal_lead_seconds: int | None = Field(None, ge=1, le=3600)  # before the time limit; None: as a checkpoint takes
    modules: tuple[Text, ...] = ()  # loaded before the job: cuda/12.4
    setup: tuple[str, ...] = ()  # more shell lines before the job
    scratch: str | None = None  # a folder on the compute node for temporary files; may name $SLURM_JOB_ID
    stage: Stage | None = None  # mapped arrays of the data are copied to each node: {data: $SLURM_TMPDIR}
    python: Text | None = None  # of the compute nodes; None: the one that submits
    container: Text | None = None  # what starts a program in a container: apptainer exec --nv image.sif
    notify: Text | None = None  # a command of shell, run at the first failure and when all runs have ended
    preempt_mode: Literal["requeue", "cancel"] = "requeue"  # cancel: SLURM does not requeue a preempted job
    tracking_uri: str | None = None  # an MLflow server
    compute_nodes_reach_server: bool = False  # else `harness sync --watch` on the login node uploads the records

    @field_validator("sbatch", "srun")
    @classmethod
    def _leave_ours(cls, options: Options) -> Options:
        for name in options:
            field_name = name.replace("-", "_")
            if name in OF_THE_HARNESS:
                instead = OF_THE_HARNESS[name]
                raise ValueError(f"{name}: " + (f"set {instead} instead" if instead else "the harness sets it itself"))
            if field_name in cls.model_fields and field_name not in ("sbatch", "srun"):
                raise ValueError(f"{name}: set {field_name} instead")
        return options

    def gpus(self, resources: Resources) -> tuple[int, str]:
        """Return the number of GPUs of each node, and their type where the profile gives one: `h100:4`."""
        kind, _, number = str(self.gpus_per_node or 0).rpartition(":")
        if "gpus_per_node" in resources.model_fields_set or self.gpus_per_node is None:
            return resources.gpus_per_node, kind
        return int(number), kind

    def resolve(self, resources: Resources, name: str) -> Any:
        """Return the study's value, else this profile's, else the default."""
        value = getattr(self, name)
        return value if value is not None and name not in resources.model_fields_set else getattr(resources, name)


def pack_of(resources: Resources, profile: Profile) -> int:
    """Return how many runs a job works on at a time: one, unless each has one process."""
    return profile.resolve(resources, "pack") if resources.num_processes == 1 else 1


def gpus_of_run(resources: Resources, profile: Profile) -> float:
    """Return how many GPUs a run holds: those of its nodes, used or not; of a pack its share."""
    return profile.gpus(resources)[0] * resources.nodes / pack_of(resources, profile)


def runs_per_gpu(resources: Resources, profile: Profile) -> int:
    """Return how many runs of a job share a GPU; 1 without GPUs."""
    return (
        math.ceil(pack_of(resources, profile) / max(1, profile.gpus(resources)[0]))
        if _computes_on_gpus(resources, profile)
        else 1
    )


def idle_gpus(resources: Resources, profile: Profile) -> int:
    """Return how many GPUs of each node a job holds that none of its processes uses."""
    number = profile.gpus(resources)[0]
    if not _computes_on_gpus(resources, profile):
        return number
    return max(0, number - resources.num_processes // resources.nodes * pack_of(resources, profile))


def _computes_on_gpus(resources: Resources, profile: Profile) -> bool:
    return resources.device != "cpu" and profile.gpus(resources)[0] > 0


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
            if problem["type"] == "value_error":
                message = str(problem["ctx"]["error"])
            if problem["type"] == "extra_forbidden":
                message = f"unknown key; {did_you_mean(str(key), list(Profile.model_fields))}"
            lines.append(f"{locations.get((key,), SourceLocation(str(path), 1))}: {key}: {message}")
        raise LaunchError("\n".join(lines)) from None


SIGNAL_LEAD_SECONDS = 90  # before a time limit, where no checkpoint is known to take long


def signal_lead_seconds(profile: Profile, minutes: int, checkpoint_seconds: float | None) -> int:
    """Return how long before its time limit a job is told to stop.

    Args:
        minutes: the time limit.
        checkpoint_seconds: the longest that a checkpoint of its runs took, where that was measured.
    """
    if profile.signal_lead_seconds:
        return profile.signal_lead_seconds
    needed = needed_lead_seconds(checkpoint_seconds, 60.0 * minutes) if checkpoint_seconds else 0.0
    return max(min(SIGNAL_LEAD_SECONDS, 6 * minutes), math.ceil(needed))


def slurm_parameters(resources: Resources, profile: Profile, checkpoint_seconds: float | None = None) -> dict[str, Any]:
    """Return submitit's parameters for one class of resources.

    Args:
        checkpoint_seconds: of `signal_lead_seconds`.
    """
    cpus = max(profile.resolve(resources, "cpus"), resources.threads or 1)
    minutes = profile.resolve(resources, "time_minutes")
    tasks_per_node = resources.num_processes // resources.nodes
    return {
        "timeout_min": minutes,
        "nodes": resources.nodes,
        "tasks_per_node": tasks_per_node,
        "cpus_per_task": cpus,
        "slurm_signal_delay_s": signal_lead_seconds(profile, minutes, checkpoint_seconds),
        "slurm_setup": _setup(profile),
        "slurm_wckey": profile.wckey,  # submitit's own would be refused where wckeys are enforced
        "slurm_srun_args": [
            f"--cpus-per-task={cpus}",  # since 22.05 srun does not inherit it, and a task would be bound to one core
            "--wait=0",  # the first process evaluates for long after the others have left
            *_as_options(profile.srun),
        ],
        "slurm_additional_parameters": {
            **_requests(resources, profile, cpus * tasks_per_node, tasks_per_node),
            "requeue": True,  # after a node failure, whatever the cluster's default is
        },
    }


SCRATCH = """\
mkdir -p "{folder}"
export TMPDIR="$(mktemp -d -p "{folder}" harness-XXXXXXXX)"
harness_scratch="$TMPDIR"
"""
"""Shell lines that make a folder of the job's own, which `REMOVE_SCRATCH` removes at its end."""
STAGE = """\
export HARNESS_STAGE="{folder}/harness-stage-$SLURM_JOB_ID"
case "$HARNESS_STAGE" in /harness-stage-*|[!/]*) echo "stage: {shown} is no folder here" >&2; unset HARNESS_STAGE;; esac
[ -z "${{HARNESS_STAGE:-}}" ] || rm -rf -- "$HARNESS_STAGE"
"""
"""Shell lines that name a folder of the job's own on each node (harness/data/staging.py), without what a kill left."""
REMOVE_STAGE = (
    'if [ -n "${HARNESS_STAGE:-}" ]; then',
    '    [ "${SLURM_JOB_NUM_NODES:-1}" -le 1 ] ||'
    ' srun --overlap --ntasks-per-node=1 --ntasks="$SLURM_JOB_NUM_NODES" rm -rf -- "$HARNESS_STAGE"',
    '    rm -rf -- "$HARNESS_STAGE"',
    "fi",
)
REMOVE_SCRATCH = '[ -z "${harness_scratch:-}" ] || rm -rf -- "$harness_scratch"'

NAMED_OPTIONS = (
    *("clusters", "partition", "account", "qos", "constraint", "reservation", "nodelist", "exclude", "licenses"),
    *("comment", "mail_user", "mail_type", "nice", "begin", "hint"),
)
"""Fields of a profile that are options of sbatch, by the same name."""


def _requests(resources: Resources, profile: Profile, cores: int, tasks_per_node: int) -> dict[str, Any]:
    """Return the options of sbatch that the harness leaves to the profile.

    Args:
        cores, tasks_per_node: of each node.
    """
    options = {name.replace("_", "-"): getattr(profile, name) for name in NAMED_OPTIONS}
    options["exclusive"] = profile.exclusive or None
    number, kind = profile.gpus(resources)
    if number:
        of_kind = f"{kind}:" if kind else ""
        match profile.gpu_request:
            case "gres":
                options["gres"] = f"gpu:{of_kind}{number}"
            case "gpus-per-task":
                options["gpus-per-task"] = f"{of_kind}{max(1, number // tasks_per_node)}"
            case "gpus-per-node":
                options["gpus-per-node"] = f"{of_kind}{number}"
    mib = math.ceil(1024 * profile.resolve(resources, "memory_gib"))
    options |= {
        "mem": {"mem": f"{mib}M"},
        "mem-per-cpu": {"mem-per-cpu": f"{math.ceil(mib / cores)}M"},
        "all": {"mem": "0"},
        "none": {},
    }[profile.memory_request]
    return {name: value for name, value in options.items() if value is not None} | profile.sbatch


def _setup(profile: Profile) -> list[str]:
    """Return the lines of shell that come before the job's Python."""
    modules = [
        f"module load {module} || {{ echo 'module load {module} failed' >&2; exit 1; }}" for module in profile.modules
    ]
    scratch = SCRATCH.format(folder=profile.scratch).splitlines() if profile.scratch else []
    stage = []
    if profile.stage:
        folder = profile.stage.data
        stage = STAGE.format(folder=folder, shown=folder.replace("$", "\\$")).splitlines()
    return [*modules, *scratch, *stage, *profile.setup]


def python_command(profile: Profile) -> str:
    """Return how a compute node starts Python, as words of shell."""
    python = profile.python or shlex.quote(sys.executable)
    return f"{profile.container} {python}" if profile.container else python


def _as_options(options: Options) -> list[str]:
    return [
        f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items() if value is not False
    ]
