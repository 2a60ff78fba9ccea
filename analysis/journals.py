"""What figures read of a run's journals, kept in the cache by their content: to parse them is half of a report's time.

    journals/<digest of the run's folder>.bin     a line of JSON, then all steps (int64), then all values (float64)

A file says of which bytes, read by which code, it was made, and has a checksum. What does not fit, or is damaged, is
read from the journals again, and so is a run that is being written; deleting the cache costs time alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from harness import PACKAGE_ROOT
from harness.data.cache import cache_folder
from harness.errors import DataError, RecordError
from harness.records.collapse import collapses, describe
from harness.records.directory import RunDirectory
from harness.records.reading import Fields, parse_json, read_bytes

MIN_BYTES = 1 << 15
"""Smaller journals are parsed sooner than they are looked up."""

Curves = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Journals:
    """What the journals of a run say.

    Attributes:
        prefixes: of the metrics of each finished evaluation, by its key.
        collapses: signs that the model has collapsed, one line each.
        curves: metric -> [n] steps and [n] values, without superseded rows.
        over_training: the metrics whose steps are training steps.
        problems: torn and damaged lines and contradictions, one line each.
    """

    prefixes: dict[str, str] = field(default_factory=dict)
    collapses: tuple[str, ...] = ()
    curves: Curves = field(default_factory=dict)
    over_training: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()


def read_journals(directory: RunDirectory) -> Journals:
    """Return what the journals of a run say.

    Raises:
        RecordError: a journal cannot be read, or its rows cannot be placed.
    """
    paths = directory.journal_paths()
    contents = [read_bytes(path) for path in paths]
    whole = all(content.endswith(b"\n") for content in contents)
    if not whole or sum(map(len, contents)) < MIN_BYTES or directory.may_be_written():
        return _parsed(directory)
    identity = _identity([path.name for path in paths], contents)
    try:
        name = hashlib.sha256(os.fsencode(directory.path.resolve())).hexdigest()[:32]
        kept = cache_folder("journals") / f"{name}.bin"
    except DataError:  # no folder for it
        return _parsed(directory)
    with contextlib.suppress(FileNotFoundError, RecordError, ValueError, TypeError):
        return _unpacked(read_bytes(kept), identity)
    journals = _parsed(directory)
    if [path.stat().st_size for path in paths] == list(map(len, contents)):  # else more was written meanwhile
        _keep(kept, _packed(journals, identity))
    return journals


def _parsed(directory: RunDirectory) -> Journals:
    events = [event for event in directory.events("evaluation") if not event.superseded]
    curves, over_training = _curves(directory)
    return Journals(
        {event.fields["key"]: event.fields["prefix"] for event in events if event.fields.keys() >= {"key", "prefix"}},
        tuple(describe(event) for event in collapses(directory)),
        curves,
        over_training,
        tuple(directory.problems()),
    )


def _curves(directory: RunDirectory) -> tuple[Curves, frozenset[str]]:
    """Return every metric's steps and values, and the names of those whose steps are training steps."""
    points: dict[str, list[tuple[int, float]]] = {}
    over_others = set()
    for row in directory.rows():
        if not row.key.startswith("system/"):
            points.setdefault(row.key, []).append((row.x, row.value))
            if row.x != row.train_step:
                over_others.add(row.key)
    curves = {
        key: (np.array([step for step, _ in pairs]), np.array([value for _, value in pairs]))
        for key, pairs in points.items()
    }
    return curves, frozenset(curves.keys() - over_others)


# -- the cache


def _identity(names: Sequence[str], contents: Sequence[bytes]) -> str:
    """Return a digest of journals and of the code that reads them."""
    digest = hashlib.sha256(_code())
    for name, content in zip(names, contents, strict=True):
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


@cache
def _code() -> bytes:
    package = PACKAGE_ROOT / "harness"
    records = [package / "records" / f"{name}.py" for name in ("collapse", "directory", "journal", "reading")]
    return b"\0".join(path.read_bytes() for path in (*records, package / "text.py", Path(__file__)))


def _packed(journals: Journals, identity: str) -> bytes:
    curves = journals.curves
    steps = np.concatenate([np.empty(0, "<i8"), *(steps for steps, _ in curves.values())]).astype("<i8")
    values = np.concatenate([np.empty(0, "<f8"), *(values for _, values in curves.values())]).astype("<f8")
    body = steps.tobytes() + values.tobytes()
    header = {
        "identity": identity,
        "crc32": zlib.crc32(body),
        "curves": [[key, len(steps), key in journals.over_training] for key, (steps, _) in curves.items()],
        "prefixes": journals.prefixes,
        "collapses": journals.collapses,
        "problems": journals.problems,
    }
    return json.dumps(header).encode() + b"\n" + body


def _unpacked(content: bytes, identity: str) -> Journals:
    """Return what was kept.

    Raises:
        RecordError, ValueError, TypeError: it is of other journals, or damaged.
    """
    line, _, body = content.partition(b"\n")
    header = Fields(parse_json(line, "a kept journal"), "a kept journal")
    lengths: list[Any] = header.get("curves")
    total = sum(length for _, length, _ in lengths)
    if header.text("identity") != identity or header.integer("crc32") != zlib.crc32(body) or len(body) != 16 * total:
        raise ValueError("of other journals, or damaged")
    steps, values = np.frombuffer(body, "<i8", total).copy(), np.frombuffer(body, "<f8", total, 8 * total).copy()
    curves: Curves = {}
    start = 0
    for key, length, _ in lengths:
        curves[key] = steps[start : start + length], values[start : start + length]
        start += length
    return Journals(
        dict(header.get("prefixes")),
        tuple(header.get("collapses")),
        curves,
        frozenset(key for key, _, over_training in lengths if over_training),
        tuple(header.get("problems")),
    )


def _keep(path: Path, content: bytes) -> None:
    """Write a file of the cache, whole or not at all; on a full or read-only disk the journals are read again."""
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    with contextlib.suppress(OSError):
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
