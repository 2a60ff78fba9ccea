"""The run directory: the truth about one run, written by one process and read by all.

    runs/<run_key>/
        spec.json  spec.yaml        what the run is; never changes
        studies/<study>.json        the studies it belongs to, and its arm, replicate and evaluations there
        status.json                 where it stands; replaced often, never synced to disk, may be a few seconds old
        journal-<attempt>.jsonl     every metric and event of one attempt, appended; what figures are made from
        environment.json            one entry an attempt: host, versions, threads, device, code snapshot
        arrays/*.npz  samples/*.png  checkpoints/
        lock/  tracking/            who writes, and what MLflow already has

A journal line is `<crc32 of the rest, 8 hex> <json>\\n`, appended by one write(). A killed process can tear only the
last line of its attempt; readers drop it and say so. Each attempt opens a new file whose header names the step that it
resumed from: rows that an earlier attempt made past that step are fenced off, because they are made again.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import RecordError

STATES = ("new", "queued", "running", "interrupted", "failed", "pruned", "done")
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0


def replace_file(path: Path, text: str, *, durable: bool) -> None:
    """Put a whole new text in the place of a file, so that a reader sees the old or the new one and nothing between.

    With `durable` it also survives a power cut; without, it costs two system calls less than a disk flush.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RecordError(f"{path}: cannot be written: {error.strerror}") from error
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the creation and renaming of files in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def safe_name(name: str) -> str:
    """Return a name that may become a file name; refuse separators, `..`, newlines and other surprises.

    Raises:
        RecordError: the name is not made of letters, digits and `_ - . + = ,`, does not begin with a letter or digit,
            or is longer than 100 characters.
    """
    if not re.fullmatch(r"[^\W_][\w.+=,-]{0,99}", name) or ".." in name:
        raise RecordError(
            f"{name!r} cannot be a file name: use letters, digits and _ - . + = , (a letter or digit first, no '..')"
        )
    return name


def differences(stored: Any, asked: Any, path: str = "") -> list[str]:
    """Say path by path where two resolved specs differ."""
    if isinstance(stored, dict) and isinstance(asked, dict):
        lines = []
        for key in [*stored, *(key for key in asked if key not in stored)]:
            here = f"{path}.{key}" if path else str(key)
            if key not in asked:
                lines.append(f"{here}: stored {stored[key]!r}, now absent")
            elif key not in stored:
                lines.append(f"{here}: not stored, now {asked[key]!r}")
            else:
                lines.extend(differences(stored[key], asked[key], here))
        return lines
    # 1 == 1.0 == True in Python, but they are three different specs.
    same = stored == asked and type(stored) is type(asked)
    return [] if same else [f"{path}: stored {stored!r}, now {asked!r}"]


# --------------------------------------------------------------------------------------------------------------- locks


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
                file.write(json.dumps(_myself()))
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


def _myself() -> dict:
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
    me = _myself()
    same_job = owner["slurm_job_id"] is not None and owner["slurm_job_id"] == me["slurm_job_id"]
    return same_job and owner["slurm_restart_count"] != me["slurm_restart_count"]


def _describe(owner: dict) -> str:
    if not owner.get("host"):
        return "a process that is just starting"
    job = f", SLURM job {owner['slurm_job_id']}" if owner["slurm_job_id"] else ""
    age = f", last heartbeat {time.time() - owner['heartbeat']:.0f} s ago" if "heartbeat" in owner else ""
    return f"process {owner['pid']} on {owner['host']}{job}{age}"


# ------------------------------------------------------------------------------------------------------------- journal


