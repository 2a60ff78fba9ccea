"""The output of `harness status`, once or continuously."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.cli.tables import Table, state_counts
from harness.errors import RecordError
from harness.launch import states
from harness.records.collapse import collapses, signs
from harness.records.directory import RunDirectory
from harness.records.journal import events_in, last_value
from harness.records.manifest import Manifests
from harness.records.reading import read_bytes
from harness.records.status import is_active
from harness.spec.metrics import METRIC_KINDS, by_seed_kind, metric_kind
from harness.text import count, duration, printable

NEWS_EVERY_SECONDS = 60.0


@dataclass(frozen=True)
class StatusRow:
    """One line of `status`."""

    run_key: str
    studies: tuple[str, ...]
    arm: str
    replicate: int
    state: str
    step: int
    num_steps: int
    steps_per_second: float | None
    eta_seconds: float | None
    loss: float | None
    nll_bpd: float | None  # of the last evaluation
    reason: str
    run_dir: str
    fid: float | None = None  # of the last evaluation
    job: str = ""  # SLURM's, as squeue writes it
    node: str = ""
    cause: str = ""  # why it is interrupted, failed or pruned, for programs
    stopped_by: str = ""
    asked_for: bool = True  # by the study, or by any of its studies
    evaluation: str = ""  # that is being measured
    evaluation_done: int | None = None
    evaluation_total: int | None = None
    unanswered: bool = False  # SLURM does not say whether it has a job of the run
    collapse: tuple[str, ...] = ()  # signs that the model has collapsed

    def row(self, *, slurm: bool = False, study: bool = False) -> tuple[str, ...]:
        """Return the cells of `status`; SLURM's two, and the study, only on request."""
        running = self.state == "running"
        return (
            self.run_key,
            *((", ".join(self.studies) or "-",) if study else ()),
            f"{self.arm} r{self.replicate}",
            self.state,
            f"{self.step}/{self.num_steps}",
            f"{self.steps_per_second:.3g}" if running and self.steps_per_second else "-",
            duration(self.eta_seconds) if self.has_eta and self.eta_seconds is not None else "-",
            "-" if self.loss is None else f"{self.loss:.4f}",
            "-" if self.nll_bpd is None else f"{self.nll_bpd:.4f}",
            "-" if self.fid is None else f"{self.fid:.2f}",
            *((self.job or "-", self.node or "-") if slurm else ()),
            self.note,
        )

    @property
    def is_active(self) -> bool:
        """Whether the run is expected to go on by itself."""
        return self.unanswered or is_active(self.state)

    @property
    def has_eta(self) -> bool:
        """Whether the run trains or evaluates, so that what is left has a length."""
        return self.state == "running" and (bool(self.evaluation) or self.step < self.num_steps)

    @property
    def note(self) -> str:
        """What the run is measuring, or why it is interrupted, failed or pruned; and signs of a collapse."""
        note = self.reason
        if self.evaluation:
            done = "" if self.evaluation_total is None else f": {self.evaluation_done}/{self.evaluation_total}"
            note = f"evaluates {self.evaluation}{done}"
        return "; ".join(filter(None, [note, f"collapse: {', '.join(self.collapse)}" if self.collapse else ""]))


STATUS_HEADERS = ("run", "arm", "state", "step", "it/s", "ETA", "loss", "nll_bpd", "fid", "why")


def status_rows(directories: Sequence[RunDirectory], study: str | None = None) -> list[StatusRow]:
    """Gather the rows of `status`; arm and replicate are those of `study`, else of a run's first study."""
    if not directories:
        return []
    run_states = states.read_run_states([directory.path for directory in directories], recent=True)
    manifests = Manifests(directories[0].path.parent)
    return [_status_row(directory, study, run_states[directory.key], manifests) for directory in directories]


def _status_row(
    directory: RunDirectory, study: str | None, run_state: states.RunState, manifests: Manifests
) -> StatusRow:
    status, job = run_state.status, run_state.job
    memberships, problems = directory.read_studies()
    asked, earlier = manifests.split(directory, memberships)
    studies = asked or earlier
    membership = asked.get(study, earlier.get(study, {})) if study else next(iter(studies.values()), {})
    num_steps, batch_size, nll_bpd, fid = 0, 0, None, None
    collapse: tuple[str, ...] = ()
    try:
        num_steps, batch_size = _size_of(directory.path)
        journals = [read_bytes(path) for path in directory.journal_paths()] if status.attempt else []
        prefixes = evaluation_prefixes(journals, membership.get("evaluation_keys"))
        nll_bpd = last_result(journals, [f"{prefix}/nll_bpd" for prefix in prefixes])
        fid = last_result(journals, _fid_names(journals, prefixes))
        collapse = signs(collapses(directory, journals))
    except RecordError as error:
        problems.append(str(error).removeprefix(f"{directory.path}/"))
    speed = status.images_per_second
    return StatusRow(
        run_key=directory.key,
        studies=tuple(studies),
        arm=membership.get("arm", "-"),
        replicate=membership.get("replicate", 0),
        state=status.state,
        step=status.step,
        num_steps=num_steps,
        steps_per_second=speed / batch_size if speed and batch_size else None,
        eta_seconds=status.eta_seconds,
        loss=status.loss,
        nll_bpd=nll_bpd,
        fid=fid,
        reason="; ".join(filter(None, [status.reason, *problems])),
        run_dir=str(directory.path),
        job=job.job_id if job else "",
        node=job.node if job and job.live else "",
        cause=status.cause,
        stopped_by=status.stopped_by,
        asked_for=study in asked if study else bool(asked or not earlier),
        evaluation=status.evaluation if status.state == "running" else "",
        evaluation_done=status.evaluation_done if status.state == "running" else None,
        evaluation_total=status.evaluation_total if status.state == "running" else None,
        unanswered=bool(run_state.unanswered),
        collapse=collapse,
    )


