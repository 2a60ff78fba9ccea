"""Atomic file writes, and names that are safe as file names."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any

from harness.errors import RecordError


def replace_file(path: Path, text: str, *, durable: bool) -> None:
    """Replace a file's content atomically: a reader sees the old or the new text.

    With `durable` it also survives a power failure; without, it saves the disk flush.
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
    """Flush the creation and renaming of files in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def safe_name(name: str) -> str:
    """Return the name if it is safe as a file name; refuse separators, `..`, newlines and other special characters.

    Raises:
        RecordError: the name is not made of letters, digits and `_ - . + = ,`, does not begin with a letter or digit,
            or is longer than 100 characters.
    """
    if not re.fullmatch(r"[^\W_][\w.+=,-]{0,99}", name) or ".." in name:
        raise RecordError(
            f"{name!r} cannot be a file name: use letters, digits and _ - . + = , (a letter or digit first, no '..')"
        )
    return name


def differences(stored: Any, new: Any, path: str = "") -> list[str]:
    """List the differences of two resolved specs by path."""
    if isinstance(stored, dict) and isinstance(new, dict):
        lines = []
        for key in [*stored, *(key for key in new if key not in stored)]:
            key_path = f"{path}.{key}" if path else str(key)
            if key not in new:
                lines.append(f"{key_path}: stored {stored[key]!r}, now absent")
            elif key not in stored:
                lines.append(f"{key_path}: not stored, now {new[key]!r}")
            else:
                lines.extend(differences(stored[key], new[key], key_path))
        return lines
    # 1 == 1.0 == True in Python, but they are three different specs.
    same = stored == new and type(stored) is type(new)
    return [] if same else [f"{path}: stored {stored!r}, now {new!r}"]
