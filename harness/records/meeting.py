"""The file by which processes of a run that srun has started find the first one, or learn that there is nothing to do.

    runs/<run_key>/lock/meeting-<job>.<step>-<restart>

The first process takes a port that is free and writes it here; when it has nothing to do, or ends, it says so instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from harness.errors import RecordError
from harness.records.files import replace_file
from harness.records.reading import Fields, parse_json

_PREFIX = "meeting-"
_POLL_SECONDS = 0.1


def meeting_name(environment: Mapping[str, str]) -> str:
    """Return the name of the file of this step of a SLURM job, in this life of the job."""
    job, step = environment.get("SLURM_JOB_ID", ""), environment.get("SLURM_STEP_ID", "0")
    return f"{_PREFIX}{job}.{step}-{environment.get('SLURM_RESTART_COUNT', '0')}"


class Meeting:
    """Where the processes of one run meet, in one life of their job.

    Args:
        folder: of the run's lock.
        name: of `meeting_name`.
    """

    def __init__(self, folder: Path, name: str):
        self._path = folder / name

    def announce(self, address: str, port: int) -> None:
        """Tell the others where the first process listens; files of earlier lives are removed."""
        for earlier in self._path.parent.glob(f"{_PREFIX}*"):
            if earlier != self._path:
                earlier.unlink(missing_ok=True)
        self._write({"address": address, "port": port})

    def close(self) -> None:
        """Tell the others that there is nothing to do, or no more; on a full disk they wait in vain, and leave."""
        with contextlib.suppress(RecordError, OSError):
            self._write({"closed": True})

    def wait(self, timeout_seconds: float) -> tuple[str, int] | None:
        """Return the address and port of the first process; None if there is nothing to do.

        Raises:
            TimeoutError: it says nothing.
            RecordError: the file is damaged.
        """
        end = time.monotonic() + timeout_seconds
        while not (text := self._read()):
            if time.monotonic() > end:
                raise TimeoutError(f"{self._path} is still empty")
            time.sleep(_POLL_SECONDS)
        fields = Fields(parse_json(text, str(self._path)), str(self._path))
        return None if "closed" in fields else (fields.line("address"), fields.integer("port", high=65535))

    def _write(self, content: dict[str, object]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._path, json.dumps(content), durable=False)

    def _read(self) -> bytes:
        # Opening a file that may be created asks the server: NFS remembers for a minute that there was none.
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the folder
            return b""
        with os.fdopen(descriptor, "rb") as file:
            return file.read()