@dataclass(frozen=True, slots=True)
class Row:
    """One value of one metric: `step` is what MLflow draws it at, `at` the training step at which it was made."""

    key: str
    value: float
    step: int
    at: int
    time_ms: int
    attempt: int
    seq: int


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; `fenced` when it belongs to steps that a later attempt made again."""

    name: str
    facts: dict
    time_ms: int
    attempt: int
    seq: int
    fenced: bool = False


def is_measurement(key: str) -> bool:
    """Tell timings and system metrics, which differ each time, from results, which must not."""
    return key.startswith(("system/", "perf/")) or key.endswith("_seconds")


class Journal:
    """Append the metrics and events of one attempt; safe to use from several threads.

    Every line is in the operating system's hands when a call returns, so a SIGKILL loses nothing; `sync` puts it on the
    disk. Call `sync` before a checkpoint is written, then `event("checkpoint", step=...)`, then `sync` again: a durable
    checkpoint then never stands on rows that a power cut could take.
    """

    def __init__(self, path: Path, attempt: int, lock: FolderLock | None = None):
        self.path, self.attempt = path, attempt
        self._run_lock = lock
        self._thread_lock = threading.Lock()
        self._known_keys: set[str] = set()
        self._seq = 0
        self._size = 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)

    def metrics(self, step: int, values: dict[str, float], *, at: int | None = None) -> None:
        """Record metric values at a step.

        Args:
            step: where MLflow draws the point; for `eval/L_t_bpd` it is t.
            values: NaN and infinities are kept.
            at: training step at which the values were made (default: step); fencing and durability go by it.

        Raises:
            RecordError: a key that MLflow would refuse, or the disk is full.
        """
        if not self._known_keys.issuperset(values):
            self._known_keys.update(_valid_key(key) for key in values)
        row = {key: float(value) for key, value in values.items()}
        self._append({"step": int(step), "at": int(step if at is None else at), "metrics": row})

    def event(self, name: str, **facts: Any) -> None:
        """Record that something happened: started, checkpoint, evaluation, finished, failed, interrupted."""
        self._append({"event": name, "facts": facts})

    def sync(self) -> None:
        """Put everything on the disk, and make sure that the run directory is still ours."""
        if self._run_lock:
            self._run_lock.verify()
        os.fsync(self._file)

    def close(self) -> None:
        """Sync and close; later calls fail."""
        with self._thread_lock:
            if self._file >= 0:
                os.fsync(self._file)
                os.close(self._file)
                self._file = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, entry: dict) -> None:
        with self._thread_lock:
            self._seq += 1
            body = json.dumps({"seq": self._seq, "ms": time.time_ns() // 1_000_000, **entry}).encode()
            line = b"%08x %s\n" % (zlib.crc32(body), body)
            try:
                written = os.write(self._file, line)
                if written < len(line):  # the disk filled up within the line
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                if self._file >= 0:
                    os.ftruncate(self._file, self._size)
                self._seq -= 1
                raise RecordError(f"{self.path}: cannot be appended to: {error.strerror}") from error
            self._size += len(line)


def _valid_key(key: str) -> str:
    if not re.fullmatch(r"[\w][\w\-. :/]{0,249}", key) or ".." in key or "//" in key or key.endswith("/"):
        raise RecordError(f"{key!r} cannot be a metric: use letters, digits and _ - . : / (MLflow's rule)")
    return key


def _attempt_number(journal: Path) -> int:
    return int(journal.stem.removeprefix("journal-"))


class _AttemptFile:
    """What has been read so far of one attempt's journal; `refresh` reads only what was appended since."""

    def __init__(self, path: Path):
        self.path = path
        self.attempt = _attempt_number(path)
        self.rows: list[Row] = []
        self.events: list[Event] = []
        self.damage: list[str] = []
        self.torn_bytes = 0
        self._offset = 0
        self._num_lines = 0
        self._seq = 0

    @property
    def resumed_from_step(self) -> int | None:
        """The step whose checkpoint the attempt went on from; None when it died before it wrote a line."""
        if not self._num_lines:
            return None
        if not self.events or self.events[0].seq != 1:
            raise RecordError(f"{self.path}: the header line is damaged, so its rows cannot be placed")
        return self.events[0].facts["resumed_from_step"]

    def refresh(self) -> None:
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        *lines, torn = data.split(b"\n")
        self.torn_bytes = len(torn)
        self._offset += len(data) - len(torn)
        for line in lines:
            self._read(line)

    def _read(self, line: bytes) -> None:
        self._num_lines += 1
        entry = _parse_line(line)
        if entry is None:
            self.damage.append(f"{self.path.name}: line {self._num_lines} is damaged (its checksum does not fit)")
            self._seq += 1
            return
        seq, time_ms = entry["seq"], entry["ms"]
        if seq != self._seq + 1:
            self.damage.append(f"{self.path.name}: entries {self._seq + 1} to {seq - 1} are missing")
        self._seq = seq
        if "event" in entry:
            self.events.append(Event(entry["event"], entry["facts"], time_ms, self.attempt, seq))
        else:
            step, at = entry["step"], entry["at"]
            self.rows.extend(
                Row(key, value, step, at, time_ms, self.attempt, seq) for key, value in entry["metrics"].items()
            )


