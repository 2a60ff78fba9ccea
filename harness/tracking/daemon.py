"""Sync in a separate process beside a job, or watch a folder: `python -m harness.tracking.daemon`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness import PACKAGE_ROOT
from harness.errors import HarnessError, TrackingError
from harness.messages import show_messages
from harness.records.directory import RunDirectory
from harness.records.layout import STUDIES
from harness.records.manifest import Manifests
from harness.records.status import is_active
from harness.text import count
from harness.tracking.experiment import sync_experiments
from harness.tracking.memberships import memberships_of
from harness.tracking.store import store_uri
from harness.tracking.studies import sync_arms, sync_studies
from harness.tracking.sync import file_stamp, sync_run

logger = logging.getLogger(__name__)

MAX_PAUSE_SECONDS = 600.0


def watch(
    gather: Callable[[], Sequence[RunDirectory]],
    states_of: Callable[[Sequence[RunDirectory]], Mapping[str, str]],
    on_news: Callable[[str], None],
    *,
    tracking_uri: str | None = None,
    every_seconds: float = 30.0,
    for_ever: bool = False,
) -> None:
    """Upload records to MLflow repeatedly, until everything is uploaded and nothing is left to run.

    A login node does this for compute nodes that cannot reach the server. During an outage the pause between attempts
    doubles, up to ten minutes.

    Args:
        gather: finds the runs; called before each pass.
        states_of: returns their states by key, as `harness status` shows them: a killed run whose job SLURM has
            requeued is not over, and a queued one whose job was cancelled is.
        on_news: called with a line for each change.
        for_ever: continue when nothing is left to run.
    """
    sync_loop = _SyncLoop(tracking_uri)
    last_news, pause, away = "", every_seconds, False
    while True:
        run_directories = gather()
        states = states_of(run_directories)  # before the upload: a run that ends during it is uploaded once more
        num_rows, lines, error = sync_loop.sync(run_directories)
        if num_rows:
            on_news(f"{count(num_rows, 'row')} uploaded")
        if error:
            pause = min(2 * pause, MAX_PAUSE_SECONDS) if away else every_seconds
            on_news(f"{error}; trying again in {pause:.0f} s")
        elif away:
            pause = every_seconds
            on_news("the store is reachable again")
        away = error is not None
        counts = ", ".join(f"{number} {state}" for state, number in sorted(Counter(states.values()).items()))
        news = "\n".join([*lines, counts or "no runs yet"])
        if news != last_news:
            on_news(news)
            last_news = news
        if not (for_ever or away or sync_loop.left_to_do or any(map(is_active, states.values()))):
            return
        time.sleep(pause)


class _SyncLoop:
    """Uploads many runs in passes; skips those without changes since their last upload."""

    def __init__(self, tracking_uri: str | None):
        self.tracking_uri = store_uri(tracking_uri)
        self.left_to_do = False
        self._synced: dict[str, Any] = {}

    def sync(self, run_directories: Sequence[RunDirectory]) -> tuple[int, list[str], TrackingError | None]:
        """Return the number of rows sent, a line for each problem, and the error if the store is unreachable."""
        num_rows, lines, error = 0, [], None
        self.left_to_do = False  # what could not be uploaded in this pass
        manifests = Manifests(run_directories[0].path.parent) if run_directories else None
        news = False
        for run_directory in run_directories:
            # Taken first: changes during the upload are uploaded next time.
            seen = (
                run_directory.status().state,
                _files_seen(run_directory),
                memberships_of(run_directory, self.tracking_uri, manifests),
            )
            if error or self._synced.get(run_directory.key) == seen:
                continue
            try:
                report = sync_run(run_directory, tracking_uri=self.tracking_uri, wait_seconds=5.0)
            except TrackingError as away:
                error = away  # unreachable for the other runs too
            except HarnessError as refusal:
                self.left_to_do = True
                lines.append(f"{run_directory.key} is postponed to the next pass: {refusal}")
            else:
                self._synced[run_directory.key], news = seen, True
                num_rows += sum(study.num_rows_sent for study in report.studies.values())
                lines.extend(f"{run_directory.key}: {problem}" for problem in report.problems)
        if news and not error:
            try:
                sync_studies(run_directories, tracking_uri=self.tracking_uri)
            except TrackingError as away:
                error = away
            except HarnessError as refusal:
                lines.append(str(refusal))
        return num_rows, lines, error


def _files_seen(run_directory: RunDirectory) -> list[tuple[str, list[int]]]:
    paths = [*run_directory.path.glob("*.json*"), *run_directory.studies_folder.glob(STUDIES)]
    return [(path.name, file_stamp(path)) for path in paths]


class BackgroundSync:
    """Upload runs to MLflow while they train, in a separate process at the lowest priority.

    It never blocks training: it reads the journals, waits while the server is down or hangs, and catches up. When its
    parent process ends, even by SIGKILL, it makes a last pass and exits. What it cannot upload, `sync_run` uploads
    later. Write the last status before `close`, so that the last pass uploads it.

    Args:
        run_directories: of one job, or of all runs on this machine.
        log_folder: gets sync.log.
        every_seconds: time between passes.
    """

    def __init__(
        self,
        run_directories: Sequence[RunDirectory],
        log_folder: Path,
        *,
        tracking_uri: str | None = None,
        every_seconds: float = 15.0,
    ):
        search_path = os.pathsep.join(filter(None, [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))
        log_folder.mkdir(parents=True, exist_ok=True)
        arguments = [store_uri(tracking_uri), str(every_seconds)]
        with (log_folder / "sync.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "harness.tracking.daemon", *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": search_path},
            )
        assert self._process.stdin is not None
        paths = [str(run_directory.path.absolute()) for run_directory in run_directories]
        with contextlib.suppress(BrokenPipeError):  # it exited at once; see its log
            self._process.stdin.write(json.dumps(paths).encode() + b"\n")
            self._process.stdin.flush()

    def __enter__(self) -> BackgroundSync:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, wait_seconds: float = 60.0) -> bool:
        """Request the last pass and wait for it until the timeout; return whether it succeeded."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            return self._process.wait(wait_seconds) == 0
        except subprocess.TimeoutExpired:
            self.kill()
            return False

    def kill(self) -> None:
        """Kill the process; the next sync uploads what it had not finished, exactly once."""
        self._process.kill()
        self._process.wait()


