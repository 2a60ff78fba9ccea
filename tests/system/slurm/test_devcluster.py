"""The one-machine SLURM does what the live tests of the harness build on."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.slurm.profile import load_profile

REPOSITORY = Path(__file__).parents[3]
SCRIPT = REPOSITORY / "slurm" / "devcluster" / "devcluster.sh"

# Says what it hears, and leaves at once when it comes back. It says "began" when a signal does not kill it any more:
# a job is in state R from its allocation on, before its script runs.
HEARS_SIGNALS = """#!/bin/bash
trap 'echo heard USR2' USR2
echo "began on $SLURMD_NODENAME"
while [ -z "$SLURM_RESTART_COUNT" ]; do sleep 0.1; done
"""


def said(*command: object) -> str:
    """Return what a command prints."""
    words = [str(word) for word in command]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def submit(folder: Path, script: str, *options: str) -> str:
    """Submit a script that writes its output to `folder`/JOB; return JOB."""
    path = folder / "script"
    path.write_text(script)
    return said("sbatch", "--parsable", f"--output={folder}/%j", "--open-mode=append", "--requeue", *options, path)


def states(job: str) -> list[str]:
    """Return what accounting says of every life of a job: PENDING, RUNNING, COMPLETED, ..."""
    return said("sacct", "-nPXD", "--format=State", f"--jobs={job}").splitlines()


def wait_for(value: Callable[[], object], expected: object) -> None:
    """Wait until a value is the expected one, and show it when it never is."""
    deadline = time.monotonic() + 240
    while (actual := value()) != expected:
        assert time.monotonic() < deadline, f"{actual} instead of {expected}"
        time.sleep(0.1)


def wait_until_it_began(folder: Path, job: str) -> None:
    """Wait until the first life of a job with the script HEARS_SIGNALS listens to signals."""
    output = folder / job
    wait_for(lambda: output.exists() and output.read_text().count("began on "), 1)


@pytest.mark.slurm
def test_a_job_sees_the_gpus_that_it_asked_for(slurm):
    assert said("srun", "--gpus-per-node=2", "printenv", "CUDA_VISIBLE_DEVICES") == "0,1"


@pytest.mark.slurm
def test_its_profile_is_one_that_it_takes(slurm):
    profile = load_profile(REPOSITORY / "slurm" / "clusters" / "dev.yaml")
    memory = profile.memory_gib * profile.max_parallel / 2  # that is, on one of two nodes
    asked = (f"--partition={profile.partition}", f"--cpus-per-task={profile.cpus}", f"--mem={memory * 1024:.0f}")
    assert said("srun", *asked, f"--time={profile.time_minutes}", "printenv", "SLURM_JOB_PARTITION") == "main"


@pytest.mark.slurm
def test_accounting_tells_how_each_task_of_an_array_ended(tmp_path, slurm):
    array = submit(tmp_path, "#!/bin/bash\nexit $SLURM_ARRAY_TASK_ID", "--array=0-2%2")
    wait_for(lambda: [states(f"{array}_{task}") for task in range(3)], [["COMPLETED"], ["FAILED"], ["FAILED"]])


@pytest.mark.slurm
def test_too_much_memory_is_death(tmp_path, slurm):
    hungry = f"#!{sys.executable}\nimport time\nfull = b'1' * (300 << 20)\ntime.sleep(60)"
    job = submit(tmp_path, hungry, "--mem=100")
    wait_for(lambda: states(job), ["FAILED"])
    assert "exceeded memory limit" in (tmp_path / job).read_text()


@pytest.mark.slurm
@pytest.mark.slow
def test_a_job_that_gives_way_is_warned_and_then_requeued_or_cancelled(tmp_path, start_slurm, monkeypatch):
    for name, value in start_slurm(NODES=1, GRACE=2).env.items():
        monkeypatch.setenv(name, value)
    options = ("--cpus-per-task=4", "--signal=B:USR2@60", "--time=20")
    back = submit(tmp_path, HEARS_SIGNALS, *options)
    gone = submit(tmp_path, HEARS_SIGNALS, *options, "--partition=cancel")
    for job in (back, gone):
        wait_until_it_began(tmp_path, job)
    said("srun", "--quiet", "--partition=high", "--cpus-per-task=8", "true")
    wait_for(lambda: states(back), ["PREEMPTED", "COMPLETED"])
    wait_for(lambda: states(gone), ["PREEMPTED"])
    assert (tmp_path / back).read_text().count("began on n1") == 2
    for job in (back, gone):
        assert "heard USR2" in (tmp_path / job).read_text()


@pytest.mark.slurm
@pytest.mark.slow
def test_the_job_of_a_crashed_node_starts_again_on_another(tmp_path, slurm):
    job = submit(tmp_path, HEARS_SIGNALS, "--exclude=n2")
    wait_until_it_began(tmp_path, job)
    slurm.crash("n1")
    try:
        said("scontrol", "update", f"jobid={job}", "excnodelist=")
        wait_for(lambda: states(job), ["NODE_FAIL", "COMPLETED"])
    finally:
        slurm.revive("n1")
    assert (tmp_path / job).read_text().splitlines()[-1] == "began on n2"
    assert said("srun", "--nodelist=n1", "printenv", "SLURMD_NODENAME") == "n1"


def processes_with_files_below(folder: Path) -> set[str]:
    pids = set()
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # the process has just ended
            if descriptor.readlink().is_relative_to(folder):
                pids.add(descriptor.parts[2])
    return pids


@pytest.mark.slurm
def test_a_smaller_limit_of_arrays_is_kept_and_stopping_leaves_no_process_and_no_job(
    tmp_path, start_slurm, monkeypatch
):
    cluster = start_slurm(NODES=1, MAXARRAY=21)
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)
    refused = subprocess.run(["sbatch", "--array=0-21", "--wrap=true"], capture_output=True, text=True, check=False)
    assert "Invalid job array specification" in refused.stderr
    job = submit(tmp_path, HEARS_SIGNALS)
    wait_until_it_began(tmp_path, job)  # so that it has its keeper
    assert "slurmd: 1 of 1" in said(SCRIPT, "status", cluster.folder)
    assert len(processes_with_files_below(cluster.folder)) >= 6  # five daemons, and the keeper of the job
    said(SCRIPT, "stop", cluster.folder)
    assert processes_with_files_below(cluster.folder) == set()
    assert subprocess.run([SCRIPT, "status", cluster.folder], capture_output=True, check=False).returncode == 1


def refusal(folder: Path, **environment: str) -> str:
    """Return why the script does not start a cluster in `folder`."""
    bash = shutil.which("bash")  # the PATH of `environment` may lack it
    assert bash is not None
    command: list[str | Path] = [bash, SCRIPT, "start", folder]
    done = subprocess.run(command, env=os.environ | environment, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert not folder.exists()
    return done.stderr


def test_where_slurm_is_absent_the_script_says_how_to_install_it(tmp_path):
    for program in ("realpath", "id"):
        (tmp_path / program).symlink_to(shutil.which(program))
    said_of_it = refusal(tmp_path / "slurm", PATH=str(tmp_path))
    assert "sbatch missing" in said_of_it
    assert "apt-get install --no-install-recommends slurmctld slurmd" in said_of_it


@pytest.mark.slurm
def test_a_port_that_somebody_uses_is_named(slurm, free_ports):
    port = free_ports(2)
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", port + 1)):  # of a short path
        said_of_it = refusal(Path(folder) / "slurm", PORT=str(port))
    assert f"port {port + 1} is in use: choose another PORT" in said_of_it


@pytest.mark.parametrize(("required", "outcome"), [("0", "1 skipped"), ("1", "1 error")])
@pytest.mark.slow
def test_without_slurm_its_tests_are_skipped_unless_it_is_required(tmp_path, required, outcome):
    test = f"{__file__}::test_a_job_sees_the_gpus_that_it_asked_for"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", test, "-p", "no:cacheprovider", f"--basetemp={tmp_path}/pytest"],
        env=os.environ | {"PATH": str(tmp_path), "HARNESS_REQUIRE_SLURM": required},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert outcome in done.stdout.splitlines()[-1]
    assert "no SLURM here: " in done.stdout
