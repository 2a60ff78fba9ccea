"""The run directory: the authoritative record of one run, written by one process, readable by all.

    runs/<run_key>/
        spec.json  spec.yaml        the run's resolved spec; never changes
        studies/<study>.json        the studies it belongs to: its arm, replicate and evaluations, and when it joined
        status.json                 its state; replaced often, not flushed to disk, may be a few seconds old
        journal-<attempt>.jsonl     all metrics and events of one attempt, append-only; the source of all figures
        environment.json            one entry per attempt: host, versions, threads, device, code snapshot
        logs/attempt-<attempt>.log  output of its process, for people
        plugins/<sha256>/*.py       the plugin files that the spec uses
        arrays/*.npz  samples/*.png  evaluations/<key>.json  checkpoints/
        kept/<key>/*.npy            features, and samples of an evaluation that goes on; all can be drawn again
        lock/  tracking/            which process writes, and what has been uploaded to MLflow

File times have no meaning, so a folder of runs may be copied in any way.

A journal line is `<crc32 of the rest, 8 hex> <json>\\n`, appended by one write(). A killed process can tear only the
last line of its attempt; readers drop and report it. Each attempt opens a new file whose header has the step that it
resumed from: rows of earlier attempts past that step are superseded, because the new attempt repeats those steps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.errors import RecordError
from harness.records.documents import JOINED, check_spec, environments_from, membership_from, training_size
from harness.records.files import differences, replace_file, safe_name, sync_folder
from harness.records.journal import (
    AttemptFile,
    Event,
    Journal,
    Row,
    attempt_number,
    is_measurement,
    parse_line,
    read_events,
)
from harness.records.layout import STUDIES, RunLayout
from harness.records.lock import FolderLock, this_process
from harness.records.reading import Fields, parse_json, read_bytes, read_json
from harness.records.status import CAUSES, STATES, Status, status_from

if TYPE_CHECKING:
    from harness.spec.run import RunSpec


class StudyRun(Protocol):
    """The part of `study.model.Run` that `register` uses."""

    @property
    def spec(self) -> RunSpec: ...

    @property
    def study(self) -> str: ...

    def membership(self) -> dict[str, Any]: ...


@dataclass
class RunDirectory(RunLayout):
    """Read and write the directory of one run; reading needs no lock and never waits."""

    path: Path
    _attempts: dict[str, AttemptFile] = field(default_factory=dict, repr=False, compare=False)
    _lock: FolderLock | None = field(default=None, repr=False, compare=False)
    _current: tuple[tuple, list[Row], list[str]] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        safe_name(self.key)

    @property
    def key(self) -> str:
        """The run_key: the folder's name."""
        return self.path.name

    # -- spec and studies

    def register(self, run: StudyRun) -> bool:
        """Write a run's spec and its membership in a study; return whether the membership is new or changed.

        Raises:
            RecordError: another spec is stored here.
        """
        from harness.spec.base import SCHEMA_VERSION  # imports pydantic, which readers do not need

        self.create(run.spec.plain, SCHEMA_VERSION)
        membership = run.membership()
        stored = dict(self._study_entries()).get(self.study_path(run.study), {})
        news = without_joining_time(stored) != json.loads(json.dumps(membership))
        if news or JOINED not in stored:  # written by a version without the time: the current submission counts as last
            self.add_to_study(run.study, membership)
        return news

    def create(self, spec: dict, schema_version: int) -> RunDirectory:
        """Write the resolved spec; do nothing if the same spec is stored already.

        Raises:
            RecordError: another spec is stored; the message lists the differences by path.
        """
        document = json.loads(json.dumps({"schema_version": schema_version, "spec": spec}))
        if self.spec_path.exists():
            changes = differences(read_json(self.spec_path), document)
            if changes:
                raise RecordError("\n  ".join([f"{self.path} belongs to another spec:", *changes]))
            return self
        import yaml  # 20 ms that readers save

        self.path.mkdir(parents=True, exist_ok=True)
        self._freeze_plugins(document["spec"])
        # libyaml's, where PyYAML has it, is ten times as fast.
        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        text = yaml.dump(document["spec"], Dumper=dumper, sort_keys=False, allow_unicode=True)
        replace_file(self.spec_yaml_path, text, durable=True)
        # Last, because a spec.json means that the directory is complete.
        replace_file(self.spec_path, json.dumps(document, indent=2), durable=True)
        return self

    def spec(self) -> dict:
        """Return the resolved spec as plain values.

        Raises:
            RecordError: spec.json is missing or damaged.
        """
        return self._spec_document()["spec"]

    def training_size(self) -> tuple[int, int]:
        """Return the number of training steps and the batch size.

        Raises:
            RecordError: spec.json is missing or damaged.
        """
        return training_size(self._spec_document(), str(self.spec_path))

    def schema_version(self) -> int:
        """Return the version of the spec's schema that the run_key was computed with."""
        return self._spec_document()["schema_version"]

    def _spec_document(self, *, complete: bool = False) -> dict:
        try:
            document = read_json(self.spec_path)
        except FileNotFoundError:
            raise RecordError(f"{self.path} is not a run directory: spec.json is missing") from None
        check_spec(document, str(self.spec_path), complete=complete)
        return document

    def add_to_study(self, study: str, membership: dict) -> None:
        """Make the run a member of a study, or change its membership.

        Args:
            facts: arm, replicate, label, overrides, evaluations (a list of dicts), ...
        """
        path = self.study_path(safe_name(study))
        for evaluation in membership.get("evaluations", ()):
            self._freeze_plugins(evaluation)
        self.studies_folder.mkdir(parents=True, exist_ok=True)
        # Later than all others, even those written by a machine whose clock is ahead.
        last = max((entry.get(JOINED, 0.0) for _, entry in self._study_entries()), default=0.0)
        joined = membership | {JOINED: max(time.time(), last + 1e-3)}
        replace_file(path, json.dumps(joined, indent=2), durable=True)

    def leave_study(self, study: str) -> None:
        """End the run's membership in a study; nothing else is removed."""
        self.study_path(safe_name(study)).unlink(missing_ok=True)
        sync_folder(self.studies_folder)

    def _freeze_plugins(self, values: dict) -> None:
        """Store the files of the plugins that a spec or a protocol uses."""
        if digests := values.get("plugins"):
            from harness.records.plugins import freeze  # imports pydantic, which readers do not need

            freeze(self.path, digests)

    def studies(self) -> dict[str, dict]:
        """Return the run's membership in each study, by the study's name; `damage` lists those that cannot be read."""
        return self.read_studies()[0]

    def read_studies(self, *, complete: bool = False) -> tuple[dict[str, dict], list[str]]:
        """Return the run's membership in each study by the study's name, and what is wrong with the others.

        Args:
            complete: arm, replicate and the evaluations' names must be there, as figures need them.
        """
        entries, errors = self._read_studies(complete=complete)
        studies = {path.stem: without_joining_time(entry) for path, entry in entries}
        return studies, [self._short(error) for error in errors.values()]

    def studies_by_joining(self) -> dict[str, dict]:
        """Return the run's membership in each study, in the order in which it joined them.

        The last one decides where only one can: resources, records, the folder of the data.
        """
        entries = self._study_entries()
        # Entries of versions without the time joined earlier, in the order of the files' times.
        of_files = {path.stem: path.stat().st_mtime_ns for path, entry in entries if JOINED not in entry}
        entries.sort(key=lambda pair: (pair[1].get(JOINED, 0.0), of_files.get(pair[0].stem, 0), pair[0].stem))
        return {path.stem: without_joining_time(entry) for path, entry in entries}

    def dated_studies(self, order: Sequence[str] = ()) -> dict[Path, str]:
        """Return the text of each entry of a version without the time, with a time that keeps the order of joining.

        Args:
            order: the studies' names in the order of joining; if empty, by the files' times.
        """
        order = order or list(self.studies_by_joining())
        # Seconds below all current times.
        return {
            path: json.dumps(entry | {JOINED: float(order.index(path.stem) + 1)}, indent=2)
            for path, entry in self._study_entries()
            if JOINED not in entry and path.stem in order
        }

    def _study_entries(self) -> list[tuple[Path, dict]]:
        return self._read_studies()[0]

    def _read_studies(self, *, complete: bool = False) -> tuple[list[tuple[Path, dict]], dict[str, RecordError]]:
        """Return the memberships that can be read, and why the others cannot, by the study's name."""
        entries, errors = [], {}
        for path in sorted(self.studies_folder.glob(STUDIES)):
            try:
                entries.append((path, membership_from(read_json(path), path, complete=complete)))
            except FileNotFoundError:  # removed meanwhile
                continue
            except RecordError as error:
                errors[path.stem] = error
        return entries, errors

    def damage(self, study: str | None = None) -> list[str]:
        """List what cannot be read of the spec, the status, the environments and the memberships; not of the journals.

        Args:
            study: of the memberships only the one in this study.
        """
        errors = [error for name, error in self._read_studies(complete=True)[1].items() if study in (None, name)]
        for read in (partial(self._spec_document, complete=True), self._stored_status, self.environments):
            try:
                read()
            except RecordError as error:
                errors.append(error)
            except FileNotFoundError:
                pass
        return [self._short(error) for error in errors]

    def _short(self, error: RecordError) -> str:
        """Return an error's message with the file's name in the run directory instead of its path."""
        return str(error).removeprefix(f"{self.path}/")

    def write_environment(self, attempt: int, environment: dict) -> None:
        """Record an attempt's environment: host, versions, threads, device, code snapshot."""
        entries = [entry for entry in self.environments() if entry["attempt"] != attempt]
        text = json.dumps([*entries, {"attempt": attempt, **environment}], indent=2)
        replace_file(self.environment_path, text, durable=True)

    def environments(self) -> list[dict]:
        """Return the environment of each attempt, oldest first.

        Raises:
            RecordError: environment.json is damaged.
        """
        try:
            stored = read_json(self.environment_path)
        except FileNotFoundError:
            return []
        return environments_from(stored, str(self.environment_path))

    # -- state

    def set_status(self, status: Status) -> None:
        """Replace status.json; cheap enough for every few seconds."""
        assert status.state in STATES, status.state
        assert status.cause in CAUSES, status.cause
        text = json.dumps(asdict(status) | {"updated_seconds": time.time()})
        replace_file(self.status_path, text, durable=False)

    def status(self) -> Status:
        """Return the run's status; one that says running but has no living writer is interrupted.

        A damaged status.json, which is not flushed to disk and may be empty after a power failure, does not end a
        command: the run counts as running or interrupted, and its next attempt writes the file again.
        """
        try:
            status = self._stored_status()
        except FileNotFoundError:
            return Status()
        except RecordError as error:
            reason = self._short(error)
            if self.may_be_written():
                return Status("running", reason=reason)
            return Status("interrupted", reason=reason, cause="killed")
        if status.state == "running" and not self.may_be_written():
            reason = status.reason or "killed: its process is gone"
            return replace(status, state="interrupted", cause="killed", reason=reason)
        return status

    def may_be_written(self) -> bool:
        """Return whether a process is writing, or may be: a lock that cannot be read says nothing."""
        try:
            return self.writer() is not None
        except RecordError:
            return True

    def _stored_status(self) -> Status:
        return status_from(parse_json(read_bytes(self.status_path), str(self.status_path)), str(self.status_path))

    def request_pruning(self, reason: str) -> None:
        """Ask the process that works on this run to end it at the next step; its checkpoint is kept."""
        replace_file(self.prune_path, json.dumps({"reason": reason}), durable=False)

    def pruning_requested(self) -> str:
        """Return the reason for pruning this run, empty if none; cheap enough for every step."""
        try:
            return Fields(read_json(self.prune_path), str(self.prune_path)).text("reason")
        except FileNotFoundError:
            return ""

    # -- lock

    @contextmanager
    def lock(self, wait_seconds: float = 0.0) -> Iterator[FolderLock]:
        """Lock the run directory as its only writer.

        Args:
            wait_seconds: how long to wait for another writer; 130 outlasts a dead job on another host.

        Raises:
            RecordError: another process is writing; the message names it.
        """
        lock = FolderLock(self.lock_folder, f"run {self.key}")
        lock.acquire(wait_seconds)
        self._lock = lock
        try:
            yield lock
        finally:
            self._lock = None
            lock.release()

    def writer(self) -> dict | None:
        """Return the process that is writing now, or None."""
        return FolderLock(self.lock_folder, f"run {self.key}").owner()

    def open_journal(self, *, resumed_from_step: int, **fields: Any) -> Journal:
        """Start the next attempt; requires the lock.

        Args:
            resumed_from_step: step of the checkpoint it resumes from, 0 for a new start. Rows of earlier attempts past
                it are superseded from now on.
            facts: further fields of the header.
        """
        assert self._lock is not None, "an attempt needs the lock"
        attempt = max(self.attempts(), default=0) + 1
        journal = Journal(self.journal_path(attempt), attempt, self._lock)
        me = this_process()
        host, pid, job = me["host"], me["pid"], me["slurm_job_id"]
        header = {"attempt": attempt, "resumed_from_step": resumed_from_step, "host": host, "pid": pid}
        journal.event("started", **header, slurm_job_id=job, **fields)
        journal.sync()
        sync_folder(self.path)
        return journal

    # -- journals

    def attempts(self) -> list[int]:
        """Return the numbers of the attempts, from 1."""
        return sorted(map(attempt_number, self.journal_paths()))

    def rows(self) -> list[Row]:
        """Return every metric value that is not superseded, over all attempts, in the order of their creation.

        A result that was computed twice (an evaluation that was killed and repeated) is returned once: the first is
        kept, and a different second one is listed by `problems`. Timings and system metrics may repeat.
        """
        return list(self._current_rows()[0])

    def problems(self) -> list[str]:
        """List problems of the journals: torn and damaged lines, missing entries and attempts, contradictions."""
        rows_problems = self._current_rows()[1]
        attempts = self._read_attempts()
        lines = [line for attempt in attempts for line in attempt.damage]
        writing = self.may_be_written()
        for attempt in attempts:
            if attempt.torn_bytes and not (writing and attempt is attempts[-1]):
                lines.append(f"{attempt.path.name}: torn last line dropped ({attempt.torn_bytes} bytes)")
        numbers = {attempt.attempt for attempt in attempts}
        missing = set(range(1, max(numbers, default=0) + 1)) - numbers
        lines.extend(f"{self.journal_path(number).name} is missing" for number in sorted(missing))
        return lines + rows_problems

    def events(self, name: str | None = None) -> list[Event]:
        """Return the events of all attempts, all of them or by name.

        An event with a `step` past the one that a later attempt resumed from is kept and marked as superseded.
        """
        attempts = self._read_attempts()
        events = []
        for attempt, last_step in zip(attempts, self._last_standing_steps(attempts), strict=True):
            for event in attempt.events:
                if name in (None, event.name):
                    superseded = event.fields.get("step", 0) > last_step
                    events.append(Event(event.name, event.fields, event.time_ms, event.attempt, event.seq, superseded))
        return events

    def evaluated_keys(self) -> set[str]:
        """Return the keys of a done run's finished evaluations.

        Only the relevant lines are parsed, which is many times faster than reading whole journals. That is correct for
        a run that is done: its state guarantees that no current evaluation is missing.
        """
        return {
            event.fields.get("key", "") for path in self.journal_paths() for event in read_events(path, "evaluation")
        }

    def history(self, key: str) -> tuple[list[int], list[float]]:
        """Return one metric's curve: its steps and its values."""
        rows = [row for row in self.rows() if row.key == key]
        return [row.x for row in rows], [row.value for row in rows]

    def durable_step(self) -> int:
        """Return the step of the newest checkpoint that is not superseded; rows up to it are final."""
        resumed = [event.fields["resumed_from_step"] for event in self.events("started") if not event.superseded][-1:]
        return max(
            [event.fields["step"] for event in self.events("checkpoint") if not event.superseded] + resumed, default=0
        )

    def latest(self, tail_bytes: int = 16384) -> dict[str, Row]:
        """Return each metric's newest value in the tail of the newest journal; cheap, for live tables."""
        for path in reversed(self.journal_paths()):
            start = max(0, path.stat().st_size - tail_bytes)
            lines = read_bytes(path, start).split(b"\n")[1 if start else 0 : -1]
            attempt, newest = attempt_number(path), {}
            for entry in filter(None, map(parse_line, lines)):
                for key, value in entry.get("metrics", {}).items():
                    newest[key] = Row(key, value, entry["step"], entry["at"], entry["ms"], attempt, entry["seq"])
            if newest:
                return newest
        return {}

    # -- reading

    def _read_attempts(self) -> list[AttemptFile]:
        for path in self.journal_paths():
            self._attempts.setdefault(path.name, AttemptFile(path)).refresh()
        return [self._attempts[name] for name in sorted(self._attempts)]

    @staticmethod
    def _last_standing_steps(attempts: list[AttemptFile]) -> list[float]:
        """Return the last step of each attempt that is not superseded: the smallest that a later one resumed from."""
        last_steps, last_step = [], float("inf")
        for attempt in reversed(attempts):
            last_steps.append(last_step)
            resumed = attempt.resumed_from_step
            last_step = last_step if resumed is None else min(last_step, resumed)
        return last_steps[::-1]

    def _current_rows(self) -> tuple[list[Row], list[str]]:
        """Return the rows that are not superseded, and contradictions between them; computed once for what was read."""
        attempts = self._read_attempts()
        read = tuple((attempt.attempt, attempt.num_lines) for attempt in attempts)
        if self._current is None or self._current[0] != read:
            self._current = read, *self._combine(attempts)
        return self._current[1:]

    def _combine(self, attempts: list[AttemptFile]) -> tuple[list[Row], list[str]]:
        kept: list[Row] = []
        conflicts: list[str] = []
        first_made: dict[tuple[str, int, str], int] = {}
        standing: dict[tuple[str, int], Row] = {}
        alone = len(attempts) == 1
        for attempt, last_step in zip(attempts, self._last_standing_steps(attempts), strict=True):
            for row in attempt.rows:
                if is_measurement(row.key):
                    if row.train_step <= last_step:
                        kept.append(row)
                    continue
                if not alone:
                    # A repeated result keeps the time of the first one. If the first one was uploaded to MLflow before
                    # its checkpoint was found damaged, sending it again is then the same row, not a second one.
                    time_ms = first_made.setdefault((row.key, row.x, repr(row.value)), row.time_ms)
                    row = row._replace(time_ms=time_ms) if time_ms != row.time_ms else row
                    if row.train_step > last_step:
                        continue
                other = standing.setdefault((row.key, row.x), row)
                if other is row:
                    kept.append(row)
                elif repr(other.value) != repr(row.value):
                    conflicts.append(
                        f"{row.key} at step {row.x}: {other.value!r} (attempt {other.attempt}), "
                        f"then {row.value!r} (attempt {row.attempt}); the first is kept"
                    )
        return kept, conflicts


def without_joining_time(entry: dict) -> dict:
    """Return a run's membership in a study, without the time at which the run joined it."""
    return {key: value for key, value in entry.items() if key != JOINED}