def _sync_until_parent_exits(run_directories: list[RunDirectory], uri: str, every_seconds: float) -> int:
    """Sync until standard input closes, which happens whenever the parent process ends."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # SLURM sends its signals to every process of the job
    os.nice(19)
    parent = os.getppid()
    ended = False
    while True:
        # The parent is checked too: a process that it forked may keep its end of the pipe open.
        ended = ended or bool(select.select([sys.stdin], [], [], every_seconds)[0]) or os.getppid() != parent
        failed = False
        steps: list[Callable[[], object]] = [
            partial(sync_run, run_directory, tracking_uri=uri) for run_directory in run_directories
        ]
        steps.append(partial(sync_arms, run_directories, tracking_uri=uri))
        steps.append(partial(sync_experiments, run_directories, tracking_uri=uri, training=True))
        if ended:
            steps.append(partial(sync_studies, run_directories, tracking_uri=uri, ended_only=True))
        for step in steps:
            try:
                step()
            except HarnessError as error:
                logger.warning(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {error}")
                failed = True
                if isinstance(error, TrackingError):
                    break  # the store is unreachable for the others too
            except Exception:
                logger.exception("records were not uploaded")
                failed = True
        if ended:
            return int(failed)


if __name__ == "__main__":
    show_messages("stdout")
    uri, seconds = sys.argv[1:]
    folders = json.loads(sys.stdin.buffer.readline() or b"[]")
    sys.exit(_sync_until_parent_exits([RunDirectory(Path(folder)) for folder in folders], uri, float(seconds)))
