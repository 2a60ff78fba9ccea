"""The journal of one attempt: append-only, one line per metric batch or event, each with its checksum."""

from __future__ import annotations

import errno
import json
import os
import re
import threading
import time
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import RecordError
from harness.records.lock import FolderLock
from harness.records.reading import MAX_INTEGER, MAX_SECONDS, Fields, as_number, parse_json, read_bytes


class Row(NamedTuple):
    """One value of one metric; `x` is its MLflow step (t for `eval/L_t_bpd`), `train_step` when it was made."""

    key: str
    value: float
    x: int
    train_step: int
    time_ms: int
    attempt: int
    seq: int


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; `superseded` when it belongs to steps that a later attempt repeats."""

    name: str
    fields: dict
    time_ms: int
    attempt: int
    seq: int
    superseded: bool = False


@lru_cache(maxsize=4096)
def is_measurement(key: str) -> bool:
    """Return whether a metric is a timing or a system metric, which differ each time, unlike results."""
    return key.startswith(("system/", "perf/")) or key.endswith("_seconds")


class Journal:
    """Append the metrics and events of one attempt; safe to use from several threads.

    Every line has been passed to the operating system when a call returns, so a SIGKILL loses nothing; `sync` flushes
    to disk. Call `sync` before a checkpoint is written, then `event("checkpoint", step=...)`, then `sync` again: then
    the rows before a durable checkpoint are durable too.
    """

    def __init__(self, path: Path, attempt: int, lock: FolderLock | None = None):
        self.path, self.attempt = path, attempt
        self._run_lock = lock
        self._thread_lock = threading.Lock()
        self._known_keys: set[str] = set()
        self._seq = 0
        self._size = 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)

    def metrics(self, x: int, values: dict[str, float], *, train_step: int | None = None) -> None:
        """Record metric values.

        Args:
            x: MLflow's step: the training step, or t for `eval/L_t_bpd`.
            values: NaN and infinities are kept.
            train_step: step at which the values were made (default: x); decides whether rows are superseded.

        Raises:
            RecordError: a key that MLflow would refuse, or the disk is full.
        """
        if not self._known_keys.issuperset(values):
            self._known_keys.update(_valid_key(key) for key in values)
        row = {key: float(value) for key, value in values.items()}
        self._append({"step": int(x), "at": int(x if train_step is None else train_step), "metrics": row})

    def event(self, name: str, **fields: Any) -> None:
        """Record an event: started, checkpoint, evaluation, finished, failed, interrupted."""
        self._append({"event": name, "facts": fields})

    def sync(self) -> None:
        """Flush everything to disk, and verify that this process still holds the lock."""
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
                if written < len(line):  # the disk became full within the line
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                if self._file >= 0:
                    os.ftruncate(self._file, self._size)
                self._seq -= 1
                raise RecordError(f"{self.path}: cannot be appended to: {error.strerror}") from error
            self._size += len(line)


_KEY = re.compile(r"[\w][\w\-. :/]{0,249}")


def is_metric_name(key: str) -> bool:
    """Return whether MLflow accepts a metric's name."""
    return bool(_KEY.fullmatch(key)) and ".." not in key and "//" not in key and not key.endswith("/")


def _valid_key(key: str) -> str:
    if not is_metric_name(key):
        raise RecordError(f"{key!r} cannot be a metric: use letters, digits and _ - . : / (MLflow's rule)")
    return key


def attempt_number(journal: Path) -> int:
    return int(journal.stem.removeprefix("journal-"))


class AttemptFile:
    """The journal of one attempt as read so far; `refresh` reads only what was appended since."""

    def __init__(self, path: Path):
        self.path = path
        self.attempt = attempt_number(path)
        self.rows: list[Row] = []
        self.events: list[Event] = []
        self.damage: list[str] = []
        self.torn_bytes = 0
        self._offset = 0
        self.num_lines = 0
        self._seq = 0

    @property
    def resumed_from_step(self) -> int | None:
        """The step of the checkpoint that the attempt resumed from; None if it ended before it wrote a line."""
        if not self.num_lines:
            return None
        if not self.events or self.events[0].seq != 1 or "resumed_from_step" not in self.events[0].fields:
            raise RecordError(f"{self.path}: the header line is damaged, so its rows cannot be placed")
        return self.events[0].fields["resumed_from_step"]

    def refresh(self) -> None:
        """Read what was appended.

        Raises:
            RecordError: the file cannot be read.
        """
        data = read_bytes(self.path, self._offset)
        *lines, torn = data.split(b"\n")
        self.torn_bytes = len(torn)
        self._offset += len(data) - len(torn)
        for line in lines:
            self._read(line)

    def _read(self, line: bytes) -> None:
        self.num_lines += 1
        try:
            entry = _entry(line)
        except RecordError as error:
            self.damage.append(f"{self.path.name}: line {self.num_lines} is damaged ({error})")
            self._seq += 1
            return
        seq, time_ms = entry["seq"], entry["ms"]
        if seq != self._seq + 1:
            self.damage.append(f"{self.path.name}: entries {self._seq + 1} to {seq - 1} are missing")
        self._seq = seq
        if "event" in entry:
            self.events.append(Event(entry["event"], entry["facts"], time_ms, self.attempt, seq))
        else:
            x, train_step = entry["step"], entry["at"]
            self.rows.extend(
                Row(key, value, x, train_step, time_ms, self.attempt, seq) for key, value in entry["metrics"].items()
            )


