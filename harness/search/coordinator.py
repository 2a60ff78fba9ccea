"""The coordinator, one process per search: it gets suggestions, starts their runs, prunes them and reports results.

Workers never open Optuna's storage.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import LaunchError, RecordError, TrackingError
from harness.launch import planning
from harness.launch.rungs import drop
from harness.records.directory import RunDirectory
from harness.records.files import differences, replace_file
from harness.records.lock import FolderLock
from harness.records.manifest import Manifests, ask_for
from harness.search.optuna_backend import grid_size, open_study, quiet_optuna, report_end, resume_trial, suggest
from harness.search.rungs import measured_at_rungs, standings_of
from harness.search.space import Search, format_value, that_stay
from harness.search.trials import FINISHED, TrialRecord, num_counted, read_trials
from harness.search.values import final_value, values_on_the_way
from harness.search.workers import Workers
from harness.slurm.commands import NoAnswer
from harness.study.model import Run, Study
from harness.study.rungs import with_limit
from harness.text import harness_command

if TYPE_CHECKING:
    import optuna

MAX_FAILURES_IN_A_ROW = 10
MAX_STARTS_WITHOUT_PROGRESS = 3
MAX_REFUSALS_IN_A_ROW = 3  # of the first jobs, with nothing in the queue that would explain them
MAX_PAUSE_SECONDS = 300.0


@dataclass
class _Trial:
    """A trial that is running."""

    record: TrialRecord
    study: Study
    optuna_trial: optuna.Trial
    starts: dict[str, tuple[int, int]] = field(default_factory=dict)  # run_key -> (step, starts from it)
    until: int | None = None  # the step to which it trains for now, if the search has rungs
    waits: bool = False  # at a rung, for others to be measured there
    begun: bool = True  # else it was suggested with the others of its bracket, and is not its turn yet

    def let_on(self, step: int) -> None:
        self.until, self.study, self.waits = step, with_limit(self.study, step), False


class Coordinator:
    """Run a search to its end.

    Args:
        workers: execute the runs.
        sync: whether to upload the records of the search and of its runs to MLflow.
        on_message: called with a line for each event.
    """

    def __init__(
        self,
        search: Search,
        runs_folder: Path,
        workers: Workers,
        *,
        sync: bool = True,
        tracking_uri: str | None = None,
        on_message: Callable[[str], None] = print,
    ):
        self.search, self.runs_folder, self.workers = search, runs_folder, workers
        self.folder = search.folder(runs_folder)
        self.sync, self.tracking_uri, self.on_message = sync, tracking_uri, on_message
        self.running: list[_Trial] = []
        self._asked: dict[str, dict[str, Any]] = {}  # run_key -> its membership, of all trials
        self._store_is_unreachable = False
        self._outage = ""  # why SLURM does not answer
        self._refusals = 0  # of jobs, in a row
        self._pause_ends = 0.0  # by time.monotonic: no job is tried before

    def run(self) -> bool:
        """Run trials until all have ended; return False if the time was up or the grid exhausted before.

        Raises:
            RecordError: another coordinator is running this search, or this is another search of the same name.
            LaunchError: too many trials failed in a row; the message names the last.
            KeyboardInterrupt: after the workers on this machine have written their checkpoints.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(self.folder / "lock", f"search {self.search.name}")
        lock.acquire()
        try:
            self._restore()
            self._sync("running", list(self._asked))
            try:
                return self._run_trials()
            except KeyboardInterrupt:
                self.workers.stop()
                raise
            finally:
                self.sync_search()
        finally:
            lock.release()

    def _run_trials(self) -> bool:
        deadline = time.monotonic() + self.search.settings.timeout_seconds
        while True:
            try:
                self._update_trials()
                more_to_come = time.monotonic() < deadline and self._start_trials()
                if self.search.settings.rungs:
                    self._decide_at_rungs(more_to_come)
                    self._begin_trials()
                if self._outage:
                    self.on_message("SLURM answers again")
                self._outage = ""
            except NoAnswer as error:  # trials stay as they are until SLURM answers
                more_to_come = True
                if not self._outage:
                    self.on_message(f"the search waits for SLURM: {error}")
                self._outage = str(error)
            if not self.running and not more_to_come:
                self.workers.wait()
                has_result = any(trial.state in FINISHED for trial in read_trials(self.folder))
                return has_result and self._num_counted() >= self.search.settings.trials
            time.sleep(self.workers.poll_seconds)

    def _num_counted(self) -> int:
        return num_counted(read_trials(self.folder), self.search.settings)

    # -- after a restart

    def _restore(self) -> None:
        """Open the search's records, and resume the trials that were running."""
        quiet_optuna()
        stored = self.folder / "search.json"
        definition = self.search.definition()
        if stored.exists():
            before = json.loads(stored.read_text())["definition"]
            changes = differences(before | {"set": that_stay(before["set"])}, definition)
            if changes:
                rule = "only trials, parallel, timeout, resources and records may change; otherwise rename the search"
                raise RecordError(
                    "\n  ".join([f"search {self.search.name} was started differently ({rule}):", *changes])
                )
        content = {"study": self.search.name, "definition": definition, "trials": self.search.settings.trials}
        replace_file(stored, json.dumps(content, indent=2), durable=True)
        self.study = open_study(self.search, self.folder)
        records = {record.number: record for record in read_trials(self.folder)}
        manifests = Manifests(self.runs_folder)
        for trial_record in records.values():
            for directory in (RunDirectory(self.runs_folder / key) for key in trial_record.run_keys):
                if membership := directory.studies().get(self.search.name):
                    self._asked[directory.key] = membership | manifests.memberships(directory).get(self.search.name, {})
        self._ask_for(())
        for frozen in self.study.get_trials(deepcopy=False):
            record = records.get(frozen.number)
            # Without a record it was suggested but never started: `suggest` returns it again, with the same number.
            if not frozen.state.is_finished() and record:
                self.running.append(self._restore_trial(record, frozen._trial_id))
        for trial in list(self.running):
            if (
                trial.record.state != "running"
            ):  # its end was recorded, but the coordinator was killed before reporting it
                self._report(trial)
        bracket = self.search.settings.bracket
        if bracket and len(records) % bracket:  # the coordinator was killed while it suggested them
            self._suggest_bracket(bracket)

    def _restore_trial(self, record: TrialRecord, trial_id: int) -> _Trial:
        study = self.search.trial(record.number, record.point)
        if [run.run_key for run in study.runs] != record.run_keys:
            raise RecordError(
                f"{record.arm} now means other runs than when it was suggested: the spec's schema has changed"
            )
        self._ask_for(study.runs)
        begun = self.search.settings.bracket is None or any(
            RunDirectory(self.runs_folder / key).attempts() for key in record.run_keys
        )
        return self._limited(_Trial(record, study, resume_trial(self.study, trial_id), begun=begun))

    def _limited(self, trial: _Trial) -> _Trial:
        """Return a trial that trains to the step to which it was let on: at first to the first rung."""
        if self.search.settings.rungs:
            trial.let_on(max(self._asked[run.run_key]["until"] for run in trial.study.runs))
        return trial

    def _ask_for(self, runs: Sequence[Run]) -> None:
        """Add a trial's runs to those that the search asks for; a run of several trials belongs to the first."""
        rungs = self.search.settings.rungs
        for run in runs:
            membership = self._asked.setdefault(run.run_key, run.membership())
            if rungs:
                membership["until"] = max(membership.get("until", 0), run.until or rungs[0])
        presentation = self.search.presentation.model_dump(mode="json")
        ask_for(self.runs_folder, self.search.name, self._asked, file=self.search.path, presentation=presentation)

    # -- starting trials

    def _start_trials(self) -> bool:
        """Start as many trials as there are free slots; return whether more will follow."""
        settings = self.search.settings
        while True:
            trials = self.study.get_trials(deepcopy=False)
            names = [trial.state.name for trial in trials]
            if settings.bracket is None and self._is_past_first_rung():
                return False
            is_last = self._num_counted() + len(self.running) >= settings.trials
            if is_last and not (settings.bracket and self.running):
                return False
            ended = [name for name in names if name != "RUNNING"] if settings.bracket else names
            last = ended[-MAX_FAILURES_IN_A_ROW:]
            if len(last) == MAX_FAILURES_IN_A_ROW and set(last) == {"FAIL"}:
                failed = [trial for trial in read_trials(self.folder) if trial.state == "failed"][-1]
                raise LaunchError(
                    f"the search stops, since the last {len(last)} trials failed; the last one: {failed.reason}; "
                    f"`{harness_command('why', failed.run_keys[0], runs_folder=self.runs_folder)}` shows more"
                )
            lost = names.count("RUNNING") > len(self.running)
            if settings.sampler == "grid" and len(trials) >= grid_size(self.search) and not lost:
                return False
            if settings.bracket:
                if not self.running:
                    self._suggest_bracket(settings.bracket)
                return not is_last
            if self._num_training() >= settings.parallel or not self._may_start():
                return True
            self._begin(self._next_trial())

    def _suggest_bracket(self, size: int) -> None:
        """Suggest the rest of a bracket before any trial of it begins, so that no result can change a suggestion."""
        while True:
            trial = self._next_trial()
            trial.begun = False
            if (trial.record.number + 1) % size == 0:
                return

    def _begin_trials(self) -> None:
        """Begin, in their order, as many of the trials of a bracket as may run."""
        for trial in [trial for trial in self.running if not trial.begun]:
            if self._num_training() >= self.search.settings.parallel or not self._may_start():
                return
            self._begin(trial)

    def _next_trial(self) -> _Trial:
        running = {trial.record.number for trial in self.running}
        number, point, optuna_trial = suggest(self.search, self.study, running)
        study = self.search.trial(number, point)
        keys = [run.run_key for run in study.runs]
        done = {
            planned.run_key
            for planned in planning.plan(study, self.runs_folder, recent=True).runs
            if planned.state == "done"
        }
        record = TrialRecord(number, point, keys, [key for key in keys if key in done])
        optuna_trial.set_user_attr("run_keys", keys)
        record.write(self.folder)
        self._ask_for(study.runs)
        self.running.append(self._limited(_Trial(record, study, optuna_trial)))
        return self.running[-1]

    def _num_training(self) -> int:
        return sum(trial.begun and not trial.waits for trial in self.running)

    def _is_past_first_rung(self) -> bool:
        """Return whether trials have been let on from the first rung, where all must have been compared."""
        rungs = self.search.settings.rungs
        return rungs is not None and any(membership.get("until", 0) > rungs[0] for membership in self._asked.values())

    def _begin(self, trial: _Trial) -> None:
        trial.begun, record = True, trial.record
        point = " ".join(f"{path}={format_value(value)}" for path, value in record.point.items())
        self.on_message(f"{record.arm}: {point}")
        for key in record.reused:
            self.on_message(f"{record.arm}: reuses run {key}, which was done before")
        self._update_trial(trial, self.workers.busy(set(record.run_keys)))

    # -- following trials

    def _update_trials(self) -> None:
        busy = self.workers.busy({key for trial in self.running for key in trial.record.run_keys})
        for trial in [trial for trial in self.running if trial.begun]:
            self._update_trial(trial, busy)

    def _update_trial(self, trial: _Trial, busy: set[str]) -> None:
        """Check a trial's runs: finish it, prune it, or start those of its runs that are not running."""
        planned_runs = planning.plan(trial.study, self.runs_folder, recent=True).runs
        if self.search.settings.rungs:
            self._note_rungs(trial, planned_runs)
        if all(planned.state == "done" for planned in planned_runs):
            return self._complete(trial, planned_runs)
        idle = [planned for planned in planned_runs if planned.run_key not in busy and planned.state != "running"]
        for planned in idle:
            if planned.state == "failed" and planned.run_key in trial.starts:
                if self.search.settings.rungs and len(idle) < len(planned_runs):
                    return None  # its other replicates pause first, and are dropped with it
                return self._finish(trial, "failed", f"run {planned.run_key}: {planned.status.reason}")
            if planned.state == "pruned" and planned.status.cause != "rung":
                return self._finish(trial, "pruned", planned.status.reason)
        reason = trial.record.reason or self._report_and_prune(trial, planned_runs)
        if reason:
            return self._finish(trial, "pruned", reason) if len(idle) == len(planned_runs) else None
        for planned in planned_runs:
            if planned in idle and planned.state not in ("done", "paused", "pruned"):
                if not self._may_start():
                    return None
                if error := self._start_run(trial, planned):
                    return self._finish(trial, "failed", error)
            if self.search.settings.pruner == "wilcoxon" and planned.state != "done":
                return None  # one replicate at a time, since each may lead to pruning
        return None

    def _start_run(self, trial: _Trial, planned: planning.PlannedRun) -> str:
        """Start a run of a trial; return an error if it ended repeatedly without progress."""
        key, status = planned.run_key, planned.status
        step, starts = trial.starts.get(key, (-1, 0))
        starts = starts + 1 if status.step <= step else 1
        if starts > MAX_STARTS_WITHOUT_PROGRESS:
            return f"run {key} ended {starts - 1} times at step {status.step}: {status.reason}"
        if planned.state == "interrupted":
            self.on_message(f"{trial.record.arm}: run {key} resumes from step {status.step}")
        try:
            self.workers.start(replace(trial.study, runs=(self._as_registered(planned),)))
        except NoAnswer:
            raise
        except LaunchError as error:
            self._wait_after_refusal(error)
            return ""
        if self._refusals:
            self.on_message("SLURM takes jobs again")
        self._refusals = 0
        trial.starts[key] = (status.step, starts)
        return ""

    def _may_start(self) -> bool:
        return time.monotonic() >= self._pause_ends and self.workers.free_slots() > 0

    def _wait_after_refusal(self, error: LaunchError) -> None:
        """Try no job for a while, and for longer each time: the limits on jobs, of which this may be one, give way.

        The trials that have jobs are followed meanwhile.

        Raises:
            LaunchError: no limit can be the reason, since nothing waits or runs.
        """
        self._refusals += 1
        if self._refusals >= MAX_REFUSALS_IN_A_ROW and not self.workers.may_be_full():
            raise error
        if self._refusals == 1:
            self.on_message(f"the search waits for SLURM: {error}")
        self._pause_ends = time.monotonic() + min(MAX_PAUSE_SECONDS, self.workers.poll_seconds * 2**self._refusals)

    def _as_registered(self, planned: planning.PlannedRun) -> Run:
        """Keep the arm and replicate of a run that also belongs to an earlier trial."""
        membership = self._asked[planned.run_key]
        return replace(planned.run, arm=membership["arm"], replicate=membership["replicate"])

    def _complete(self, trial: _Trial, planned_runs: Sequence[planning.PlannedRun]) -> None:
        for planned in planned_runs:  # runs that were done before become members of the search too
            if self.search.name not in planned.directory.studies():
                planned.directory.register(self._as_registered(planned))
        values_of = {
            metric.name: [final_value(metric, planned.run, self.runs_folder) for planned in planned_runs]
            for metric in self.search.metrics
        }
        for name, values in values_of.items():
            if not all(map(math.isfinite, values)):
                return self._finish(trial, "failed", f"{name} is {', '.join(map(str, values))}")
        trial.record.replicate_values = values_of
        trial.record.values = {name: sum(values) / len(values) for name, values in values_of.items()}
        return self._finish(trial, "complete")

    # -- pruning

    def _report_and_prune(self, trial: _Trial, planned_runs: Sequence[planning.PlannedRun]) -> str:
        """Report new values to Optuna, and query its pruner after each; return the reason if it prunes."""
        pruner, record = self.search.settings.pruner, trial.record
        if pruner == "none":
            return ""
        known = self.study.get_trials(deepcopy=False)[record.number].intermediate_values
        for step, value in values_on_the_way(self.search, planned_runs, self.runs_folder):
            if step in known:
                continue
            trial.optuna_trial.report(value, step)
            if trial.optuna_trial.should_prune():
                name, unit = self.search.metrics[0].name, "replicate" if pruner == "wilcoxon" else "step"
                record.reason = f"{name} {value:.6g} at {unit} {step} ({pruner})"
                record.values = {name: value}
                record.write(self.folder)
                for planned in planned_runs:
                    if planned.path.exists() and planned.state != "done":
                        planned.directory.request_pruning(record.reason)
                return record.reason
        return ""

    # -- rungs

    def _note_rungs(self, trial: _Trial, planned_runs: Sequence[planning.PlannedRun]) -> None:
        """Record what was measured at rungs, and report it to Optuna."""
        record = trial.record
        for step, value in measured_at_rungs(self.search, planned_runs).items():
            if str(step) not in record.rung_values:
                if step not in self.study.get_trials(deepcopy=False)[record.number].intermediate_values:
                    trial.optuna_trial.report(value, step)
                record.rung_values[str(step)] = value
                record.write(self.folder)
        states = {planned.state for planned in planned_runs}
        if not trial.waits and states & {"paused", "pruned"} and states <= {"paused", "pruned", "done"}:
            trial.waits = True
            shown = ", ".join(f"{value:.6g} at step {step}" for step, value in record.rung_values.items())
            self.on_message(f"{record.arm}: paused; {self.search.metrics[0].name} {shown}")

    def _decide_at_rungs(self, more_to_come: bool) -> None:
        """Let the best trials of a rung go on, as many at a time as may run, and end the others."""
        standings = standings_of(
            self.search,
            read_trials(self.folder),
            {trial.record.arm: trial.until or 0 for trial in self.running},
            paused={trial.record.arm for trial in self.running if trial.waits},
            more_to_come=more_to_come,
        )
        for trial in list(self.running):
            standing = standings[trial.record.arm]
            if standing.dropped and trial.waits:
                measured = str(standing.until) in trial.record.rung_values
                self._finish(trial, "pruned" if measured else "failed", standing.dropped)
            elif standing.until > (trial.until or 0) and self._num_training() < self.search.settings.parallel:
                trial.let_on(standing.until)
                self._ask_for(trial.study.runs)
                self.on_message(f"{trial.record.arm}: goes on to step {standing.until}")

    def _drop(self, trial: _Trial, reason: str) -> None:
        """End the runs of a trial that are paused."""
        others = {key for other in self.running if other is not trial for key in other.record.run_keys}
        for key in set(trial.record.run_keys) - others:
            drop(RunDirectory(self.runs_folder / key), reason)

    # -- ends of trials

    def _finish(self, trial: _Trial, state: str, reason: str = "") -> None:
        """Record first, then report: a coordinator that is killed in between reports after a restart."""
        record = trial.record
        if self.search.settings.rungs and state != "complete":
            self._drop(trial, reason)
        if state == "pruned" and (values := record.rung_values):
            record.values = {self.search.metrics[0].name: values[max(values, key=int)]}
        record.state, record.reason, record.ended_seconds = state, reason, time.time()
        record.write(self.folder)
        self._report(trial)

    def _report(self, trial: _Trial) -> None:
        """Report a trial's result to Optuna, to `on_message`, and to MLflow."""
        record = trial.record
        # Its jobs have ended or are about to, so there may be room: it is tried at once, and soon again.
        self._pause_ends, self._refusals = 0.0, min(self._refusals, 1)
        values = [record.values[metric.name] for metric in self.search.metrics] if record.state == "complete" else None
        report_end(self.study, record.number, record.state, values)
        self.running.remove(trial)
        shown = ", ".join(f"{name} {value:.6g}" for name, value in record.values.items())
        self.on_message(f"{record.arm}: {record.state} {': '.join(filter(None, [shown, record.reason]))}".rstrip())
        self._sync("running", record.run_keys)

    # -- MLflow

    def sync_search(self) -> None:
        """Upload the current state of the search, with the figures in its folder."""
        self._sync("done" if self._num_counted() >= self.search.settings.trials else "interrupted")

    def _sync(self, state: str, run_keys: Sequence[str] = ()) -> None:
        """Upload the search and the runs of a trial that has ended; an unreachable store is only reported."""
        if not self.sync:
            return
        from harness.search.upload import upload

        try:
            upload(self.search, self.runs_folder, state, run_keys, tracking_uri=self.tracking_uri)
        except TrackingError as error:
            if not self._store_is_unreachable:
                self.on_message(
                    f"{error}; `{harness_command('sync', runs_folder=self.runs_folder)}` uploads the runs later"
                )
            self._store_is_unreachable = True
