"""Whatever keeps a program of SLURM's from answering is one kind of error, which says what to do."""

from __future__ import annotations

import os

import pytest

from harness.errors import LaunchError
from harness.slurm import commands

pytestmark = pytest.mark.process  # programs that stand in for SLURM's


def test_what_a_program_prints_is_returned(fake_program):
    fake_program("squeue", 'echo "$@"; echo careful >&2')
    assert commands.run_slurm("squeue", "--me", "a b") == "--me a b\n"


def test_the_environment_can_be_replaced(fake_program):
    fake_program("sbatch", "echo $SLURM_CONF/$OTHER")
    assert commands.run_slurm("sbatch", environment=os.environ | {"SLURM_CONF": "here"}) == "here/\n"


def test_a_missing_program_says_where_to_go(fake_program):
    with pytest.raises(LaunchError, match=r"^scontrol not found; run this on a login node or load the SLURM module$"):
        commands.run_slurm("scontrol", "show", "config")


def test_a_program_that_fails_says_so_in_its_own_words(fake_program):
    fake_program("squeue", "echo one; echo 'error: Unable to contact\n  slurm controller' >&2; exit 1")
    with pytest.raises(LaunchError, match=r"^squeue failed: error: Unable to contact slurm controller$"):
        commands.run_slurm("squeue")


def test_a_program_that_fails_in_silence_says_its_exit_code(fake_program):
    fake_program("squeue", "exit 3")
    with pytest.raises(LaunchError, match=r"^squeue failed: exit code 3, without a message$"):
        commands.run_slurm("squeue")


def test_a_program_that_cannot_be_executed_is_no_traceback(fake_program, tmp_path):
    fake_program("squeue", "")
    (tmp_path / "bin" / "squeue").write_bytes(b"\x7fELF")
    with pytest.raises(LaunchError, match=r"^squeue cannot be run \(Exec format error\)"):
        commands.run_slurm("squeue")


def test_a_program_that_hangs_is_given_up(fake_program, monkeypatch):
    monkeypatch.setattr(commands, "TIMEOUT_SECONDS", 0.1)
    fake_program("sacct", "read nothing </dev/zero")
    with pytest.raises(LaunchError, match=r"^sacct did not answer within 0 s; SLURM is busy or down: try again later$"):
        commands.run_slurm("sacct")


def test_programs_that_are_missing_are_named(fake_program):
    fake_program("squeue", "")
    assert commands.missing_programs() == ["sbatch", "scancel", "scontrol", "srun"]


def test_a_warning_among_the_rows_of_a_table_is_left_out():
    assert commands.parse_table("1|RUNNING\nslurm: a warning\n2|PENDING\n", 2) == [["1", "RUNNING"], ["2", "PENDING"]]