def read_events(path: Path, name: str) -> list[Event]:
    """Return the complete events of one name in a journal, parsing no other lines.

    Raises:
        RecordError: the file cannot be read.
    """
    return events_in(read_bytes(path), attempt_number(path), name)


def first_time_ms(path: Path) -> int | None:
    """Return the Unix time in ms of a journal's first line, parsing no other; None if it is torn or cannot be read."""
    try:
        entry = parse_line(read_bytes(path).partition(b"\n")[0])
    except (FileNotFoundError, RecordError):
        return None
    return entry["ms"] if entry else None


def events_in(data: bytes, attempt: int, name: str) -> list[Event]:
    """Return the complete events of one name in a journal's content, parsing no other lines."""
    mark = json.dumps({"event": name}).encode()[1:-1]
    events, end = [], 0
    while (position := data.find(mark, end)) >= 0:
        start, end = data.rfind(b"\n", 0, position) + 1, data.find(b"\n", position)
        if end < 0:
            break  # torn
        entry = parse_line(data[start:end])
        if entry and entry.get("event") == name:
            events.append(Event(name, entry["facts"], entry["ms"], attempt, entry["seq"]))
    return events


def last_value(data: bytes, key: str) -> float | None:
    """Return the newest value of a metric in a journal's content, searched from its end; None if it has none."""
    end = len(data)
    while (position := data.rfind(json.dumps(key).encode() + b": ", 0, end)) >= 0:
        start = data.rfind(b"\n", 0, position) + 1
        line, newline, _ = data[start:].partition(b"\n")
        entry = parse_line(line) if newline else None
        if entry and key in entry.get("metrics", {}):
            return entry["metrics"][key]
        end = start
    return None


def parse_line(line: bytes) -> dict | None:
    """Return a journal line's entry, or None when its checksum does not fit or it is not an entry."""
    try:
        return _entry(line)
    except RecordError:
        return None


MEASURED = "measured"
"""An event: metrics with a prefix were measured at a step during training, by the protocol that has a key."""

# What readers rely on in an event; a field that is not listed is only shown.
_REQUIRED_FIELDS: dict[str, dict[str, Any]] = {
    "started": {"resumed_from_step": Fields.integer, "host": Fields.text, "pid": Fields.integer},
    "checkpoint": {"step": Fields.integer},
    MEASURED: {"step": Fields.integer, "key": Fields.file_name, "prefix": Fields.file_name},
}
_OPTIONAL_FIELDS: dict[str, dict[str, Any]] = {
    "evaluation": {"key": Fields.file_name, "prefix": Fields.file_name},  # they are parts of files' names
    "collapse": {"sign": Fields.line},
}


def _entry(line: bytes) -> dict:
    """Return a journal line's entry, with the types that `Journal` writes.

    Raises:
        RecordError: its checksum does not fit, or it is not an entry; the message says which value is wrong.
    """
    checksum, _, body = line.partition(b" ")
    if len(checksum) != 8 or checksum != b"%08x" % zlib.crc32(body):
        raise RecordError("its checksum does not fit")
    entry = parse_json(body, "its content")
    if _is_plain(entry):
        return entry
    fields = Fields(entry, "its content")
    fields.integer("seq", low=1)
    fields.integer("ms", high=1000 * MAX_SECONDS)
    if "event" in fields:
        name, facts = fields.line("event"), fields.fields("facts")
        if "step" in facts:
            facts.integer("step")
        for field, read in _REQUIRED_FIELDS.get(name, {}).items():
            read(facts, field)
        for field, read in _OPTIONAL_FIELDS.get(name, {}).items():
            if field in facts:
                read(facts, field)
    else:
        fields.integer("step", low=-MAX_INTEGER)
        fields.integer("at", low=-MAX_INTEGER)
        fields.fields("metrics")
        entry["metrics"] = {key: _checked_value(key, value) for key, value in entry["metrics"].items()}
    return entry


def _is_plain(entry: Any) -> bool:
    """Return whether an entry is as nearly all of a journal: numbers of known metrics, which need no further check."""
    if type(entry) is not dict or entry.keys() != _OF_METRICS:
        return False
    seq, ms, step, at, metrics = (entry[name] for name in ("seq", "ms", "step", "at", "metrics"))
    return (
        type(seq) is type(ms) is type(step) is type(at) is int
        and 1 <= seq <= MAX_INTEGER
        and 0 <= ms <= 1000 * MAX_SECONDS
        and -MAX_INTEGER <= step <= MAX_INTEGER
        and -MAX_INTEGER <= at <= MAX_INTEGER
        and type(metrics) is dict
        and _KNOWN_KEYS.issuperset(metrics)
        and all(type(value) is float for value in metrics.values())
    )


def _checked_value(key: str, value: Any) -> float:
    number = value if type(value) is float else as_number(value)
    if number is None:
        raise RecordError(f"the value of {key!r} is not a number")
    if key not in _KNOWN_KEYS:
        if not is_metric_name(key):
            raise RecordError(f"{key!r} cannot be a metric")
        if len(_KNOWN_KEYS) < 100_000:
            _KNOWN_KEYS.add(key)
    return number


_KNOWN_KEYS: set[str] = set()
_OF_METRICS = {"seq", "ms", "step", "at", "metrics"}
