"""Run SLURM's programs. Nothing else in the harness runs them, so timeouts and errors are the same everywhere."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TypeVar

from harness.errors import LaunchError

TIMEOUT_SECONDS = 60.0
PAUSES_SECONDS = (1.0, 3.0, 6.0)  # between the attempts of `patiently`
PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol", "srun")  # required to submit and to follow jobs

# A user's defaults for these programs would change their answers and what they do: SQUEUE_STATES=RUNNING hides what
# waits, SCANCEL_INTERACTIVE asks. Those of sbatch are the user's to set.
_DEFAULTS_OF_PROGRAMS = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SACCTMGR_", "SINFO_")
_DEFAULTS_OF_FORMATS = ("SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN", "SLURM_JSON", "SLURM_YAML", "SLURM_DEBUG_FLAGS")

_TAKE_CLUSTERS = ("squeue", "sacct", "scancel", "scontrol")
_addressed: ContextVar[str] = ContextVar("addressed_clusters", default="")

T = TypeVar("T")


class NoAnswer(LaunchError):
    """SLURM did not answer, so nothing is known of its jobs: neither that they are there nor that they are gone."""


class ProgramMissing(NoAnswer):
    """One of SLURM's programs is not on this machine, so asking again is of no use."""


@contextlib.contextmanager
def addressing(clusters: str | None) -> Iterator[None]:
    """Ask other clusters than this machine's own within the block, as a profile's `clusters` names them: a,b."""
    token = _addressed.set(clusters or "")
    try:
        yield
    finally:
        _addressed.reset(token)


def addressed_clusters() -> str:
    """Return the clusters that are asked, empty for this machine's own."""
    return _addressed.get()


def _of_clusters(program: str) -> list[str]:
    clusters = addressed_clusters()
    if not clusters or program not in _TAKE_CLUSTERS:
        return []
    if program == "scontrol" and "," in clusters:  # it speaks to one; what it says is then of this machine's own
        return []
    return [f"--clusters={clusters}"]


def run_slurm(program: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run one of SLURM's programs and return what it prints.

    Args:
        environment: replaces this process's own.

    Raises:
        NoAnswer: the program is missing or takes longer than TIMEOUT_SECONDS.
        LaunchError: it fails. So an empty text means that SLURM answered and had nothing to list.
    """
    try:
        result = subprocess.run(
            [program, *_of_clusters(program), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=TIMEOUT_SECONDS,
            env=_without_defaults(os.environ if environment is None else environment),
        )
    except FileNotFoundError:
        raise ProgramMissing(f"{program} not found; run this on a login node or load the SLURM module") from None
    except OSError as error:
        raise ProgramMissing(f"{program} cannot be run ({error.strerror}); ask the cluster's administrators") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(
            f"{program} did not answer within {TIMEOUT_SECONDS:.0f} s; SLURM is busy or down: try again later"
        ) from None
    if result.returncode != 0:
        message = " ".join((result.stderr or result.stdout).split())[-400:]
        raise LaunchError(f"{program} failed: {message or f'exit code {result.returncode}, without a message'}")
    return result.stdout


def patiently(call: Callable[[], T], pauses_seconds: Sequence[float] | None = None) -> T:
    """Call a function that runs SLURM's programs, again after each pause while it fails.

    Args:
        pauses_seconds: None takes PAUSES_SECONDS.

    Raises:
        LaunchError: of the last attempt; of the first one if a program is missing.
    """
    for pause in PAUSES_SECONDS if pauses_seconds is None else pauses_seconds:
        try:
            return call()
        except ProgramMissing:
            raise
        except LaunchError:
            time.sleep(pause)
    return call()


def _without_defaults(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(_DEFAULTS_OF_PROGRAMS) and name not in _DEFAULTS_OF_FORMATS
    }


def parse_table(text: str, num_columns: int) -> list[list[str]]:
    """Split lines of `a|b|c`; a line with another number of columns, such as a warning, is ignored."""
    return [row for line in text.splitlines() if len(row := line.split("|")) == num_columns]


def parse_records(text: str) -> list[dict[str, str]]:
    """Parse `scontrol --oneliner show`: one record per line, `Key=value` separated by spaces."""
    return [dict(re.findall(r"(?:^|(?<=\s))([A-Za-z_/]+)=(\S*)", line)) for line in text.splitlines() if "=" in line]


def missing_programs() -> list[str]:
    """Return which of PROGRAMS are missing on this machine."""
    return [program for program in PROGRAMS if not shutil.which(program)]
