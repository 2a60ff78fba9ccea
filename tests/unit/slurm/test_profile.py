"""A profile is read with its file and line in errors, and stands between a study and the defaults."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import LaunchError, SpecError
from harness.launch.on_slurm import job_parameters
from harness.launch.processes import batch_script
from harness.slurm.kills import REQUEUE_WHEN_KILLED
from harness.slurm.profile import Profile, load_profile, python_command, slurm_parameters
from harness.spec.resources import Resources


def write_profile(tmp_path: Path, text: str) -> Profile:
    (tmp_path / "cluster.yaml").write_text(text)
    return load_profile(tmp_path / "cluster.yaml")


def test_a_study_goes_before_the_cluster_and_the_cluster_before_the_defaults(tmp_path):
    gpu_cluster = write_profile(
        tmp_path, "partition: gpu\ngpus_per_node: 1\ncpus: 8\ntime_minutes: 240\nsetup: [module load cuda]\n"
    )
    parameters = slurm_parameters(Resources(cpus=2), gpu_cluster)
    assert parameters["cpus_per_task"] == 2  # the study
    options = parameters["slurm_additional_parameters"]
    assert options["gpus-per-node"] == "1"  # the cluster
    assert options["mem"] == "4096M"  # the default
    assert parameters["timeout_min"] == 240
    assert options["partition"] == "gpu"
    assert parameters["slurm_setup"] == ["module load cuda"]
    assert slurm_parameters(Resources(threads=6, cpus=2), gpu_cluster)["cpus_per_task"] == 6


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "partition: gpu\npartiton: x\n",
            LaunchError,
            r"cluster.yaml:2: partiton: unknown key; did you mean 'partition'\?",
        ),
        ("gpus_per_node: many\n", LaunchError, r"cluster.yaml:1: gpus_per_node: .*"),
        ("- gpu\n", LaunchError, r"cluster.yaml:1: a profile is a mapping, such as partition: gpu"),
        ("a: [\n", SpecError, r"cluster.yaml:2: not YAML"),
    ],
)
def test_a_bad_profile_is_refused_with_file_and_line(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        write_profile(tmp_path, text)


@pytest.mark.parametrize(
    ("lines", "minutes", "checkpoint_seconds", "lead"),
    [
        ("", 60, None, 90),
        ("", 5, None, 30),
        ("", 60, 4.0, 90),
        ("", 600, 200.0, 615),
        ("", 10, 200.0, 300),  # half of the limit
        ("signal_lead_seconds: 20\n", 600, 200.0, 20),
    ],
)
def test_the_lead_of_the_signal_is_the_profiles_or_fits_the_checkpoints(
    tmp_path, lines, minutes, checkpoint_seconds, lead
):
    profile = write_profile(tmp_path, f"time_minutes: {minutes}\n{lines}")
    parameters = slurm_parameters(Resources(), profile, checkpoint_seconds=checkpoint_seconds)
    assert parameters["slurm_signal_delay_s"] == lead


def test_a_missing_profile_is_named(tmp_path):
    with pytest.raises(LaunchError, match=r"none.yaml: cannot be read: No such file or directory"):
        load_profile(tmp_path / "none.yaml")


def test_an_empty_profile_is_a_cluster_without_peculiarities(tmp_path):
    assert write_profile(tmp_path, "") == Profile()


@pytest.fixture
def script_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that gives the lines of the batch script that is sent to SLURM."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)

    def lines(profile: Profile, resources: Resources | None = None) -> list[str]:
        parameters = job_parameters(resources or Resources(), profile, "tiny") | {"slurm_array_parallelism": 2}
        return batch_script(tmp_path, 3, **parameters).splitlines()

    return lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("partition: fast,slow\naccount: lab\nqos: high\n", ["--account=lab", "--partition=fast,slow", "--qos=high"]),
        ("constraint: a100|h100\n", ["--constraint='a100|h100'"]),
        ("reservation: course\nexclude: n[1-3]\nnodelist: n4\n", ["--exclude='n[1-3]'", "--nodelist=n4"]),
        ("exclusive: true\n", ["--exclusive"]),
        ("exclusive: user\n", ["--exclusive=user"]),
        (
            "wckey: thesis\ncomment: for the paper\nnice: 10\n",
            ["--comment='for the paper'", "--nice=10", "--wckey=thesis"],
        ),
        ("mail_user: ada@example.org\nmail_type: END,FAIL\n", ["--mail-type=END,FAIL", "--mail-user=ada@example.org"]),
        ("licenses: fs:1\nbegin: now+1hour\nhint: nomultithread\n", ["--begin=now+1hour", "--hint=nomultithread"]),
        ("gpus_per_node: h100:4\n", ["--gpus-per-node=h100:4"]),
        ("gpus_per_node: 4\ngpu_request: gres\n", ["--gres=gpu:4"]),
        ("gpus_per_node: a100:2\ngpu_request: gres\n", ["--gres=gpu:a100:2"]),
        ("gpus_per_node: 4\ngpu_request: gpus-per-task\n", ["--gpus-per-task=4"]),
        ("memory_gib: 6\ncpus: 4\nmemory_request: mem-per-cpu\n", ["--mem-per-cpu=1536M"]),
        ("memory_request: all\n", ["--mem=0"]),
        ("signal_lead_seconds: 300\n", ["--signal=USR2@300"]),
        ("sbatch: {switches: 1@30, spread-job: true, tres-per-task: cpu=2}\n", ["--spread-job", "--switches=1@30"]),
    ],
)
def test_what_a_profile_says_stands_in_the_batch_script(tmp_path, script_of, text, lines):
    script = script_of(write_profile(tmp_path, text))
    assert {f"#SBATCH {line}" for line in lines} <= set(script)
    assert "#SBATCH --requeue" in script


def test_a_script_says_nothing_that_neither_profile_nor_study_says(script_of):
    names = {line.removeprefix("#SBATCH --").partition("=")[0] for line in script_of(Profile()) if "SBATCH" in line}
    of_the_harness = {"array", "cpus-per-task", "job-name", "nodes", "ntasks-per-node", "open-mode", "output"}
    assert names == of_the_harness | {"mem", "requeue", "signal", "time"}  # no wckey, no partition, no GPUs
    assert not [line for line in script_of(Profile(memory_request="none")) if "--mem" in line]


def test_a_study_says_how_many_gpus_and_the_profile_which(script_of):
    profile = Profile(gpus_per_node="h100:4")
    assert profile.gpus(Resources(gpus_per_node=2)) == (2, "h100")
    assert profile.gpus(Resources()) == (4, "h100")
    assert Profile().gpus(Resources(gpus_per_node=1)) == (1, "")
    assert "#SBATCH --gpus-per-node=h100:2" in script_of(profile, Resources(gpus_per_node=2))
    assert not [line for line in script_of(profile, Resources(gpus_per_node=0)) if "gpus" in line]


def test_srun_gets_its_options_and_python_its_container(script_of):
    profile = Profile(
        srun={"container-image": "img.sqsh", "mpi": "none", "overlap": True}, container="apptainer exec i.sif"
    )
    (line,) = [line for line in script_of(profile) if line.startswith("srun ")]
    assert "--cpus-per-task=1 --wait=0 --container-image=img.sqsh --mpi=none --overlap apptainer exec i.sif " in line
    assert python_command(Profile(python="/opt/py/bin/python")) == "/opt/py/bin/python"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sbatch: {array: 1-3}", "cluster.yaml:1: sbatch: array: the harness sets it itself"),
        ("srun: {cpus-per-task: 3}", "cluster.yaml:1: srun: cpus-per-task: set cpus instead"),
        ("sbatch: {partition: x}", "cluster.yaml:1: sbatch: partition: set partition instead"),
        ("sbatch: {mail-user: x}", "cluster.yaml:1: sbatch: mail-user: set mail_user instead"),
        ('sbatch: {"bad name": x}', "cluster.yaml:1: sbatch"),
        ('comment: "a\\nb"', "cluster.yaml:1: comment"),
        ("gpus_per_node: h100:many", "cluster.yaml:1: gpus_per_node"),
        ("signal_lead_seconds: 0", "cluster.yaml:1: signal_lead_seconds"),
    ],
)
def test_what_would_break_a_job_is_refused(tmp_path, text, message):
    with pytest.raises(LaunchError) as caught:
        write_profile(tmp_path, text + "\n")
    assert message in str(caught.value)


@pytest.mark.process
def test_scratch_is_a_folder_of_the_jobs_own_and_is_gone_at_its_end(tmp_path):
    profile = Profile(scratch=f"{tmp_path}/$USER_FOLDER", setup=("export A=1",))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "kept").touch()
    body = [
        *REQUEUE_WHEN_KILLED,
        *slurm_parameters(Resources(), profile)["slurm_setup"],
        'touch "$TMPDIR/x" && echo $TMPDIR',
    ]
    script = "\n".join(body)
    environment = {**os.environ, "USER_FOLDER": "theirs"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip().startswith(f"{tmp_path}/theirs/harness-") and done.stderr == ""
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["kept"]


@pytest.mark.process
@pytest.mark.parametrize("ends", ["true", "kill -9 $BASHPID", "kill -TERM $$"], ids=["well", "killed", "stopped"])
def test_the_stage_is_a_folder_of_the_jobs_own_and_is_gone_at_its_end(tmp_path, tmp_path_factory, ends):
    scontrol = (
        tmp_path_factory.mktemp("bin") / "scontrol"
    )  # a killed job is requeued, for minutes where SLURM is silent
    scontrol.write_text("#!/bin/sh\n")
    scontrol.chmod(0o755)
    profile = Profile(stage={"data": "$NODE_DISK"})
    neighbour = tmp_path / "harness-stage-8"
    neighbour.mkdir()
    (tmp_path / "harness-stage-7").mkdir()
    (tmp_path / "harness-stage-7" / "left by a killed life").touch()
    body = [
        *REQUEUE_WHEN_KILLED,
        *slurm_parameters(Resources(), profile)["slurm_setup"],
        'ls -A "$NODE_DISK"; mkdir "$HARNESS_STAGE" && touch "$HARNESS_STAGE/copy"',
        f"({ends})",
    ]
    path = f"{scontrol.parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "NODE_DISK": str(tmp_path), "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", "\n".join(body)], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split()[0] == neighbour.name  # what an earlier life of the job had left is gone
    assert list(tmp_path.iterdir()) == [neighbour]


@pytest.mark.process
def test_a_stage_in_a_folder_that_this_node_does_not_name_is_none(tmp_path):
    lines = slurm_parameters(Resources(), Profile(stage={"data": "$NOT_SET_HERE"}))["slurm_setup"]
    script = "\n".join([*lines, 'echo "stage is ${HARNESS_STAGE-unset}"'])
    done = subprocess.run(["bash", "-c", script], env={"SLURM_JOB_ID": "7"}, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("stage is unset\n", "stage: $NOT_SET_HERE is no folder here\n")


@pytest.mark.process
def test_a_module_that_does_not_load_ends_the_job_with_its_name():
    script = "\n".join(
        ["module() { return 1; }", *slurm_parameters(Resources(), Profile(modules=("cuda/12.4",)))["slurm_setup"]]
    )
    done = subprocess.run(["bash", "-c", f"{script}\necho reached"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "module load cuda/12.4 failed\n")
