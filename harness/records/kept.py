"""Arrays that an evaluation keeps in the run directory: what it has drawn and computed so far, and samples' features.

    kept/<key>/draw.json                            what the samples depend on; the key is its digest
    kept/<key>/batch-000003-256-uint8-<sha256>.npy  one batch of samples
    kept/<key>/batch-000003-<sha256>.npy            one batch of values that a part computes, such as terms of the bound
    kept/<key>/features-...-<sha256>.npy            the features of all of them

A file's name has the sha256 of its content, as a checkpoint's has: one that is not what its name says is damaged, and
counts as missing. Nothing here is a record: all of it can be drawn again from the run's weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import IO, Any

import numpy as np

from harness.errors import RecordError
from harness.records.files import replace_file
from harness.records.layout import KEPT_BATCHES

logger = logging.getLogger(__name__)

_ARRAY = re.compile(r"(.+)-([0-9a-f]{64})\.npy")


class KeptArrays:
    """The arrays that are kept of one draw of samples, or of one part's values; one process writes, any may read.

    Args:
        folder: of all draws of a run; made when something is written.
        draw: everything that they depend on, as plain values.
    """

    def __init__(self, folder: Path, draw: dict[str, Any]):
        from harness.spec.base import digest  # imports pydantic, which readers do not need

        self.draw = draw
        self.folder = folder / digest(draw)

    def read(self, name: str) -> np.ndarray | None:
        """Return an array; None if it was not kept, or if its file is damaged, which is then removed."""
        for path in self._files(name):
            match = _ARRAY.fullmatch(path.name)
            assert match, "the pattern of _files"
            try:
                with path.open("rb") as file:
                    intact = hashlib.file_digest(file, "sha256").hexdigest() == match[2]
                    file.seek(0)
                    if intact:
                        return np.load(file, allow_pickle=False)
            except (OSError, ValueError, EOFError):
                pass
            logger.warning(f"{path} is damaged; it is removed and computed again")
            path.unlink(missing_ok=True)
        return None

    def write(self, name: str, array: np.ndarray) -> None:
        """Write an array; a reader, or a process that resumes after a kill, sees the whole of it or nothing.

        Raises:
            OSError: it cannot be written, such as on a full disk; nothing of it is left.
        """
        self._create()
        temporary = self.folder / f".{name}.{os.getpid()}"
        try:
            with temporary.open("wb") as file:
                hashing = _HashingFile(file)
                np.lib.format.write_array(hashing, np.ascontiguousarray(array), allow_pickle=False)
            temporary.replace(self.folder / f"{name}-{hashing.digest.hexdigest()}.npy")
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def remove_batches(self) -> None:
        """Remove the batches, and the folder if it then has nothing else."""
        for path in self.folder.glob(KEPT_BATCHES):
            path.unlink(missing_ok=True)
        if not any(self.folder.glob("*.npy")):
            (self.folder / "draw.json").unlink(missing_ok=True)
            for folder in (self.folder, self.folder.parent):
                try:
                    folder.rmdir()
                except OSError:  # it never existed, or has something else
                    break

    def _files(self, name: str) -> list[Path]:
        paths = self.folder.glob("[!.]*.npy") if self.folder.is_dir() else []
        return sorted(path for path in paths if (match := _ARRAY.fullmatch(path.name)) and match[1] == name)

    def _create(self) -> None:
        if self.folder.is_dir():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            replace_file(self.folder / "draw.json", json.dumps(self.draw, indent=1), durable=False)
        except RecordError as error:
            raise error.__cause__ if isinstance(error.__cause__, OSError) else OSError(str(error)) from error


class _HashingFile:
    """Hashes what NumPy writes."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)
