"""System metrics, sampled into the journal."""

from __future__ import annotations

import threading
from collections.abc import Callable

from harness.records.journal import Journal


class SystemMetrics:
    """Sample the machine's load into the journal from a thread, as `system/...` rows.

    Args:
        current_step: returns the training step at which a sample is taken.
        extra: returns more gauges by name without prefix, e.g. GPU memory; it must not synchronise with the device.
    """

    def __init__(
        self,
        journal: Journal,
        current_step: Callable[[], int],
        every_seconds: float = 10.0,
        extra: Callable[[], dict[str, float]] | None = None,
    ):
        import psutil

        self._journal, self._current_step, self._every, self._extra = journal, current_step, every_seconds, extra
        self._process, self._psutil = psutil.Process(), psutil
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, name="system-metrics", daemon=True)

    def __enter__(self) -> SystemMetrics:
        self._process.cpu_percent()  # the first call has no interval to measure over
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def sample(self) -> dict[str, float]:
        """Return one sample: this process in per cent of one core and GiB, the whole machine's memory in per cent."""
        gauges = {
            "process_cpu_percent": self._process.cpu_percent(),
            "process_memory_gib": self._process.memory_info().rss / 2**30,
            "host_memory_percent": self._psutil.virtual_memory().percent,
            **(self._extra() if self._extra else {}),
        }
        return {f"system/{name}": value for name, value in gauges.items()}

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(self._every):
            self._journal.metrics(self._current_step(), self.sample())
