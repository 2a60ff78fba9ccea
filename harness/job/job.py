"""What one job does with one run: restore its newest state, train, evaluate, and record the result.

All input lies in the run directory: the spec, and the requests of the studies that the run belongs to. So a job that
was killed, requeued or started twice needs no arguments that could be stale.

Each process of a distributed run executes this job. The first one keeps the records, and evaluates after the others,
which only train, have exited.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from harness.data.base import Dataset
from harness.data.staging import staged
from harness.datasets import make_dataset
from harness.errors import CheckpointError, RecordError, TrackingError
from harness.evaluation.context import EvaluationContext
from harness.evaluation.ensembles import with_middle
from harness.evaluation.evaluator import evaluate, evaluate_during_training
from harness.evaluation.keeping import Keeping
from harness.evaluation.measured import measured_weights
from harness.job.device_probe import sound_device
from harness.job.endings import ending_of_error, ending_of_stop, record_failure, write_failure
from harness.job.environment import changed_conditions, choose_device, describe_environment, gpu_gauges, set_tf32
from harness.job.kernels import keep_freed_memory, prepare_compiler
from harness.job.measured import Measured
from harness.job.measurements import SLOW_CHECKPOINT_SECONDS, record_compute, record_throughput
from harness.job.request import RunRequest
from harness.job.signals import PAUSED, PRUNED, SIGNAL_NAMES, StopSignals, stop_name, stop_number
from harness.job.writer import metric_prefix, record_evaluation
from harness.metrics.weights import WEIGHTS, require_weights_file
from harness.progress import Pace, Progress
from harness.records.data_digest import require_same_data
from harness.records.directory import RunDirectory
from harness.records.files import differences
from harness.records.journal import MEASURED, Journal
from harness.records.lineage import parent_of
from harness.records.plugins import read_spec
from harness.records.status import Cause, Status
from harness.records.system_metrics import SystemMetrics
from harness.registry import make_method
from harness.slurm.time_limit import TIME_LIMIT_SIGNAL, TimeLimit
from harness.spec.evaluation import WITH_FEATURES
from harness.spec.metrics import metric_name, recorded_name
from harness.training.checkpoints import Checkpoints
from harness.training.distributed import (
    NothingToDo,
    ProcessGroup,
    ProcessLost,
    RankInfo,
    detect_rank,
    process_group,
)
from harness.training.loop import Interrupted, Training, save, train

logger = logging.getLogger(__name__)

_STATUS_EVERY_SECONDS = 1.0


def run_job(
    run_folder: Path,
    *,
    threads: int | None = None,
    tracking_uri: str | None = None,
    sync: bool = True,
    show_progress: bool = True,
    wait_seconds: float = 0.0,
    stop_after_steps: int | None = None,
    time_limit: TimeLimit | None = None,
) -> str:
    """Train and evaluate one run until everything that its studies request is done.

    Args:
        run_folder: a run directory with its spec and its studies.
        threads: CPU threads for a run that starts now, shared by the processes that are started here; a run that was
            started before keeps its number, because another number gives other bits.
        tracking_uri: MLflow's store; None means the default one.
        sync: upload the records to MLflow meanwhile, in a separate process.
        show_progress: show bars, or lines without a terminal.
        wait_seconds: how long to wait for another writer, which may have died on another machine.
        stop_after_steps: interrupt the training after this many steps of this attempt, with a checkpoint.
        time_limit: of the job; a training whose checkpoints take long stops ahead of the signal for it.

    Returns:
        the final state of the run: done, failed, paused, pruned or interrupted. For a process that only trains: done if
        it succeeded.

    Raises:
        RecordError: another process is working on this run.
    """
    run_directory = RunDirectory(Path(run_folder))
    try:
        rank_info = detect_rank(RunRequest.of(run_directory).resources.num_processes)
    except Exception as error:  # whatever fails before the run begins leaves a state and a reason, too
        record_failure(run_directory.path, error, wait_seconds=wait_seconds)
        return "failed"
    if threads and rank_info.starts_others:
        threads = max(1, threads // rank_info.size)
    if rank_info.rank:
        return _train_as_worker_rank(_Job(run_directory, threads, False, rank_info, stop_after_steps))
    with run_directory.lock(wait_seconds), ExitStack() as stack:
        try:
            job = _Job(run_directory, threads, show_progress, rank_info, stop_after_steps, time_limit)
        except Exception as error:
            write_failure(run_directory, error)
            return "failed"
        if sync:
            _sync_meanwhile(run_directory, tracking_uri, stack)
        try:
            job.run()
        except Interrupted:
            state, reason, cause = ending_of_stop(job.stop_signal, job.step, run_directory)
            job.finish(state, reason, cause=cause)
        except ProcessLost as loss:  # a signal may have ended the other one before it could handle it
            job.finish("interrupted", str(loss), cause="signal" if job.stop_signal in SIGNAL_NAMES else "killed")
        except Exception as error:
            state, reason, cause, trace = ending_of_error(error, run_directory)
            job.finish(state, reason, cause=cause, trace=trace)
        else:
            job.finish("done", "")
    return job.state


def _sync_meanwhile(run_directory: RunDirectory, tracking_uri: str | None, stack: ExitStack) -> None:
    """Upload the records while the run goes on; if that cannot be started, `harness sync` does it later."""
    from harness.tracking.daemon import BackgroundSync

    try:
        syncing = BackgroundSync([run_directory], run_directory.tracking_folder, tracking_uri=tracking_uri)
    except (TrackingError, OSError) as error:
        logger.warning(f"the records are not uploaded to MLflow meanwhile: {error}")
    else:
        stack.enter_context(syncing)


def _train_as_worker_rank(job: _Job) -> str:
    """Train together with the first process of the run, which keeps the records and is notified of errors."""
    try:
        job.run()
    except (Interrupted, ProcessLost, NothingToDo) as reason:
        logger.info(f"run {job.directory.key} ends in this process: {reason}")
        return "interrupted"
    except Exception:
        # The first process records the reason; the traceback goes to this process's own log.
        logger.exception(f"run {job.directory.key} failed in this process")
        return "failed"
    return "done"


class _Job:
    def __init__(
        self,
        run_directory: RunDirectory,
        threads: int | None,
        show_progress: bool,
        rank_info: RankInfo,
        stop_after_steps: int | None = None,
        time_limit: TimeLimit | None = None,
    ):
        self.directory = run_directory
        self.spec = read_spec(run_directory.path, run_directory.spec())
        self.request = RunRequest.of(run_directory)
        self.threads = threads
        self.rank_info = rank_info
        self.show_progress = show_progress
        self.state, self.signals = "running", StopSignals()
        self.stop_after_steps, self.time_limit = stop_after_steps, time_limit
        self.journal: Journal | None = None
        self.step = 0
        self._status_written = 0.0
        self._speed: float | None = None
        self._loss: float | None = None
        self._checkpoint_seconds = 0.0  # recorded for later submissions

    @property
    def stop_signal(self) -> str:
        """Why the run was asked to stop: a signal's name, pruning, a rung, or a number of steps; empty before."""
        return self.signals.received

    @stop_signal.setter
    def stop_signal(self, name: str) -> None:
        self.signals.received = name

    # -- the run

    def run(self) -> None:
        """Load, train and evaluate."""
        self._set_threads()
        keep_freed_memory()
        cuda = self.request.resources.device != "cpu" and torch.cuda.is_available()
        command, folder = self._worker_command(), self.directory.lock_folder
        with process_group(self.rank_info, cuda=cuda, command=command, meeting_folder=folder) as group:
            device = sound_device(choose_device(self.request.resources.device, self.rank_info), group, self.directory)
            data = self._load_data(group)
            require_same_data(self.directory, data.digest)
            self._require_weights()
            training, checkpoints = self._restore(data, device, group)
            if not group.is_first:
                with self.signals.caught(), Progress("", shown=False) as progress:
                    self._train(training, data, checkpoints, progress, group)
                return
            self.journal = self._open_journal(training.step)
            if self.spec.continue_from and not checkpoints.steps():
                self.journal.event("continued", run_key=self.spec.continue_from, step=training.step)
                save(training, self.journal, checkpoints)  # the parent is no longer needed
            self._record_environment(self.journal.attempt, device, data, group)
            self._write_status("running", force=True)
            with SystemMetrics(self.journal, lambda: self.step, extra=gpu_gauges(device)), self.signals.caught():
                with Progress(f"train {self.directory.key[:8]}", shown=self.show_progress) as progress:
                    self._train(training, data, checkpoints, progress, group)
                group.close()
                record_compute(self.directory, self.journal, self.request.resources, training, data)
                self._evaluate_at_end(training, data, checkpoints)

    def _load_data(self, group: ProcessGroup) -> Dataset:
        """Return the data set; where it has to be unpacked or staged, one process does it and the others wait."""
        # The cache may be shared by all nodes, and scratch by the processes of one.
        turn = 0 if group.is_first else 1 if self.rank_info.local_rank == 0 else 2
        return group.in_turn(turn, 3, lambda: staged(make_dataset(self.spec.data, self.request.data_root)))

    def _require_weights(self) -> None:
        """Raise DataError before the training if the weights of an extractor are not on this machine."""
        settings = [getattr(evaluation, part) for evaluation in self.request.evaluations for part in WITH_FEATURES]
        for extractor in sorted({part.extractor for part in settings if part} & set(WEIGHTS)):
            require_weights_file(extractor)

    def _restore(self, data: Dataset, device: torch.device, group: ProcessGroup) -> tuple[Training, Checkpoints]:
        """Return the training restored from the newest intact checkpoint, the same on every process."""
        resources, spec = self.request.resources, self.spec
        if torch.are_deterministic_algorithms_enabled() != resources.deterministic:  # to set it imports torch._inductor
            torch.use_deterministic_algorithms(resources.deterministic)
        set_tf32(spec.train.precision, self.directory.environments())
        prepare_compiler(resources.kernels, device)
        if resources.deterministic:
            os.environ.setdefault(
                "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
            )  # read when CUDA is initialised; cuBLAS requires it
        training = Training(spec, make_method(spec, data, resources, device), device)
        scored_by, keep_every = self.request.scored_by, self.request.records.keep_every or 0
        metric = f"{self.request.records.best} of {scored_by.key}" if scored_by else None
        checkpoints = Checkpoints(self.directory.checkpoints_folder, keep_every=keep_every, metric=metric)
        checkpoint = checkpoints.latest(device) if group.is_first else None
        step = group.all_reduce_max(checkpoint[0] if checkpoint else -1)
        if not group.is_first and step >= 0:
            checkpoint = step, checkpoints.load(step, device)
        if spec.imported_sha256 and not checkpoint:
            raise CheckpointError(
                "the weights come from a file that was not imported: run `harness import-checkpoint` first"
            )
        if checkpoint:
            self._require_same_spec(*checkpoint)
            training.load_state_dict(checkpoint[1])
        elif spec.continue_from:
            self._load_parent(training, data)
        self.step = training.step
        return training, checkpoints

    def _require_same_spec(self, step: int, state: dict[str, Any]) -> None:
        """Raise CheckpointError if a checkpoint is of another spec than the run directory's."""
        stored = {"schema_version": state["schema_version"], "spec": state["spec"]}
        own = {"schema_version": self.directory.schema_version(), "spec": self.directory.spec()}
        if changes := differences(stored, own):
            raise CheckpointError("\n  ".join([f"the checkpoint of step {step} is of another spec:", *changes]))

    def _load_parent(self, training: Training, data: Dataset) -> None:
        """Start from the final state of the run that this one continues."""
        parent, step = parent_of(self.spec, self.directory.path.parent)
        require_same_data(parent, data.digest)
        state = Checkpoints(parent.checkpoints_folder).load(step, training.device)
        # The parent logged its last step, so its window is empty; that of another objective has other terms.
        training.load_state_dict(state | {"window": training.state_dict()["window"]})

    def _train(
        self, training: Training, data: Dataset, checkpoints: Checkpoints, progress: Progress, group: ProcessGroup
    ) -> None:
        if training.step >= self.spec.train.steps:
            return
        began, first = time.monotonic(), training.step
        if training.step >= (until := self.request.last_step(self.spec, group.is_first, group.all_reduce_max)):
            self.stop_signal = PAUSED
            raise Interrupted

        def on_log(step: int, values: dict[str, float]) -> None:
            self.step, self._loss = step, values["train/loss"]
            self._speed = values["perf/steps_per_second"]
            progress.update(step, self.spec.train.steps, f"loss {self._loss:.4f}")
            self._write_status("running")
            if checkpoints.slowest_seconds > max(SLOW_CHECKPOINT_SECONDS, self._checkpoint_seconds):
                self._record_throughput(training, checkpoints, (time.monotonic() - began) / (step - first))

        def measure(step: int) -> float | None:
            return self._evaluate_during(training, data, step) if step < self.spec.train.steps else None

        def stop_requested() -> bool:
            """Return whether any process was asked to stop, so that all stop at the same step for the same reason.

            Only what they exchanged counts: a later signal is known to one of them, and waits for the next exchange.
            """
            if not self.stop_signal and self.directory.pruning_requested():
                self.stop_signal = PRUNED
            if not self.stop_signal and self.time_limit and self.time_limit.is_near(checkpoints.slowest_seconds):
                self.stop_signal = TIME_LIMIT_SIGNAL
            if number := group.all_reduce_max(stop_number(self.stop_signal)):
                self.stop_signal = stop_name(number)
                return True
            if until <= training.step < self.spec.train.steps:
                self.stop_signal = PAUSED
                return True
            if self.stop_after_steps and training.step - first >= self.stop_after_steps:  # the same step for all
                self.stop_signal = f"request after {self.stop_after_steps} steps"
                return True
            return False

        train(
            training,
            data,
            journal=self.journal,
            checkpoints=checkpoints,
            records=self.request.records,
            measure=measure,
            on_log=on_log,
            stop_requested=stop_requested,
            group=group,
        )
        training.method.distribute(1)
        if self.journal:
            self._record_throughput(training, checkpoints, (time.monotonic() - began) / (training.step - first))

    # -- evaluation

    def _evaluate_during(self, training: Training, data: Dataset, step: int) -> float | None:
        """Run the evaluations that are due at a step; return the score of its checkpoint if it was measured."""
        assert self.journal is not None
        self.step, score = step, None
        for evaluation in self.request.evaluations:
            if evaluation.every and step % evaluation.every == 0:
                prefix = metric_prefix(self.directory, self.request.evaluations, evaluation)
                context = EvaluationContext(training.method, self.spec, data, evaluation, training.device, prefix)
                self._write_status("running", force=True, measured=Measured(f"{prefix}, during training"))
                metrics = evaluate_during_training(context)
                self._write_status("running", force=True)
                self.journal.metrics(step, metrics)
                self.journal.event(MEASURED, step=step, key=evaluation.key, prefix=prefix)
                if evaluation == self.request.scored_by:
                    score = metrics[self._score_name(prefix, data)]
        return score

    def _score_name(self, prefix: str, data: Dataset) -> str:
        """Return the name of the metric of records.best under an evaluation's prefix."""
        assert self.request.records.best is not None
        planned = self.request.records.best.rpartition("/")[2]
        return metric_name(prefix, recorded_name(planned, data.name, data.digest))

    def _evaluate_at_end(self, training: Training, data: Dataset, checkpoints: Checkpoints) -> None:
        assert self.journal is not None
        done = {event.fields["key"] for event in self.directory.events("evaluation") if not event.superseded}
        # The last checkpoint's score is measured before the best checkpoint is looked for.
        for evaluation in sorted(self.request.evaluations, key=lambda evaluation: evaluation.checkpoint == "best"):
            if evaluation.key in done:
                continue
            if self.stop_signal:
                raise Interrupted
            best = self.request.records.best
            resources = self.request.resources
            method, selection = measured_weights(evaluation, training, data, checkpoints, best, resources)
            method = with_middle(method, evaluation, self.spec, self.directory.path.parent, data, training.device)
            if selection and (by := self.request.scored_by):
                selection["checkpoint"] |= {"split": by.split, "seed": by.seed}
            prefix = metric_prefix(self.directory, self.request.evaluations, evaluation)
            began = time.monotonic()
            pace = Pace()
            self._write_status("running", force=True, measured=Measured(prefix))
            with Progress(f"{prefix} {self.directory.key[:8]}", shown=self.show_progress) as progress:

                def on_progress(
                    task: str,
                    count: int,
                    total: int,
                    progress: Progress = progress,
                    prefix: str = prefix,
                    pace: Pace = pace,
                ) -> None:
                    progress.update(count, total, task)
                    left = pace.seconds_left(task, count, total)
                    self._write_status("running", measured=Measured(f"{prefix}, {task}", count, total, left))
                    if self.stop_signal:
                        raise Interrupted

                device, keeping = training.device, self._keeping()
                context = EvaluationContext(method, self.spec, data, evaluation, device, prefix, on_progress, keeping)
                result = evaluate(context)
            result.protocol |= selection
            if evaluation == self.request.scored_by:
                checkpoints.record_score(training.step, result.metrics[self._score_name(prefix, data)])
            result.metrics[f"perf/{prefix}_{'_'.join(evaluation.parts)}_seconds"] = time.monotonic() - began
            record_evaluation(self.directory, self.journal, evaluation, prefix, result, self.spec.train.steps)
            context.release()

    def _keeping(self) -> Keeping:
        records = self.request.records
        return Keeping(self.directory.kept_folder, records.keep_samples, records.keep_features_mib)

    # -- records

    def _open_journal(self, step: int) -> Journal:
        """Start this attempt's journal, with what earlier ones have left of an evaluation: more of it is progress."""
        kept = self.directory.num_kept_batches()
        return self.directory.open_journal(resumed_from_step=step, **({"kept_batches": kept} if kept else {}))

    def finish(self, state: str, reason: str, *, cause: Cause = "", trace: str = "") -> None:
        """Write the run's final state for this attempt; if the disk is full, only log it."""
        self.state = state
        if trace:
            logger.error(trace)
        extra: dict[str, str] = {"traceback": trace} if trace else {}
        if state == "interrupted":
            extra |= {"cause": cause, "stopped_by": self.stop_signal if cause == "signal" else ""}
        try:
            if self.journal is None:  # it failed before the journal was opened
                self.journal = self._open_journal(self.directory.durable_step())
            with self.journal:
                self.journal.event("finished" if state == "done" else state, reason=reason, **extra)
            self._write_status(state, reason, cause=cause, force=True)
        except RecordError as error:
            self.state = "failed"
            logger.error(f"{self.directory.key} {state}: {reason}; this could not be recorded: {error}")

    def _write_status(
        self, state: str, reason: str = "", *, cause: Cause = "", force: bool = False, measured: Measured | None = None
    ) -> None:
        now = time.monotonic()
        if not force and now - self._status_written < _STATUS_EVERY_SECONDS:
            return
        self._status_written = now
        steps = self.spec.train.steps
        speed = self._speed
        self.directory.set_status(
            Status(
                state=state,
                step=self.step,
                num_steps=steps,
                attempt=self.journal.attempt if self.journal else 0,
                reason=reason,
                cause=cause,
                stopped_by=self.stop_signal if cause == "signal" else "",
                loss=self._loss,
                images_per_second=speed * self.spec.train.batch_size if speed else None,
                # Of the training or, where it is known, of the part that is being measured.
                eta_seconds=measured.eta_seconds if measured else (steps - self.step) / speed if speed else None,
                evaluation=measured.what if measured else "",
                evaluation_done=measured.done if measured else None,
                evaluation_total=measured.total if measured else None,
            )
        )

    def _record_environment(self, attempt: int, device: torch.device, data: Dataset, group: ProcessGroup) -> None:
        """Record the conditions of this attempt, and report those that changed since the last."""
        assert self.journal is not None
        environment = describe_environment(device, data, group, self.request.resources)
        if changes := changed_conditions(self.directory, environment):
            message = f"{', '.join(changes)}: the bits may differ from here on"
            self.journal.event("environment_changed", step=self.step, changes=message)
            logger.warning(f"{self.directory.key}: {message}")
        self.directory.write_environment(attempt, environment)

    def _record_throughput(self, training: Training, checkpoints: Checkpoints, seconds_per_step: float) -> None:
        self._checkpoint_seconds = slowest = checkpoints.slowest_seconds
        resources = self.request.resources
        record_throughput(self.directory.path, self.spec, resources, seconds_per_step, training.device, slowest)

    # -- the process

    def _worker_command(self) -> list[str]:
        """Return the command that starts another process of this run."""
        # _exit: after an error torch's threads may still be running, and would turn the exit into an abort.
        code = f"run_job(sys.argv[1], threads={self.threads}) == 'failed'"
        code = f"import os, sys; from harness.job.job import run_job; os._exit({code})"
        return [sys.executable, "-u", "-c", code, str(self.directory.path)]

    def _set_threads(self) -> None:
        """Fix the number of threads at the first start and reuse it in later attempts."""
        environments = self.directory.environments()
        threads = environments[0]["threads"] if environments else self.request.resources.threads or self.threads
        if threads:
            torch.set_num_threads(threads)