@lru_cache(maxsize=100_000)
def _size_of(run_directory: Path) -> tuple[int, int]:
    return RunDirectory(run_directory).training_size()


def evaluation_prefixes(journals: Sequence[bytes], evaluation_keys: Sequence[str] | None = None) -> list[str]:
    """Return the prefixes that results of the evaluation `eval` may have, without parsing the journals.

    Args:
        journals: their contents, the oldest first.
        evaluation_keys: of the protocols that the study asks for; None if unknown, and then any protocol counts.
    """
    if evaluation_keys is None:
        return ["eval"]
    others = {  # of protocols that are no longer asked for
        event.fields.get("prefix", "")
        for data in journals
        for event in events_in(data, 0, "evaluation")
        if event.fields.get("evaluation") == "eval" and event.fields.get("key") not in evaluation_keys
    }
    prefixes = ["eval", *(f"eval_{key[:6]}" for key in evaluation_keys)]  # as a job forms them
    return [prefix for prefix in prefixes if prefix not in others]


def last_result(journals: Sequence[bytes], names: Sequence[str]) -> float | None:
    """Return the newest value of the first metric that there is, searched in the journals from their ends."""
    values = (last_value(data, name) for data in reversed(journals) for name in names)
    return next((value for value in values if value is not None), None)


def _fid_names(journals: Sequence[bytes], prefixes: Sequence[str]) -> list[str]:
    """Return the names of the FIDs in some journals, the newest first; they have extractor, samples and sampler."""
    names: list[str] = []
    for data in reversed(journals):
        for prefix in prefixes:
            found = re.findall(rb'"(' + re.escape(prefix).encode() + rb"/fid_[\w.-]+)\": ", data)
            names += [name.decode() for name in reversed(dict.fromkeys(found))]
    by_seed = f"/{by_seed_kind('fid')}_"
    return [name for name in names if metric_kind(name) is METRIC_KINDS["fid"] and by_seed not in name]


def status_table(rows: Sequence[StatusRow], *, study: bool = False) -> Table:
    """Return the table of `status`.

    Args:
        study: with a column that names each run's studies.
    """
    slurm = any(row.job for row in rows)
    first, *others, why = STATUS_HEADERS
    headers = [first, *(("study",) if study else ()), *others, *(("job", "node") if slurm else ()), why]
    return Table(headers, [row.row(slurm=slurm, study=study) for row in rows])


class Follower:
    """Show runs continuously: a live table on a terminal, elsewhere a line whenever a state changes.

    Args:
        gather: returns the current row of every run.
    """

    def __init__(self, gather: Callable[[], Sequence[StatusRow]]):
        self._gather = gather
        self._live: Any = None
        self._states: dict[str, str] = {}
        self._last_news = time.monotonic()

    def __enter__(self) -> Follower:
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(auto_refresh=False)
            self._live.start()
        else:
            self._states = {row.run_key: row.state for row in self._gather()}
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def tick(self) -> Sequence[StatusRow]:
        """Read the states again and show what changed; return the rows."""
        rows = self._gather()
        if self._live:
            self._live.update(self._picture(rows), refresh=True)
            return rows
        for row in rows:
            before = self._states[row.run_key]
            if row.state != before:
                self._states[row.run_key] = row.state
                self._say(row, f"{before} -> {row.state}")
        if time.monotonic() - self._last_news >= NEWS_EVERY_SECONDS:
            self._last_news = time.monotonic()
            for row in rows:
                if row.state == "running":
                    self._say(row, "running")
        return rows

    def _say(self, row: StatusRow, message: str) -> None:
        parts = [f"step {row.step}/{row.num_steps}"]
        if row.has_eta and row.eta_seconds is not None:
            parts.append(f"{duration(row.eta_seconds)} left")
        if row.loss is not None:
            parts.append(f"loss {row.loss:.4f}")
        if row.state == "done" and row.nll_bpd is not None:
            parts.append(f"nll {row.nll_bpd:.4f} bits/dim")
        if row.state == "done" and row.fid is not None:
            parts.append(f"fid {row.fid:.2f}")
        if row.note:
            parts.append(row.note)
        name = f"{row.run_key} {row.arm} r{row.replicate}"
        print(printable(f"{time.strftime('%H:%M:%S')} {name}: {message}; {', '.join(parts)}"), flush=True)

    def _picture(self, rows: Sequence[StatusRow]) -> Any:
        """Draw as many runs as fit on the terminal, running ones first, and count them all."""
        from rich.console import Group
        from rich.text import Text

        order = ("running", "failed", "interrupted", "queued", "evaluate", "new", "paused", "pruned", "done")
        num_lines = max(4, self._live.console.height - 6)
        urgent = sorted(rows, key=lambda row: order.index(row.state))[:num_lines]
        return Group(
            status_table(urgent).rich(), Text(f"{count(len(rows), 'run')}: {state_counts(s.state for s in rows)}")
        )
