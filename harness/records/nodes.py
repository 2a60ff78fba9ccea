"""Nodes of a cluster that ended a run: runs/.nodes/<node>.json, one file a node, for a day.

Jobs that are submitted meanwhile exclude them. To use a node before that, remove its file.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.errors import RecordError
from harness.records.files import replace_file, safe_name
from harness.records.layout import NODES
from harness.records.reading import Fields, read_json

EXCLUDED_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class BadNode:
    """A node, and what was wrong with it last."""

    node: str
    reason: str
    found_seconds: float  # Unix time

    def describe(self, runs_folder: Path) -> str:
        until = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.found_seconds + EXCLUDED_SECONDS))
        path = runs_folder / NODES / f"{self.node}.json"
        return f"node {self.node} is excluded until {until}: {self.reason}; to use it before that, remove {path}"


def report_bad_node(runs_folder: Path, node: str, reason: str, found_seconds: float | None = None) -> None:
    """Record that a node ended a run; an earlier entry is replaced. A full disk is no reason to end otherwise."""
    entry = BadNode(safe_name(node), reason, time.time() if found_seconds is None else found_seconds)
    path = runs_folder / NODES / f"{node}.json"
    with contextlib.suppress(OSError, RecordError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(asdict(entry)), durable=False)


def bad_nodes(runs_folder: Path) -> list[BadNode]:
    """Return the nodes that are excluded now, by name; an entry that cannot be read is left out."""
    entries = []
    for path in sorted((runs_folder / NODES).glob("*.json")):
        with contextlib.suppress(OSError, RecordError):
            fields = Fields(read_json(path), str(path))
            entries.append(BadNode(path.stem, fields.text("reason"), fields.seconds("found_seconds")))
    return [entry for entry in entries if time.time() - entry.found_seconds < EXCLUDED_SECONDS]
