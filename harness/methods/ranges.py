"""Names for the parts of a training step, as a profiler shows them.

They exist only while something records them: otherwise a range is one look at a flag, a fifth of a microsecond.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, get_args

from torch.profiler import record_function

RangeName = Literal["data", "forward", "backward", "optimizer", "EMA", "records"]
RANGES: tuple[RangeName, ...] = get_args(RangeName)

_UNNAMED: AbstractContextManager[Any] = nullcontext()
_recording = False


def named_range(name: RangeName) -> AbstractContextManager[Any]:
    """Name a block in the trace of a profiler; ranges do not lie in one another."""
    return record_function(name) if _recording else _UNNAMED


@contextmanager
def recorded_ranges() -> Iterator[None]:
    """Record the names of ranges within the block, for the profiler around it."""
    global _recording
    _recording = True
    try:
        yield
    finally:
        _recording = False
