"""One process that asks, starts, reports, prunes and tells; workers never open Optuna's storage."""

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
from harness.records.directory import RunDirectory
from harness.records.files import differences, replace_file
from harness.records.lock import FolderLock
from harness.search.optuna_backend import grid_size, open_study, quiet_optuna, suggest
from harness.search.space import Metric, Search
from harness.search.trials import FINISHED, TrialRecord, bests, front, read_trials
from harness.search.workers import Workers
from harness.study.model import Run, Study

if TYPE_CHECKING:
    import optuna


MAX_FAILURES_IN_A_ROW = 10


MAX_STARTS_WITHOUT_PROGRESS = 3


@dataclass
class _Trial:
    """A trial that is under way."""

    record: TrialRecord
    study: Study
    optuna_trial: optuna.Trial
    starts: dict[str, tuple[int, int]] = field(default_factory=dict)  # run_key -> (step, starts from it)


class Coordinator:
    """Ask for trials, have them done, tell how they ended; one process a search.

    Args:
        workers: who does the runs.
        sync: whether to carry records to MLflow.
        carries_runs: whether that goes for the runs too, since workers do not.
        say: hears of what happens, a line at a time.
    """

    def __init__(
        self,
        search: Search,
        runs_folder: Path,
        workers: Workers,
        *,
        sync: bool = True,
        tracking_uri: str | None = None,
        say: Callable[[str], None] = print,
    ):
        self.search, self.runs_folder, self.workers = search, runs_folder, workers
        self.folder = search.folder(runs_folder)
        self.sync, self.tracking_uri, self.say = sync, tracking_uri, say
        self.running: list[_Trial] = []
        self._store_is_away = False

    def run(self) -> bool:
        """Go on until all trials have ended; return whether they have (else the time was up, or the grid).

        Raises:
            RecordError: another coordinator is at work on this search, or this is another search of the same name.
            LaunchError: too many trials failed in a row; the message names the last.
            KeyboardInterrupt: after asking the workers on this machine to write their checkpoints.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(self.folder / "lock", f"search {self.search.name}")
        lock.acquire()
        try:
            self._take_up()
            self._carry("running")
            try:
                return self._work()
            except KeyboardInterrupt:
                self.workers.stop()
                raise
            finally:
                self.carry()
        finally:
            lock.release()

    def _work(self) -> bool:
        deadline = time.monotonic() + self.search.settings.timeout_seconds
        while True:
            self._settle()
            wants_more = time.monotonic() < deadline and self._ask()
            if not self.running and not wants_more:
                self.workers.wait()
                return self._num_finished() >= self.search.settings.trials
            time.sleep(self.workers.every_seconds)

    def _num_finished(self) -> int:
        return sum(trial.state in FINISHED for trial in read_trials(self.folder))

    # -- taking up

    def _take_up(self) -> None:
        quiet_optuna()
        stored = self.folder / "search.json"
        definition = self.search.definition()
        if stored.exists():
            found = differences(json.loads(stored.read_text())["definition"], definition)
            if found:
                more = "only trials, parallel, timeout, resources and records may change; else name the study anew"
                raise RecordError("\n  ".join([f"search {self.search.name} has begun otherwise ({more}):", *found]))
        about = {"study": self.search.name, "definition": definition, "trials": self.search.settings.trials}
        replace_file(stored, json.dumps(about, indent=2), durable=True)
        self.study = open_study(self.search, self.folder)
        records = {record.number: record for record in read_trials(self.folder)}
        for frozen in self.study.get_trials(deepcopy=False):
            record = records.get(frozen.number)
            # Without a record it was asked for and never started: _ask takes it up with the same number.
            if not frozen.state.is_finished() and record:
                self.running.append(self._under_way(record, frozen._trial_id))
        for trial in list(self.running):
            if trial.record.state != "running":  # it was recorded, and its coordinator died before it told Optuna
                self._tell(trial)

    def _under_way(self, record: TrialRecord, trial_id: int) -> _Trial:
        import optuna

        study = self.search.trial(record.number, record.point)
        if [run.run_key for run in study.runs] != record.run_keys:
            raise RecordError(
                f"{record.arm} means other runs now than when it was asked for: the spec's schema changed"
            )
        self.study.sampler = optuna.samplers.RandomSampler()  # Trial asks it what it thinks of a new trial: nothing
        return _Trial(record, study, optuna.Trial(self.study, trial_id))

    # -- asking

    def _ask(self) -> bool:
        """Ask for as many trials as there is room for; return whether more are wanted when there is."""
        settings = self.search.settings
        while True:
            trials = self.study.get_trials(deepcopy=False)
            names = [trial.state.name for trial in trials]
            finished = names.count("COMPLETE") + names.count("PRUNED")
            if finished + len(self.running) >= settings.trials:
                return False
            last = names[-MAX_FAILURES_IN_A_ROW:]
            if len(last) == MAX_FAILURES_IN_A_ROW and set(last) == {"FAIL"}:
                failed = read_trials(self.folder)[-1]
                raise LaunchError(
                    f"the last {len(last)} trials failed, so the search stops; the last one: {failed.reason}; "
                    f"`harness why {failed.run_keys[0]}` tells more"
                )
            lost = names.count("RUNNING") > len(self.running)
            if settings.sampler == "grid" and len(trials) >= grid_size(self.search) and not lost:
                return False
            if len(self.running) >= settings.parallel or self.workers.room() <= 0:
                return True
            self._begin(self._next_trial())

    def _next_trial(self) -> _Trial:
        number, point, optuna_trial = suggest(self.search, self.study, {one.record.number for one in self.running})
        study = self.search.trial(number, point)
        keys = [run.run_key for run in study.runs]
        done = {planned.run_key for planned in planning.plan(study, self.runs_folder).runs if planned.state == "done"}
        record = TrialRecord(number, point, keys, [key for key in keys if key in done])
        optuna_trial.set_user_attr("run_keys", keys)
        record.write(self.folder)
        return _Trial(record, study, optuna_trial)

    def _begin(self, trial: _Trial) -> None:
        self.running.append(trial)
        record = trial.record
        self.say(f"{record.arm}: {' '.join(f'{path}={brief(value)}' for path, value in record.point.items())}")
        for key in record.served:
            self.say(f"{record.arm}: served by run {key}, which was done before")
        self._settle_one(trial, self.workers.at_work(set(record.run_keys)))

    # -- settling

    def _settle(self) -> None:
        keys = {key for trial in self.running for key in trial.record.run_keys}
        at_work = self.workers.at_work(keys)
        for trial in list(self.running):
            self._settle_one(trial, at_work)

    def _settle_one(self, trial: _Trial, at_work: set[str]) -> None:
        """See how far a trial's runs are: tell how it ended, prune it, or start what nobody is at work on."""
        planned = planning.plan(trial.study, self.runs_folder).runs
        if all(one.state == "done" for one in planned):
            return self._complete(trial, planned)
        ended = [one for one in planned if one.run_key not in at_work and one.state != "running"]
        for one in ended:
            if one.state == "failed" and one.run_key in trial.starts:
                return self._end(trial, "failed", f"run {one.run_key}: {one.status.reason}")
            if one.state == "pruned":
                return self._end(trial, "pruned", one.status.reason)
        pruning = trial.record.reason or self._prune_if_hopeless(trial, planned)
        if pruning:
            return self._end(trial, "pruned", pruning) if len(ended) == len(planned) else None
        for one in planned:
            if one in ended and one.state != "done":
                if self.workers.room() <= 0:
                    return None
                step, starts = trial.starts.get(one.run_key, (-1, 0))
                starts = starts + 1 if one.status.step <= step else 1
                if starts > MAX_STARTS_WITHOUT_PROGRESS:
                    why = f"run {one.run_key} ended {starts - 1} times at step {one.status.step}"
                    return self._end(trial, "failed", f"{why}: {one.status.reason}")
                if one.state == "interrupted":
                    self.say(f"{trial.record.arm}: run {one.run_key} goes on from step {one.status.step}")
                trial.starts[one.run_key] = (one.status.step, starts)
                self.workers.start(replace(trial.study, runs=(self._as_first_joined(one),)))
            if self.search.settings.pruner == "wilcoxon" and one.state != "done":
                return None  # one replicate after the other, since each may show that the rest is not worth it
        return None

    def _as_first_joined(self, planned: planning.PlannedRun) -> Run:
        """Let a run that is an earlier trial's as well stay where it is in the study."""
        studies = planned.directory.studies() if planned.path.exists() else {}
        joined = studies.get(self.search.name)
        return replace(planned.run, arm=joined["arm"], replicate=joined["replicate"]) if joined else planned.run

    def _complete(self, trial: _Trial, planned: Sequence[planning.PlannedRun]) -> None:
        for one in planned:  # those that were done before belong to the search too
            if self.search.name not in one.directory.studies():
                one.directory.register(one.run)
        found = {metric.name: [self._value(metric, one.run) for one in planned] for metric in self.search.metrics}
        for name, values in found.items():
            if not all(map(math.isfinite, values)):
                return self._end(trial, "failed", f"{name} is {', '.join(map(str, values))}")
        trial.record.replicate_values = found
        trial.record.values = {name: sum(values) / len(values) for name, values in found.items()}
        return self._end(trial, "complete")

    def _value(self, metric: Metric, run: Run) -> float:
        """Return what a finished run gave: under the prefix that its job chose where two studies clashed."""
        directory = RunDirectory(self.runs_folder / run.run_key)
        evaluation, stem = metric.find(run)
        prefixes = [
            event.facts["prefix"]
            for event in directory.events("evaluation")
            if event.facts["key"] == evaluation.key and not event.superseded
        ]
        values = directory.history(f"{prefixes[-1]}/{stem}")[1] if prefixes else []
        return values[-1] if values else math.nan

    # -- pruning

    def _prune_if_hopeless(self, trial: _Trial, planned: Sequence[planning.PlannedRun]) -> str:
        """Report what is new to Optuna, one step at a time, and ask its pruner after each; return why it prunes."""
        pruner, record = self.search.settings.pruner, trial.record
        if pruner == "none":
            return ""
        known = self.study.get_trials(deepcopy=False)[record.number].intermediate_values
        for step, value in self._intermediate(planned):
            if step in known:
                continue
            trial.optuna_trial.report(value, step)
            if trial.optuna_trial.should_prune():
                name, at = self.search.metrics[0].name, "replicate" if pruner == "wilcoxon" else "step"
                record.reason = f"{name} {value:.6g} at {at} {step} ({pruner})"
                record.values = {name: value}
                record.write(self.folder)
                for one in planned:
                    if one.path.exists() and one.state != "done":
                        one.directory.request_pruning(record.reason)
                return record.reason
        return ""

    def _intermediate(self, planned: Sequence[planning.PlannedRun]) -> list[tuple[int, float]]:
        """Return (step, value): of training and averaged over replicates, or one step a replicate for Wilcoxon."""
        (metric,) = self.search.metrics
        if self.search.settings.pruner == "wilcoxon":
            return [(one.run.replicate, self._value(metric, one.run)) for one in planned if one.state == "done"]
        curves = []
        for one in planned:
            # A run that other studies want as well is theirs to finish.
            if not one.path.exists() or set(one.directory.studies()) - {self.search.name}:
                return []
            evaluation, stem = metric.find(one.run)
            curves.append(dict(zip(*one.directory.history(f"{evaluation.name}/{stem}"), strict=True)))
        steps = sorted(set.intersection(*map(set, curves)))
        last = planned[0].run.spec.train.steps
        return [(step, sum(curve[step] for curve in curves) / len(curves)) for step in steps if step < last]

    # -- telling

    def _end(self, trial: _Trial, state: str, reason: str = "") -> None:
        """Record first, then tell: a coordinator that dies in between tells when it is started again."""
        record = trial.record
        record.state, record.reason, record.ended_seconds = state, reason, time.time()
        record.write(self.folder)
        self._tell(trial)

    def _tell(self, trial: _Trial) -> None:
        import optuna

        record, state = trial.record, optuna.trial.TrialState
        told = {"complete": state.COMPLETE, "pruned": state.PRUNED, "failed": state.FAIL}[record.state]
        values = [record.values[metric.name] for metric in self.search.metrics] if record.state == "complete" else None
        # Of all samplers only the grid's does something after a trial: it stops an `optimize`, which there is none of.
        self.study.sampler = optuna.samplers.RandomSampler()
        self.study.tell(record.number, values=values, state=told)
        self.running.remove(trial)
        shown = ", ".join(f"{name} {value:.6g}" for name, value in record.values.items())
        self.say(f"{record.arm}: {record.state} {': '.join(filter(None, [shown, record.reason]))}".rstrip())
        self._carry("running", record.run_keys)

    # -- records elsewhere

    def carry(self) -> None:
        """Show MLflow the search as it stands, with the figures that lie in its folder."""
        self._carry("done" if self._num_finished() >= self.search.settings.trials else "interrupted")

    def _carry(self, state: str, run_keys: Sequence[str] = ()) -> None:
        """Show MLflow the search and the runs of a trial that has ended; a store that is away stops nothing."""
        if not self.sync:
            return
        from harness.tracking.searches import sync_search
        from harness.tracking.sync import sync_run

        trials = read_trials(self.folder)
        best = front(trials, self.search.metrics)
        tags = {
            "finished": f"{sum(trial.state in FINISHED for trial in trials)} of {self.search.settings.trials}",
            "best_trial": ", ".join(trial.arm for trial in best[:20]),
            "best_run": best[0].run_keys[0] if best else "",
        }
        params = {f"space.{parameter.path}": parameter.spell() for parameter in self.search.space}
        params |= {f"search.{key}": str(value) for key, value in self.search.settings.model_dump().items()
                   if key not in ("space", "trials", "parallel", "timeout", "storage")}  # fmt: skip
        try:
            rows = bests(trials, self.search.metrics)
            sync_search(self.folder, params=params, tags=tags, bests=rows, state=state, tracking_uri=self.tracking_uri)
            for key in run_keys:
                sync_run(RunDirectory(self.runs_folder / key), tracking_uri=self.tracking_uri)
        except TrackingError as error:
            if not self._store_is_away:
                self.say(f"{error}; `harness sync` carries the runs later")
            self._store_is_away = True


def brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value.get("name", value)) if isinstance(value, dict) else str(value)
