"""SLURM's recent answers, shared by all processes of a user on one machine: each question is asked once in a while.

Views and watchers ask for them: `status --watch`, `sync --watch` and a search on one login node together ask squeue and
sacct once in RECENT_SECONDS. What submits or cancels asks SLURM itself (`read_queue`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from harness.data.cache import cache_folder
from harness.errors import HarnessError, LaunchError
from harness.slurm.commands import TIMEOUT_SECONDS, NoAnswer, addressed_clusters
from harness.slurm.jobs import JobAttempt, JobInfo, read_queue

RECENT_SECONDS = 30.0
_FORGOTTEN_SECONDS = 600.0  # a job that nobody asks for any more is left out
_ABANDONED_SECONDS = 86_400.0


@dataclass(frozen=True)
class _Answer:
    """What SLURM answered, and what it was asked for: only of that does it say that it is absent."""

    asked_seconds: float = 0.0  # Unix time
    names: Mapping[str, float] = field(default_factory=dict)  # of jobs -> Unix time when somebody asked for it
    jobs: Mapping[str, JobInfo] = field(default_factory=dict)
    failure: str = ""

    def covers(self, names: set[str], max_age_seconds: float) -> bool:
        """Return whether this answers a question. A job that was submitted later was not asked for, and is not absent.

        The file system's clients may differ in their clocks, so an answer from the future is judged like one from the
        past.
        """
        recent = abs(time.time() - self.asked_seconds) < max_age_seconds
        return recent and names <= self.names.keys()


def read_recent_queue(job_ids: Iterable[str]) -> dict[str, JobInfo]:
    """Look up jobs like `read_queue`, in an answer that may be RECENT_SECONDS old.

    A failure is kept as long: while SLURM is down, a watcher does not ask it every second.

    Raises:
        NoAnswer: squeue does not answer, or did not a moment ago.
    """
    names = set(job_ids)
    if not names:
        return {}
    try:
        path = _answer_path()
    except (HarnessError, OSError):  # without a folder for the cache nothing is shared
        return read_queue(names)
    answer = _read(path)
    if not answer.covers(names, RECENT_SECONDS):
        with _turn(path) as ours:
            answer = _read(path)  # another process may have asked meanwhile; while it does, its last answer will do
            if not answer.covers(names, RECENT_SECONDS) and (
                ours or not answer.covers(names, 2 * RECENT_SECONDS + TIMEOUT_SECONDS)
            ):
                answer = _ask(names, answer)
                _write(path, answer)
    if answer.failure:
        raise NoAnswer(answer.failure)
    return {name: job for name, job in answer.jobs.items() if name in names}


def forget_recent_queue() -> None:
    """Have SLURM asked anew, since its last answer has just been made wrong, as by a cancel."""
    with contextlib.suppress(HarnessError, OSError):
        _answer_path().unlink()


def _ask(names: set[str], before: _Answer) -> _Answer:
    """Ask SLURM for some jobs, and for those that others asked for lately, so that the answer serves them, too."""
    now = time.time()
    asked = {name: time_asked for name, time_asked in before.names.items() if now - time_asked < _FORGOTTEN_SECONDS}
    asked |= dict.fromkeys(names, now)
    try:
        return _Answer(now, asked, read_queue(asked))
    except LaunchError as error:
        return _Answer(now, asked, failure=str(error))


def _answer_path() -> Path:
    """Return the file of this user's answers from the cluster that this machine and environment address."""
    settings = [
        shutil.which("squeue"),
        os.environ.get("SLURM_CONF"),
        os.environ.get("SLURM_CLUSTERS"),
        addressed_clusters(),
    ]
    cluster = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    return cache_folder("slurm") / f"queue-{os.getuid()}-{platform.node()}-{cluster}.json"


def _read(path: Path) -> _Answer:
    """Read an answer; whatever is not one of ours, whole and readable, is none."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():  # in a folder that others can write
                return _Answer()
            content = json.load(file)
        jobs = {name: _job(entry) for name, entry in content["jobs"].items()}
        names = {str(name): float(seconds) for name, seconds in content["names"].items()}
        return _Answer(float(content["asked_seconds"]), names, jobs, str(content["failure"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _Answer()


def _job(entry: Mapping) -> JobInfo:
    attempts = tuple(JobAttempt(**attempt) for attempt in entry["attempts"])
    return JobInfo(**{**entry, "attempts": attempts})


def _write(path: Path, answer: _Answer) -> None:
    """Replace the file of answers; where it cannot be written, nothing is shared."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(answer), file)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[bool]:
    """Yield whether it is this process's turn to ask: no other one on this machine is asking."""
    mark = path.with_suffix(".asking")
    try:
        if mark.exists() and time.time() - mark.stat().st_mtime > 2 * TIMEOUT_SECONDS:
            mark.unlink()  # its process was killed
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        yield False
        return
    except OSError:
        yield True
        return
    try:
        _remove_abandoned(path.parent)
        yield True
    finally:
        with contextlib.suppress(OSError):
            mark.unlink()


def _remove_abandoned(folder: Path) -> None:
    """Remove the answers of machines and clusters that nobody has asked for a day."""
    for path in folder.glob(f"queue-{os.getuid()}-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()