def _parse_line(line: bytes) -> dict | None:
    """Return a journal line's entry, or None when its checksum does not fit."""
    checksum, _, body = line.partition(b" ")
    if len(checksum) != 8 or checksum != b"%08x" % zlib.crc32(body):
        return None
    return json.loads(body)


# -------------------------------------------------------------------------------------------------------------- status


@dataclass(frozen=True, slots=True)
class Status:
    """Where a run stands, as last said by whoever works on it."""

    state: str = "new"
    step: int = 0
    num_steps: int = 0
    attempt: int = 0
    reason: str = ""  # why it is interrupted, failed or pruned
    loss: float | None = None
    images_per_second: float | None = None
    eta_seconds: float | None = None
    updated_seconds: float = 0.0  # Unix time, set when written


_STATUS_FIELDS = {entry.name for entry in fields(Status)}


# ------------------------------------------------------------------------------------------------------- run directory


@dataclass
class RunDirectory:
    """Read and write the directory of one run; reading needs no lock and never waits."""

    path: Path
    _attempts: dict[str, _AttemptFile] = field(default_factory=dict, repr=False, compare=False)
    _lock: FolderLock | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        safe_name(self.key)

    @property
    def key(self) -> str:
        """The run_key: the folder's name."""
        return self.path.name

    # -- what it is

    def create(self, spec: dict, schema_version: int) -> RunDirectory:
        """Write the resolved spec; do nothing when the same one is there already.

        Raises:
            RecordError: another spec is stored here; the message says path by path where they differ.
        """
        asked = json.loads(json.dumps({"schema_version": schema_version, "spec": spec}))
        path = self.path / "spec.json"
        if path.exists():
            found = differences(json.loads(path.read_text()), asked)
            if found:
                raise RecordError("\n  ".join([f"{self.path} belongs to another spec:", *found]))
            return self
        import yaml  # 20 ms that readers need not pay

        self.path.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(asked["spec"], sort_keys=False, allow_unicode=True)
        replace_file(self.path / "spec.yaml", text, durable=True)
        # Last, because a spec.json means that the directory is whole.
        replace_file(path, json.dumps(asked, indent=2), durable=True)
        return self

    def spec(self) -> dict:
        """Return the resolved spec as plain values."""
        return self._read_json("spec.json")["spec"]

    def schema_version(self) -> int:
        """Return the version of the spec's schema that the run_key was made with."""
        return self._read_json("spec.json")["schema_version"]

    def join_study(self, study: str, facts: dict) -> None:
        """Make the run a member of a study, or change what the study says about it.

        Args:
            facts: arm, replicate, label, overrides, evaluations (a list of dicts), ...
        """
        folder = self.path / "studies"
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / f"{safe_name(study)}.json", json.dumps(facts, indent=2), durable=True)

    def studies(self) -> dict[str, dict]:
        """Return what each study says about this run, by the study's name."""
        paths = sorted((self.path / "studies").glob("[!.]*.json"))
        return {path.stem: json.loads(path.read_text()) for path in paths}

    def write_environment(self, attempt: int, facts: dict) -> None:
        """Record what an attempt ran on: host, versions, threads, device, code snapshot."""
        entries = [entry for entry in self.environments() if entry["attempt"] != attempt]
        text = json.dumps([*entries, {"attempt": attempt, **facts}], indent=2)
        replace_file(self.path / "environment.json", text, durable=True)

    def environments(self) -> list[dict]:
        """Return what each attempt ran on, oldest first."""
        path = self.path / "environment.json"
        return json.loads(path.read_text()) if path.exists() else []

    # -- where it stands

    def set_status(self, status: Status) -> None:
        """Replace status.json; cheap enough for every few seconds."""
        assert status.state in STATES, status.state
        text = json.dumps(asdict(status) | {"updated_seconds": time.time()})
        replace_file(self.path / "status.json", text, durable=False)

    def status(self) -> Status:
        """Return where the run stands; one that says running, but has no living writer, is interrupted."""
        try:
            with open(self.path / "status.json", "rb") as file:  # noqa: PTH123 (a third faster, for 1,000 runs)
                stored = json.loads(file.read())
        except FileNotFoundError:
            return Status()
        status = Status(**{key: value for key, value in stored.items() if key in _STATUS_FIELDS})
        if status.state == "running" and self.writer() is None:
            reason = status.reason or "killed: its process is gone"
            return Status(**asdict(status) | {"state": "interrupted", "reason": reason})
        return status

    def request_pruning(self, reason: str) -> None:
        """Ask whoever works on this run to end it for good at the next step; its checkpoint stays."""
        replace_file(self.path / "prune.json", json.dumps({"reason": reason}), durable=False)

    def pruning_requested(self) -> str:
        """Return the reason for which this run is to end, empty when it is not; cheap enough for every step."""
        try:
            return json.loads((self.path / "prune.json").read_text())["reason"]
        except FileNotFoundError:
            return ""

    # -- who writes

    @contextmanager
    def lock(self, wait_seconds: float = 0.0) -> Iterator[FolderLock]:
        """Hold the run directory as its one writer.

        Args:
            wait_seconds: how long to wait for another writer; 130 outlasts a dead job on another host.

        Raises:
            RecordError: another process writes here; the message names it.
        """
        lock = FolderLock(self.path / "lock", f"run {self.key}")
        lock.acquire(wait_seconds)
        self._lock = lock
        try:
            yield lock
        finally:
            self._lock = None
            lock.release()

    def writer(self) -> dict | None:
        """Return the facts of the process that writes here now, or None."""
        return FolderLock(self.path / "lock", f"run {self.key}").owner()

    def open_journal(self, *, resumed_from_step: int, **facts: Any) -> Journal:
        """Begin the next attempt; hold the lock.

        Args:
            resumed_from_step: step of the checkpoint it goes on from, 0 for a fresh start. Rows that earlier attempts
                made past it are fenced off from now on.
            facts: whatever else the header should say.
        """
        assert self._lock is not None, "an attempt needs the lock"
        attempt = max(self.attempts(), default=0) + 1
        journal = Journal(self.path / f"journal-{attempt:04d}.jsonl", attempt, self._lock)
        me = _myself()
        host, pid, job = me["host"], me["pid"], me["slurm_job_id"]
        header = {"attempt": attempt, "resumed_from_step": resumed_from_step, "host": host, "pid": pid}
        journal.event("started", **header, slurm_job_id=job, **facts)
        journal.sync()
        sync_folder(self.path)
        return journal

    # -- what happened

    def attempts(self) -> list[int]:
        """Return the numbers of the attempts so far, from 1."""
        return sorted(_attempt_number(path) for path in self.path.glob("journal-*.jsonl"))

    def rows(self) -> list[Row]:
        """Return every metric value that stands, over all attempts, in the order in which they were made.

        Fenced rows are left out. A result that was made twice (an evaluation that was killed and done again) is kept
        once: the first stands, and one that differs is listed by `problems`. Timings and system metrics may repeat.
        """
        return self._fenced_rows()[0]

    def problems(self) -> list[str]:
        """Say what is wrong with the journals: torn and damaged lines, missing entries and attempts, contradictions."""
        rows_problems = self._fenced_rows()[1]
        attempts = self._read_attempts()
        found = [line for attempt in attempts for line in attempt.damage]
        writing = self.writer() is not None
        for attempt in attempts:
            if attempt.torn_bytes and not (writing and attempt is attempts[-1]):
                found.append(f"{attempt.path.name}: torn last line dropped ({attempt.torn_bytes} bytes)")
        numbers = {attempt.attempt for attempt in attempts}
        missing = set(range(1, max(numbers, default=0) + 1)) - numbers
        found.extend(f"journal-{number:04d}.jsonl is missing" for number in sorted(missing))
        return found + rows_problems

    def events(self, name: str | None = None) -> list[Event]:
        """Return what happened, over all attempts, all of it or by name.

        An event with a `step` past the one that a later attempt resumed from is kept as history and marked as fenced.
        """
        attempts = self._read_attempts()
        found = []
        for attempt, fence in zip(attempts, self._fences(attempts), strict=True):
            for event in attempt.events:
                if name in (None, event.name):
                    fenced = event.facts.get("step", 0) > fence
                    found.append(Event(event.name, event.facts, event.time_ms, event.attempt, event.seq, fenced))
        return found

    def history(self, key: str) -> tuple[list[int], list[float]]:
        """Return one metric's curve: its steps and its values."""
        rows = [row for row in self.rows() if row.key == key]
        return [row.step for row in rows], [row.value for row in rows]

    def durable_step(self) -> int:
        """Return the step of the newest checkpoint that stands; rows made up to it can never change again."""
        resumed = [event.facts["resumed_from_step"] for event in self.events("started") if not event.fenced][-1:]
        return max(
            [event.facts["step"] for event in self.events("checkpoint") if not event.fenced] + resumed, default=0
        )

    def latest(self, tail_bytes: int = 16384) -> dict[str, Row]:
        """Return each metric's newest value, as far as the newest journal's tail tells; cheap, for live tables."""
        for path in reversed(self._journal_paths()):
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - tail_bytes))
                lines = file.read().split(b"\n")[1 if size > tail_bytes else 0 : -1]
            attempt, found = _attempt_number(path), {}
            for entry in filter(None, map(_parse_line, lines)):
                for key, value in entry.get("metrics", {}).items():
                    found[key] = Row(key, value, entry["step"], entry["at"], entry["ms"], attempt, entry["seq"])
            if found:
                return found
        return {}

    # -- how it is read

    def _read_json(self, name: str) -> dict:
        try:
            return json.loads((self.path / name).read_text())
        except FileNotFoundError:
            raise RecordError(f"{self.path} is not a run directory: it has no {name}") from None

    def _journal_paths(self) -> list[Path]:
        return sorted(self.path.glob("journal-*.jsonl"))

    def _read_attempts(self) -> list[_AttemptFile]:
        for path in self._journal_paths():
            self._attempts.setdefault(path.name, _AttemptFile(path)).refresh()
        return [self._attempts[name] for name in sorted(self._attempts)]

    @staticmethod
    def _fences(attempts: list[_AttemptFile]) -> list[float]:
        """Return the last step of each attempt that stands: the smallest one that any later attempt resumed from."""
        fences, fence = [], float("inf")
        for attempt in reversed(attempts):
            fences.append(fence)
            resumed = attempt.resumed_from_step
            fence = fence if resumed is None else min(fence, resumed)
        return fences[::-1]

    def _fenced_rows(self) -> tuple[list[Row], list[str]]:
        attempts = self._read_attempts()
        kept: list[Row] = []
        conflicts: list[str] = []
        first_made: dict[tuple[str, int, str], int] = {}
        standing: dict[tuple[str, int], Row] = {}
        for attempt, fence in zip(attempts, self._fences(attempts), strict=True):
            for row in attempt.rows:
                if is_measurement(row.key):
                    if row.at <= fence:
                        kept.append(row)
                    continue
                # A result that is made again bears the time at which it was made first. If the first one had gone to
                # MLflow before its checkpoint was found damaged, sending it again is then the same row, not a second.
                time_ms = first_made.setdefault((row.key, row.step, repr(row.value)), row.time_ms)
                if row.at > fence:
                    continue
                other = standing.get((row.key, row.step))
                if other is None:
                    if time_ms != row.time_ms:
                        row = Row(row.key, row.value, row.step, row.at, time_ms, row.attempt, row.seq)
                    standing[row.key, row.step] = row
                    kept.append(row)
                elif repr(other.value) != repr(row.value):
                    conflicts.append(
                        f"{row.key} at step {row.step}: {other.value!r} (attempt {other.attempt}), "
                        f"then {row.value!r} (attempt {row.attempt}); the first is kept"
                    )
        return kept, conflicts


