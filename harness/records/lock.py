"""One writer at a time, on shared file systems too."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from functools import cache
from pathlib import Path

from harness.errors import RecordError
from harness.records.files import replace_file

HEARTBEAT_SECONDS = 10.0


STALE_SECONDS = 120.0


class FolderLock:
    """One writer at a time, on shared file systems too; survives the death of its owner.

    The lock is the newest of the numbered files in `folder`; to take it is to create the next number, which the file
    system grants to one process only (O_EXCL). A file of number n is removed only after n + 1 exists, so a slow taker
    that creates an outdated number always finds a newer one beside it and steps back. That makes taking over a stale
    lock free of races.

    A lock is stale when its process (pid and start time) is gone from this machine, when it was left by an earlier
    start of this same SLURM job, or when its heartbeat (the file's mtime, every 10 s) is older than 120 s.
    """

    def __init__(self, folder: Path, what: str):
        self.folder, self.what = folder, what
        self._path: Path | None = None
        self._stop = threading.Event()

    def owner(self) -> dict | None:
        """Return the facts of the process that holds the lock now, or None when it is free or stale."""
        newest = self._newest()
        return self._live_owner(newest) if newest else None

    def acquire(self, wait_seconds: float = 0.0) -> None:
        """Take the lock, waiting for its owner no longer than asked.

        Raises:
            RecordError: another process holds it; the message names host, process and SLURM job.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + wait_seconds
        while not self._try_acquire():
            owner = self.owner()
            if owner and time.monotonic() >= deadline:
                raise RecordError(f"{self.what} is in use by {_describe(owner)}")
            time.sleep(min(1.0, wait_seconds) if owner else 0.0)
        self._stop.clear()
        threading.Thread(target=self._beat, name="lock-heartbeat", daemon=True).start()

    def release(self) -> None:
        """Give the lock back; a number that somebody took over meanwhile stays theirs."""
        self._stop.set()
        if self._path:
            try:
                replace_file(self._path, '{"released": true}', durable=False)
            except RecordError:  # the disk is full: an empty file of long ago needs no room and says the same
                os.truncate(self._path, 0)
                os.utime(self._path, (0, 0))
            self._path = None

    def verify(self) -> None:
        """Raise RecordError if another process took the lock over (this one had stood still for more than 120 s)."""
        if self._path is None or not self._path.exists():
            raise RecordError(f"{self.what} was taken over by {_describe(self.owner() or {})}")

    def _try_acquire(self) -> bool:
        newest = self._newest()
        if newest and self._live_owner(newest):
            return False
        mine = self.folder / f"{newest + 1:06d}"
        try:
            with mine.open("x") as file:
                file.write(json.dumps(this_process()))
        except FileExistsError:
            return False
        if self._newest() > newest + 1:
            mine.unlink(missing_ok=True)
            return False
        for number in self._numbers():
            if number <= newest:
                (self.folder / f"{number:06d}").unlink(missing_ok=True)
        self._path = mine
        return True

    def _numbers(self) -> list[int]:
        try:
            return [int(name) for name in os.listdir(self.folder) if name.isdigit()]  # noqa: PTH208 (3 times faster)
        except FileNotFoundError:
            return []

    def _newest(self) -> int:
        return max(self._numbers(), default=0)

    def _live_owner(self, number: int) -> dict | None:
        path = self.folder / f"{number:06d}"
        try:
            text, heartbeat = path.read_text(), path.stat().st_mtime
        except FileNotFoundError:
            return None
        # An empty file was created this instant, or its process died in that instant: only its age can tell.
        owner = json.loads(text) if text.endswith("}") else {}
        if owner.get("released"):
            return None
        if owner and owner["machine"] == _machine():
            return owner if _start_time(owner["pid"]) == owner["started"] else None
        if owner and _is_my_earlier_start(owner):
            return None
        return owner | {"heartbeat": heartbeat} if time.time() - heartbeat <= STALE_SECONDS else None

    def _beat(self) -> None:
        path = self._path
        while path and not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(path)
            except OSError:
                return  # taken over: verify() says so at the next checkpoint


def this_process() -> dict:
    return {
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "slurm_restart_count": os.environ.get("SLURM_RESTART_COUNT", "0"),
    }


@cache
def _machine() -> str:
    """Name the space in which process numbers mean something: containers may share a host name, but not these."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    except OSError:
        return socket.gethostname()


def _start_time(pid: int) -> str | None:
    """Return when a process started, in the machine's own ticks, or None when it is gone (a zombie is gone)."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    import psutil  # where there is no /proc

    try:
        return str(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _is_my_earlier_start(owner: dict) -> bool:
    """A requeued SLURM job keeps its id, and SLURM has ended its earlier start for certain."""
    me = this_process()
    same_job = owner["slurm_job_id"] is not None and owner["slurm_job_id"] == me["slurm_job_id"]
    return same_job and owner["slurm_restart_count"] != me["slurm_restart_count"]


def _describe(owner: dict) -> str:
    if not owner.get("host"):
        return "a process that is just starting"
    job = f", SLURM job {owner['slurm_job_id']}" if owner["slurm_job_id"] else ""
    age = f", last heartbeat {time.time() - owner['heartbeat']:.0f} s ago" if "heartbeat" in owner else ""
    return f"process {owner['pid']} on {owner['host']}{job}{age}"
