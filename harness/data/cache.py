"""The cache folder, for files that are expensive but reproducible. Files are written atomically."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from harness.errors import DataError

_ABANDONED_SECONDS = 600  # a file that is being written changes more often


def cache_folder(kind: str) -> Path:
    """Return the folder of one kind of cached file, below HARNESS_CACHE, XDG_CACHE_HOME or ~/.cache.

    Raises:
        DataError: it does not exist and cannot be made.
    """
    folder = cache_root() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_written(folder, error) from error
    return folder


def cache_root() -> Path:
    """Return the folder of all cached files, which need not exist.

    Raises:
        DataError: this user has no home folder.
    """
    try:
        if given := os.environ.get("HARNESS_CACHE"):
            return Path(given).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "diffusion-harness"
    except RuntimeError as error:  # expanduser and home: no such user, or one without a home
        raise DataError(f"no folder for the cache ({error}): set HARNESS_CACHE to one") from error


@contextmanager
def publish(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final` and move what was written there into place; the first writer wins.

    A process that loses the race finds the winner's file, so read `final` afterwards rather than what you wrote.

    Raises:
        DataError: the file cannot be written; nothing of it is left.
    """
    temporary = final.with_name(f".{final.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        _remove_abandoned(final.parent)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut may leave the name with zeros for content
        try:
            os.link(temporary, final)  # unlike rename, refuses to replace what another process has put there
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links: the content is the same, so the last writer may win
            temporary.replace(final)
    except OSError as error:
        raise _cannot_be_written(final.parent, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def allocate(file: IO[bytes], size: int) -> None:
    """Reserve a file's whole size, so that a full disk is an OSError now rather than after an hour of writing."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        file.flush()
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.EOPNOTSUPP,
            errno.ENOSYS,
        ):  # those file systems write it step by step
            raise


def _remove_abandoned(folder: Path) -> None:
    """Remove what writers on this machine left behind that were killed."""
    for path in folder.glob(f".*.{os.uname().nodename}.*"):
        pid = path.name.rpartition(".")[2]
        with contextlib.suppress(OSError):
            idle = time.time() - path.stat().st_mtime
            if pid.isdigit() and idle > _ABANDONED_SECONDS and not _is_running(int(pid)):
                path.unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _cannot_be_written(folder: Path, error: OSError) -> DataError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        problem = "the disk or your quota is full" if error.errno != errno.EFBIG else "a limit on the size of files"
        return DataError(
            f"the cache {folder} cannot be written: {problem}; make room, or set HARNESS_CACHE to a folder elsewhere"
        )
    return DataError(
        f"the cache {folder} cannot be written: {error.strerror}; set HARNESS_CACHE to a folder that can be written"
    )