# ------------------------------------------------------------------------------------------------------ system metrics


class SystemMetrics:
    """Sample the load of the machine into the journal from a small thread, as `system/...` rows.

    Args:
        current_step: tells the training step at which a sample is taken.
        extra: more gauges by name without prefix, e.g. GPU memory; it must not wait for the device.
    """

    def __init__(
        self,
        journal: Journal,
        current_step: Callable[[], int],
        every_seconds: float = 10.0,
        extra: Callable[[], dict[str, float]] | None = None,
    ):
        import psutil

        self._journal, self._current_step, self._every, self._extra = journal, current_step, every_seconds, extra
        self._process, self._psutil = psutil.Process(), psutil
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="system-metrics", daemon=True)

    def __enter__(self) -> SystemMetrics:
        self._process.cpu_percent()  # the first call has no interval to measure over
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def sample(self) -> dict[str, float]:
        """Return one sample: this process in per cent of one core and GiB, the whole machine's memory in per cent."""
        gauges = {
            "process_cpu_percent": self._process.cpu_percent(),
            "process_memory_gib": self._process.memory_info().rss / 2**30,
            "host_memory_percent": self._psutil.virtual_memory().percent,
            **(self._extra() if self._extra else {}),
        }
        return {f"system/{name}": value for name, value in gauges.items()}

    def _work(self) -> None:
        while not self._stop.wait(self._every):
            self._journal.metrics(self._current_step(), self.sample())
