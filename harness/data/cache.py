"""The cache folder, for files that are expensive but reproducible. Files are written atomically."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """Return the folder of one kind of cached file, below HARNESS_CACHE, XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("HARNESS_CACHE") or Path(home) / "diffusion-harness") / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def publish(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final` and move what was written there into place; the first writer wins.

    A process that loses the race finds the winner's file, so read `final` afterwards rather than what you wrote.
    """
    temporary = final.with_name(f".{final.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        yield temporary
        try:
            os.link(temporary, final)  # unlike rename, refuses to replace what another process has put there
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links: the content is the same, so the last writer may win
            temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
