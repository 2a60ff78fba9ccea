"""Run SLURM's programs. Nothing else in the harness runs them, so timeouts and errors are the same everywhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping

from harness.errors import LaunchError

TIMEOUT_SECONDS = 60.0
PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol", "srun")  # required to submit and to follow jobs


def run_slurm(program: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run one of SLURM's programs and return what it prints.

    Args:
        environment: replaces this process's own.

    Raises:
        LaunchError: the program is missing, takes longer than TIMEOUT_SECONDS, or fails. So an empty text means that
            SLURM answered and had nothing to list.
    """
    try:
        result = subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS, env=environment
        )
    except FileNotFoundError:
        raise LaunchError(f"{program} not found; run this on a login node or load the SLURM module") from None
    except OSError as error:
        raise LaunchError(f"{program} cannot be run ({error.strerror}); ask the cluster's administrators") from None
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"{program} did not answer within {TIMEOUT_SECONDS:.0f} s; SLURM is busy or down: try again later"
        ) from None
    if result.returncode != 0:
        message = " ".join((result.stderr or result.stdout).split())[-400:]
        raise LaunchError(f"{program} failed: {message or f'exit code {result.returncode}, without a message'}")
    return result.stdout


def parse_table(text: str, num_columns: int) -> list[list[str]]:
    """Split lines of `a|b|c`; a line with another number of columns, such as a warning, is ignored."""
    return [row for line in text.splitlines() if len(row := line.split("|")) == num_columns]


def parse_records(text: str) -> list[dict[str, str]]:
    """Parse `scontrol --oneliner show`: one record per line, `Key=value` separated by spaces."""
    return [dict(re.findall(r"(?:^|(?<=\s))([A-Za-z_/]+)=(\S*)", line)) for line in text.splitlines() if "=" in line]


def missing_programs() -> list[str]:
    """Return which of PROGRAMS are missing on this machine."""
    return [program for program in PROGRAMS if not shutil.which(program)]
