"""A profile is read with its file and line in errors, and stands between a study and the defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import LaunchError, SpecError
from harness.slurm.profile import Profile, load_profile, slurm_parameters
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
    assert parameters["gpus_per_node"] == 1  # the cluster
    assert parameters["mem_gb"] == 4.0  # the default
    assert parameters["timeout_min"] == 240
    assert parameters["slurm_partition"] == "gpu"
    assert parameters["slurm_setup"] == ["module load cuda"]
    assert parameters["slurm_array_parallelism"] == 64
    assert slurm_parameters(Resources(), gpu_cluster, jobs=3)["slurm_array_parallelism"] == 3
    assert slurm_parameters(Resources(threads=6, cpus=2), gpu_cluster)["cpus_per_task"] == 6


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "partition: gpu\npartiton: x\n",
            LaunchError,
            r"cluster.yaml:2: partiton: unknown key; did you mean 'partition'\?",
        ),
        ("gpus_per_node: many\n", LaunchError, r"cluster.yaml:1: gpus_per_node: input should be a valid integer"),
        ("- gpu\n", LaunchError, r"cluster.yaml:1: a profile is a mapping, such as partition: gpu"),
        ("a: [\n", SpecError, r"cluster.yaml:2: not YAML"),
    ],
)
def test_a_bad_profile_is_refused_with_file_and_line(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        write_profile(tmp_path, text)


def test_a_missing_profile_is_named(tmp_path):
    with pytest.raises(LaunchError, match=r"none.yaml: cannot be read: No such file or directory"):
        load_profile(tmp_path / "none.yaml")


def test_an_empty_profile_is_a_cluster_without_peculiarities(tmp_path):
    assert write_profile(tmp_path, "") == Profile()


def test_scratch_and_modules_come_before_lines_of_ones_own():
    profile = Profile(scratch="/scratch/$SLURM_JOB_ID", modules=("cuda/12.4",), setup=("export A=1",))
    assert slurm_parameters(Resources(), profile)["slurm_setup"] == [
        "module load cuda/12.4",
        'export TMPDIR="/scratch/$SLURM_JOB_ID"',
        'mkdir -p "$TMPDIR"',
        "export A=1",
    ]
