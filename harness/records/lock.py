"""A lock for one writer at a time, also on shared file systems."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from functools import cache
from pathlib import Path

from harness.errors import RecordError
from harness.records.reading import Fields, parse_json, read_json

HEARTBEAT_SECONDS = 10.0


STALE_SECONDS = 120.0


class FolderLock:
    """A lock for one writer at a time, also on shared file systems; recovers when its owner dies.

    The lock is the newest of the numbered files in `folder`; a process takes it by creating the next number, which the
    file system allows one process only (O_EXCL). A file of number n is removed only after n + 1 exists, so a slow
    process that creates an outdated number always finds a newer one beside it and gives up. So taking over a stale lock
    is free of races.

    A lock is stale when its process (pid and start time) is gone from this machine, when it was left by an earlier
    start of the same SLURM job, or when its heartbeat is older than 120 s. The heartbeat is stored in the file and
    rewritten every 10 s: a copy of a folder that is being written has the heartbeat of the time of the copy, and is
    free 120 s later, whatever its file times. This also holds for a copy on the owner's machine, where the process
    still exists: the copy has another inode than the folder that the owner recorded.

    The file is written in place, always with the same length: a reader finds the old text or the new one, a full disk
    does not matter, and a file that was removed by the next owner is not recreated.
    """

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self._path: Path | None = None
        self._owner: dict = {}
        self._stop = threading.Event()
        self._writing = threading.Lock()

    def owner(self) -> dict | None:
        """Return the process that holds the lock, or None when it is free or stale.

        Raises:
            RecordError: that cannot be read.
        """
        try:
            newest = self._newest()
            return self._live_owner(newest) if newest else None
        except OSError as error:
            raise RecordError(f"{self.name}: its lock cannot be read: {error.strerror}: {error.filename}") from error

    def slurm_job_id(self) -> str:
        """Return the SLURM job of the process that took the lock last and has not released it, alive or not."""
        with contextlib.suppress(OSError, RecordError):
            path = self.folder / f"{self._newest():06d}"
            job_id = Fields(read_json(path), str(path)).get("slurm_job_id")
            return job_id if isinstance(job_id, str) and _JOB_ID.fullmatch(job_id) else ""
        return ""

    def acquire(self, wait_seconds: float = 0.0) -> None:
        """Take the lock, waiting for its owner for at most `wait_seconds`.

        Raises:
            RecordError: another process holds it; the message names host, process and SLURM job. Or its folder cannot
                be used.
        """
        deadline = time.monotonic() + wait_seconds
        while not self._acquired():
            owner = self.owner()
            if owner and time.monotonic() >= deadline:
                raise RecordError(f"{self.name} is in use by {_describe(owner)}")
            time.sleep(min(1.0, wait_seconds) if owner else 0.0)
        self._stop.clear()
        threading.Thread(target=self._beat, name="lock-heartbeat", daemon=True).start()

    def release(self) -> None:
        """Release the lock, unless another process took it over meanwhile."""
        self._stop.set()
        if self._path:
            with self._writing, contextlib.suppress(FileNotFoundError):
                try:
                    _write_in_place(self._path, {"released": True})
                except OSError:  # a full copy-on-write disk: an empty, old file needs no space
                    os.truncate(self._path, 0)
                    os.utime(self._path, (0, 0))
            self._path = None

    def verify(self) -> None:
        """Raise RecordError if another process took the lock over (this one had stood still for more than 120 s)."""
        if self._path is None or not self._path.exists():
            raise RecordError(f"{self.name} was taken over by {_describe(self.owner() or {})}")

    def _acquired(self) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return self._try_acquire()
        except OSError as error:
            raise RecordError(f"{self.name} cannot be locked: {error.strerror}: {error.filename}") from error

    def _try_acquire(self) -> bool:
        newest = self._newest()
        if newest and self._live_owner(newest):
            return False
        path = self.folder / f"{newest + 1:06d}"
        folder = self.folder.stat()
        self._owner = this_process() | {"folder": [folder.st_dev, folder.st_ino]}
        try:
            with path.open("x") as file:
                file.write(_padded(self._owner))
        except FileExistsError:
            return False
        if self._newest() > newest + 1:
            path.unlink(missing_ok=True)
            return False
        for number in self._numbers():
            if number <= newest:
                (self.folder / f"{number:06d}").unlink(missing_ok=True)
        self._path = path
        with contextlib.suppress(FileNotFoundError):
            self._write_heartbeat(path)
        return True

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self.folder)  # noqa: PTH208 (3 times faster)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [int(name) for name in names if _NUMBER.fullmatch(name)]

    def _newest(self) -> int:
        return max(self._numbers(), default=0)

    def _live_owner(self, number: int) -> dict | None:
        path = self.folder / f"{number:06d}"
        try:
            modified = path.stat().st_mtime
            text = path.read_text(errors="replace") if path.is_file() else ""
        except FileNotFoundError:
            return None
        # An empty file was created just now, or its process died right after creating it: its age decides.
        owner = _owner_from(text)
        if owner.get("released"):
            return None
        # Older versions used the file's time as the heartbeat.
        owner = owner if "heartbeat" in owner else owner | {"heartbeat": modified}
        fresh = time.time() - owner["heartbeat"] <= STALE_SECONDS
        if "machine" in owner and owner["machine"] == _machine():
            if _start_time(owner.get("pid", 0)) != owner.get("started"):
                return None
            return owner if fresh or not self._is_a_copy(owner) else None
        if "machine" in owner and _is_my_earlier_start(owner):
            return None
        return owner if fresh else None

    def _is_a_copy(self, owner: dict) -> bool:
        folder = self.folder.stat()
        return owner.get("folder", [folder.st_dev, folder.st_ino]) != [folder.st_dev, folder.st_ino]

    def _beat(self) -> None:
        path = self._path
        while path and not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                with self._writing:
                    if self._stop.is_set():
                        return  # it was released just now
                    os.utime(path)
                    self._write_heartbeat(path)
            except OSError:
                return  # taken over: verify() raises at the next checkpoint

    def _write_heartbeat(self, path: Path) -> None:
        """Write the file's modification time into it: the file system's clock is common to all machines."""
        _write_in_place(path, self._owner | {"heartbeat": path.stat().st_mtime})


_NUMBER = re.compile(r"[0-9]{1,9}")
_JOB_ID = re.compile(r"[0-9][0-9_]{0,40}")  # it becomes an argument of SLURM's programs


def _owner_from(text: str) -> dict:
    """Return the owner in a lock file, empty if the file is damaged: then its age decides."""
    try:
        owner = parse_json(text.encode("utf-8", "replace"), "lock")
        fields = Fields(owner, "lock")
        if "released" not in fields:
            for name in ("host", "machine", "started"):
                fields.text(name, "")
            fields.integer("pid", 0, high=2**31)
            fields.seconds("heartbeat", 0.0)
    except RecordError:
        return {}
    return owner


_LENGTH = 1024  # bytes of a lock file; its content needs about 350


def _padded(owner: dict) -> str:
    """Return JSON of a fixed length, with padding before the last brace."""
    text = json.dumps(owner)
    return f"{text[:-1]:<{_LENGTH - 1}}}}"


def _write_in_place(path: Path, owner: dict) -> None:
    """Replace the content of an existing file by one write."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, _padded(owner).encode())
    finally:
        os.close(descriptor)


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
    """Identify the PID namespace: containers may share a host name, but not this."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    except OSError:
        return socket.gethostname()


def _start_time(pid: int) -> str | None:
    """Return when a process started, in clock ticks, or None if it has exited (a zombie counts as exited)."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    import psutil  # where there is no /proc

    try:
        return str(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _is_my_earlier_start(owner: dict) -> bool:
    """Return whether the owner is an earlier start of this SLURM job: a requeued job keeps its id."""
    me = this_process()
    same_job = owner.get("slurm_job_id") is not None and owner["slurm_job_id"] == me["slurm_job_id"]
    return same_job and owner.get("slurm_restart_count") != me["slurm_restart_count"]


def _describe(owner: dict) -> str:
    if not owner.get("host"):
        return "a process that is just starting"
    job = f", SLURM job {owner['slurm_job_id']}" if owner.get("slurm_job_id") else ""
    age = f", last heartbeat {time.time() - owner['heartbeat']:.0f} s ago" if "heartbeat" in owner else ""
    return f"process {owner.get('pid')} on {owner['host']}{job}{age}"
