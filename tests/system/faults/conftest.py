"""What the fuzzers share."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_WRITING = ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.rename")


@pytest.fixture(scope="session")
def writes_only_below() -> Callable[[Path], contextlib.AbstractContextManager[None]]:
    """Return a context manager that asserts that all that this process writes meanwhile lies below a folder."""
    watched: list[list] = []

    def hook(event: str, arguments: tuple) -> None:
        if not watched:
            return
        if event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            watched[-1].append(arguments[0])
        elif event in ("os.remove", "os.rmdir") and arguments[1] >= 0:  # relative to an open folder, as rmtree does
            watched[-1].append(os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), arguments[0]))  # noqa: PTH115, PTH118
        elif event in ("os.link", "os.symlink"):
            watched[-1].append(arguments[1])
        elif event in _WRITING:
            watched[-1] += [path for path in arguments[:2] if isinstance(path, str | bytes | os.PathLike)]

    sys.addaudithook(hook)  # for as long as the interpreter lives

    @contextlib.contextmanager
    def watch(folder: Path, made: Path | None = None) -> Iterator[None]:
        watched.append([])
        try:
            yield
        finally:
            written = watched.pop()
        paths = [os.path.realpath(os.fsdecode(path)) for path in written if not isinstance(path, int)]
        allowed = [os.path.realpath(path) for path in (folder, made) if path]
        parents = [] if made is None else [allowed[1], *map(str, Path(allowed[1]).parents)]
        outside = [
            path
            for path in paths
            if not path.startswith((*(f"{root}/" for root in allowed), os.devnull)) and path not in parents
        ]
        assert outside == [], outside

    return watch
