"""Show log messages as plain lines, without levels and logger names: for the command line and for jobs."""

from __future__ import annotations

import logging
import os
import sys
from typing import Literal

from harness.text import printable_lines


class _PlainLines(logging.Handler):
    """Print each message to the current `sys.stderr` or `sys.stdout`."""

    def __init__(self, stream: Literal["stderr", "stdout"]):
        super().__init__()
        self.stream: Literal["stderr", "stdout"] = stream

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stdout if self.stream == "stdout" else sys.stderr
        stream.write(printable_lines(self.format(record)) + "\n")
        stream.flush()


def show_messages(stream: Literal["stderr", "stdout"] = "stderr") -> None:
    """Print the harness's log messages from INFO on; a repeated call only changes the stream."""
    make_streams_usable()
    logger = logging.getLogger("harness")
    for handler in [handler for handler in logger.handlers if isinstance(handler, _PlainLines)]:
        logger.removeHandler(handler)
    logger.addHandler(_PlainLines(stream))
    logger.setLevel(logging.INFO)


def make_streams_usable() -> None:
    """Let standard output and error take any text: a character that their encoding lacks becomes \\xe9 or \\u2192.

    Otherwise a name or a plus-minus sign would end a command in a terminal that is not UTF-8, while its workers go on.
    A stream that is closed becomes an empty one.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115 (until the process ends)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by `>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 (until the process ends)
        elif hasattr(stream, "reconfigure") and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
