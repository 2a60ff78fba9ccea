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
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.lock import FolderLock


@dataclass(frozen=True, slots=True)
class Row:
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


def _valid_key(key: str) -> str:
    if not re.fullmatch(r"[\w][\w\-. :/]{0,249}", key) or ".." in key or "//" in key or key.endswith("/"):
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
        self._num_lines = 0
        self._seq = 0

    @property
    def resumed_from_step(self) -> int | None:
        """The step of the checkpoint that the attempt resumed from; None if it ended before it wrote a line."""
        if not self._num_lines:
            return None
        if not self.events or self.events[0].seq != 1:
            raise RecordError(f"{self.path}: the header line is damaged, so its rows cannot be placed")
        return self.events[0].fields["resumed_from_step"]

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
        entry = parse_line(line)
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
            x, train_step = entry["step"], entry["at"]
            self.rows.extend(
                Row(key, value, x, train_step, time_ms, self.attempt, seq) for key, value in entry["metrics"].items()
            )


def read_events(path: Path, name: str) -> list[Event]:
    """Return the complete events of one name in a journal, parsing no other lines."""
    return events_in(path.read_bytes(), attempt_number(path), name)


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
    """Return a journal line's entry, or None when its checksum does not fit."""
    checksum, _, body = line.partition(b" ")
    if len(checksum) != 8 or checksum != b"%08x" % zlib.crc32(body):
        return None
    return json.loads(body)
