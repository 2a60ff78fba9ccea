"""What one job does with one run: take it up wherever it stands, train, evaluate, and leave a true record.

All that is needed lies in the run directory: the spec, and what the studies that the run belongs to ask for. So a job
that was killed, requeued or started twice needs no arguments that could be stale.

Of the processes of a distributed run each does this job. The first keeps the records and evaluates, when the others,
who only help to train, have gone.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import __version__
from harness.data.base import Dataset
from harness.errors import CheckpointError, HarnessError, RecordError
from harness.evaluation.evaluator import EvaluationResult, Evaluator
from harness.evaluation.images import save_png
from harness.evaluation.sampling import load_predict
from harness.job.environment import BITS_DEPEND_ON, choose_device, code_version, gpu_gauges
from harness.job.request import Request
from harness.progress import Progress
from harness.records import snapshot
from harness.records.directory import RunDirectory
from harness.records.files import differences, replace_file
from harness.records.journal import Journal
from harness.records.lineage import parent_of
from harness.records.status import Cause, Status
from harness.records.system_metrics import SystemMetrics
from harness.records.throughput import Throughput, cpu_name, record
from harness.registry import make_dataset, make_method, make_timestep_sampler
from harness.spec.evaluation import Evaluation
from harness.spec.run import RunSpec
from harness.training.checkpoints import Checkpoints
from harness.training.distributed import Group, RankInfo, detect_rank, join
from harness.training.loop import Interrupted, Training, save, train

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


_PRUNED = "pruning"  # in the place of a signal's name


_STOP_NUMBERS = {"": 0, **{one.name: int(one) for one in _STOP_SIGNALS}, _PRUNED: 1000}  # what processes agree on


_STATUS_EVERY_SECONDS = 1.0


def work(
    run_folder: Path,
    *,
    threads: int | None = None,
    tracking_uri: str | None = None,
    sync: bool = True,
    show_progress: bool = True,
    wait_seconds: float = 0.0,
    stop_after_steps: int | None = None,
) -> str:
    """Train and evaluate one run until all that its studies ask for is done.

    Args:
        run_folder: a run directory with its spec and its studies.
        threads: CPU threads for a run that starts now, shared by the processes that are begun here; one that was
            started before keeps its own number, because another number gives other bits.
        tracking_uri: MLflow's store; None means the default one.
        sync: carry the records to MLflow meanwhile, from a process of its own.
        show_progress: bars, or lines without a terminal.
        wait_seconds: how long to wait for another writer, which may have died on another machine.
        stop_after_steps: interrupt the training after that many steps of this attempt, with a checkpoint.

    Returns:
        the state in which the run is left: done, failed, pruned or interrupted. Of a process that only helped to
        train: done, when it could.

    Raises:
        RecordError: another process works on this run.
        LaunchError: the run is distributed, and its processes cannot meet.
    """
    run_directory = RunDirectory(Path(run_folder))
    place = detect_rank(Request.of(run_directory).resources.num_processes)
    if threads and place.starts_others:
        threads = max(1, threads // place.size)
    if place.rank:
        return _help(_Job(run_directory, threads, False, place, stop_after_steps))
    with run_directory.lock(wait_seconds), ExitStack() as stack:
        if sync:
            from harness.tracking.daemon import BackgroundSync

            stack.enter_context(
                BackgroundSync([run_directory], run_directory.tracking_folder, tracking_uri=tracking_uri)
            )
        job = _Job(run_directory, threads, show_progress, place, stop_after_steps)
        try:
            job.run()
        except Interrupted:
            if job.stop_signal == _PRUNED:
                job.leave("pruned", run_directory.pruning_requested(), cause="pruned")
                return job.state
            cause: Cause = "signal" if job.stop_signal in _STOP_NUMBERS else "step_limit"
            job.leave("interrupted", f"stopped by {job.stop_signal}; resubmit to resume", cause=cause)
        except HarnessError as error:
            job.leave("failed", str(error), cause="error")
        except Exception as error:
            # Whatever went wrong, the record says so; the traceback is for whoever mends it.
            job.leave("failed", f"{type(error).__name__}: {error}", cause="error", trace=traceback.format_exc())
        else:
            job.leave("done", "")
    return job.state


def _help(job: _Job) -> str:
    """Train with the first process of the run, which keeps the records and hears of errors."""
    try:
        job.run()
    except Interrupted:
        return "interrupted"
    except Exception:
        # `join` has told the first process, whose record gives the reason; the traceback is for this process's own log.
        traceback.print_exc()
        return "failed"
    return "done"


class _Job:
    def __init__(
        self,
        run_directory: RunDirectory,
        threads: int | None,
        show_progress: bool,
        place: RankInfo,
        stop_after_steps: int | None = None,
    ):
        self.directory = run_directory
        self.spec = RunSpec.model_validate(run_directory.spec())
        self.request = Request.of(run_directory)
        self.threads = threads
        self.place = place
        self.shown = show_progress
        self.state, self.stop_signal = "running", ""
        self.stop_after_steps = stop_after_steps
        self.journal: Journal | None = None
        self.step = 0
        self._status_written = 0.0
        self._speed: float | None = None
        self._loss: float | None = None

    # -- the run

    def run(self) -> None:
        """Load, train and evaluate."""
        self._set_threads()
        cuda = self.request.resources.device != "cpu" and torch.cuda.is_available()
        with join(self.place, cuda=cuda, command=self._another_process()) as group:
            device = choose_device(self.request.resources.device, self.place)
            data = make_dataset(self.spec.data, self.request.data_root)
            training, checkpoints = self._take_up(data, device, group)
            if not group.is_first:
                with self._signals(), Progress("", shown=False) as progress:
                    self._train(training, data, checkpoints, progress, group)
                return
            self.journal = self.directory.open_journal(resumed_from_step=training.step)
            if self.spec.continue_from and not checkpoints.steps():
                self.journal.event("continued", run_key=self.spec.continue_from, step=training.step)
                save(training, self.journal, checkpoints)  # from here on the run needs its parent no more
            self._record_environment(self.journal.attempt, device, data, group)
            self._write_status("running", force=True)
            with SystemMetrics(self.journal, lambda: self.step, extra=gpu_gauges(device)), self._signals():
                with Progress(f"train {self.directory.key[:8]}", shown=self.shown) as progress:
                    self._train(training, data, checkpoints, progress, group)
                group.leave()
                self._record_compute(training, data)
                self._evaluate_at_end(training, data, checkpoints)

    def _take_up(self, data: Dataset, device: torch.device, group: Group) -> tuple[Training, Checkpoints]:
        """Return the training as its newest whole checkpoint left it: on every process the one that the first found."""
        resources, spec = self.request.resources, self.spec
        torch.use_deterministic_algorithms(resources.deterministic)
        if resources.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA begins; cuBLAS asks for it
        training = Training(
            spec, make_method(spec, data, resources, device), make_timestep_sampler(spec, device), device
        )
        scored_by, keep_every = self.request.scored_by, self.request.records.keep_every or 0
        metric = f"{self.request.records.best} of {scored_by.key}" if scored_by else None
        checkpoints = Checkpoints(self.directory.checkpoints_folder, keep_every=keep_every, metric=metric)
        found = checkpoints.latest(device) if group.is_first else None
        step = group.agree(found[0] if found else -1)
        if not group.is_first and step >= 0:
            found = step, checkpoints.load(step, device)
        if spec.imported_sha256 and not found:
            raise CheckpointError("the weights come from a file that is not here: `harness import-checkpoint` it first")
        if found:
            self._require_same_spec(*found)
            training.load_state_dict(found[1])
        elif spec.continue_from:
            self._take_over(training)
        self.step = training.step
        return training, checkpoints

    def _require_same_spec(self, step: int, state: dict[str, Any]) -> None:
        """Raise CheckpointError if a checkpoint is of another spec than the run directory's."""
        stored = {"schema_version": state["schema_version"], "spec": state["spec"]}
        asked = {"schema_version": self.directory.schema_version(), "spec": self.directory.spec()}
        if found := differences(stored, asked):
            raise CheckpointError("\n  ".join([f"the checkpoint of step {step} is of another spec:", *found]))

    def _take_over(self, training: Training) -> None:
        """Begin in the final state of the run that this one continues."""
        parent, step = parent_of(self.spec, self.directory.path.parent)
        state = Checkpoints(parent.checkpoints_folder).load(step, training.device)
        training.load_state_dict(state)

    def _train(
        self, training: Training, data: Dataset, checkpoints: Checkpoints, progress: Progress, group: Group
    ) -> None:
        if training.step >= self.spec.train.steps:
            return
        began, first = time.monotonic(), training.step

        def on_log(step: int, values: dict[str, float]) -> None:
            self.step, self._loss = step, values["train/loss"]
            self._speed = values["perf/steps_per_second"]
            progress.update(step, self.spec.train.steps, f"loss {self._loss:.4f}")
            self._write_status("running")

        def measure(step: int) -> float | None:
            return self._evaluate_during(training, data, step) if step < self.spec.train.steps else None

        def stop_requested() -> bool:
            """Tell whether any process was asked to stop, so that all do at the same step and for the same reason."""
            if not self.stop_signal and self.directory.pruning_requested():
                self.stop_signal = _PRUNED
            number = group.agree(_STOP_NUMBERS[self.stop_signal])
            if number:
                self.stop_signal = next(name for name, one in _STOP_NUMBERS.items() if one == number)
            elif self.stop_after_steps and training.step - first >= self.stop_after_steps:  # the same step for all
                self.stop_signal = f"request after {self.stop_after_steps} steps"
            return bool(self.stop_signal)

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
            self._record_throughput((time.monotonic() - began) / (training.step - first), training.device)

    # -- evaluation

    def _evaluate_during(self, training: Training, data: Dataset, step: int) -> float | None:
        """Measure what is due at a step; return the score of its checkpoint, if that is among it."""
        assert self.journal is not None
        score = None
        for evaluation in self.request.evaluations:
            if evaluation.every and step % evaluation.every == 0:
                predict = training.method.predict(evaluation.weights)
                evaluator = Evaluator(predict, self.spec, data, evaluation, training.device, self._prefix(evaluation))
                metrics = evaluator.measure(only_likelihood=True).metrics
                self.journal.metrics(step, metrics)
                if evaluation == self.request.scored_by:
                    score = metrics[f"{evaluator.prefix}/nll_bpd"]
        return score

    def _evaluate_at_end(self, training: Training, data: Dataset, checkpoints: Checkpoints) -> None:
        assert self.journal is not None
        done = {event.facts["key"] for event in self.directory.events("evaluation") if not event.superseded}
        for evaluation in self.request.evaluations:
            if evaluation.key in done:
                continue
            if self.stop_signal:
                raise Interrupted
            predict = training.method.predict(evaluation.weights)
            if evaluation.weights == "untrained":
                predict = load_predict(
                    self.directory.path, self.spec, data, weights="untrained", device=training.device
                )
            prefix = self._prefix(evaluation)
            began = time.monotonic()
            with Progress(f"{prefix} {self.directory.key[:8]}", shown=self.shown) as progress:

                def told(what: str, count: int, total: int, progress: Progress = progress) -> None:
                    progress.update(count, total, what)
                    self._write_status("running")
                    if self.stop_signal:
                        raise Interrupted

                evaluator = Evaluator(
                    predict,
                    self.spec,
                    data,
                    evaluation,
                    training.device,
                    prefix,
                    told,
                    training.method,
                    training.timesteps,
                )
                measured = evaluator.measure()
            if evaluation == self.request.scored_by:
                checkpoints.record_score(training.step, measured.metrics[f"{prefix}/nll_bpd"])
            measured.metrics[f"perf/{prefix}_{'_'.join(evaluation.parts)}_seconds"] = time.monotonic() - began
            self._record(evaluation, prefix, measured)

    def _record(self, evaluation: Evaluation, prefix: str, measured: EvaluationResult) -> None:
        """Write what was measured: files first, then the rows, then the event that says it is whole."""
        assert self.journal is not None
        directory, step = self.directory, self.spec.train.steps
        for name, arrays in measured.arrays.items():
            directory.arrays_folder.mkdir(exist_ok=True)
            temporary = directory.arrays_folder / f".{name}"
            with temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            temporary.rename(directory.arrays_folder / name)
        for name, picture in measured.pictures.items():
            save_png(directory.samples_folder / name, picture)
        protocol = {"evaluation": evaluation.model_dump(mode="json"), **measured.protocol}
        directory.evaluations_folder.mkdir(exist_ok=True)
        replace_file(directory.evaluation_path(evaluation.key), json.dumps(protocol, indent=2), durable=True)
        self.journal.metrics(step, measured.metrics)
        for name, curve in measured.curves.items():
            for at, value in curve:
                self.journal.metrics(at, {name: value}, at=step)
        # With its step, so that it is fenced with its rows when the last checkpoint turns out to be damaged.
        facts = {"key": evaluation.key, "evaluation": evaluation.name, "prefix": prefix, "parts": evaluation.parts}
        self.journal.event("evaluation", step=step, **facts)
        self.journal.sync()

    def _prefix(self, evaluation: Evaluation) -> str:
        """Return the metrics' prefix: the evaluation's name, marked when another protocol took that name before."""
        taken = {
            (event.facts["evaluation"], part): event.facts["key"]
            for event in self.directory.events("evaluation")
            for part in event.facts["parts"]
        }
        for other in self.request.evaluations:
            for part in other.parts:
                taken.setdefault((other.name, part), other.key)
        clash = any(taken.get((evaluation.name, part), evaluation.key) != evaluation.key for part in evaluation.parts)
        return f"{evaluation.name}_{evaluation.key[:6]}" if clash else evaluation.name

    # -- records

    def leave(self, state: str, reason: str, *, cause: Cause = "", trace: str = "") -> None:
        """Write the run's final state for this attempt; where the disk takes nothing more, say it in the log."""
        self.state = state
        if trace:
            print(trace, file=sys.stderr)
        facts = {"reason": reason, "traceback": trace} if trace else {"reason": reason}
        try:
            if self.journal is None:  # it failed before it could begin
                self.journal = self.directory.open_journal(resumed_from_step=self.directory.durable_step())
            with self.journal:
                self.journal.event("finished" if state == "done" else state, **facts)
            self._write_status(state, reason, cause=cause, force=True)
        except RecordError as error:
            self.state = "failed"
            print(f"{self.directory.key} {state}: {reason}; its records cannot say so: {error}", file=sys.stderr)

    def _write_status(self, state: str, reason: str = "", *, cause: Cause = "", force: bool = False) -> None:
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
                eta_seconds=(steps - self.step) / speed if speed else None,
            )
        )

    def _record_environment(self, attempt: int, device: torch.device, data: Dataset, group: Group) -> None:
        facts: dict[str, Any] = {
            "harness": __version__,
            "code_version": code_version(),
            "code_snapshot": snapshot.current(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "host": platform.node(),
            "num_processes": group.size,
            "hosts": list(group.hosts),  # of the processes, by rank
            "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "microbatch": self.request.resources.microbatch,
            "deterministic": self.request.resources.deterministic,
            "data_digest": data.digest,
            "data_files": dict(data.files),
            "data_padded_share": data.padded_share,
        }
        self._note_other_environment(facts)
        self.directory.write_environment(attempt, facts)

    def _note_other_environment(self, facts: dict[str, Any]) -> None:
        """Say in the records when a training goes on under other conditions than it was checkpointed under."""
        assert self.journal is not None
        checkpoints = [event for event in self.directory.events("checkpoint") if not event.superseded]
        before = {one["attempt"]: one for one in self.directory.environments()}
        if not checkpoints or not (old := before.get(checkpoints[-1].attempt)):
            return
        changes = [
            f"{name} {old[name]} -> {facts[name]}"
            for name in BITS_DEPEND_ON
            if name in old and old[name] != facts[name]
        ]
        if changes:
            told = f"{', '.join(changes)}: the bits may differ from here on"
            self.journal.event("environment_changed", step=self.step, changes=told)
            print(f"{self.directory.key}: {told}", file=sys.stderr)

    def _record_throughput(self, seconds_per_step: float, device: torch.device) -> None:
        """Keep what a step took and what a checkpoint weighs, for `plan`."""
        checkpoints = self.directory.checkpoints_folder.glob("step-*.pt")
        fact = Throughput(
            self.spec.cost_key,
            seconds_per_step,
            device=device.type,
            device_name=cpu_name() if device.type == "cpu" else torch.cuda.get_device_name(device),
            threads=torch.get_num_threads(),
            num_processes=self.request.resources.num_processes,
            precision=self.spec.train.precision,
            checkpoint_bytes=max((path.stat().st_size for path in checkpoints), default=None),
        )
        record(self.directory.path.parent, fact)

    def _record_compute(self, training: Training, data: Dataset) -> None:
        """Record the arithmetic of the whole training, for the scaling figures, unless an earlier attempt has."""
        assert self.journal is not None
        if self.directory.history("compute/parameters")[0]:
            return
        from harness.metrics.flops import training_step_compute

        shape = (1, data.channels, data.image_size, data.image_size)
        x, t = torch.empty(shape, device="meta"), torch.empty(1, device="meta")
        y = (torch.empty(1, device="meta", dtype=torch.int64),) if self.spec.model.class_cond else ()
        step = training_step_compute(training.method.network.train(), x, t, *y)
        examples = self.spec.train.steps * self.spec.train.batch_size
        compute = {
            "compute/train_multiply_adds": float(step.multiply_adds * examples),
            "compute/train_flops": float(step.flops * examples),
            "compute/parameters": float(sum(weight.numel() for weight in training.method.network.parameters())),
        }
        self.journal.metrics(self.spec.train.steps, compute)

    # -- the process

    def _another_process(self) -> list[str]:
        """Return the command that starts another process of this run."""
        # _exit: after an error torch's threads may still be there, and would turn the end into an abort.
        code = f"work(sys.argv[1], threads={self.threads}) == 'failed'"
        code = f"import os, sys; from harness.job.job import work; os._exit({code})"
        return [sys.executable, "-u", "-c", code, str(self.directory.path)]

    def _set_threads(self) -> None:
        """Fix the number of threads at the first start and use it again ever after."""
        environments = self.directory.environments()
        wanted = environments[0]["threads"] if environments else self.request.resources.threads or self.threads
        if wanted:
            torch.set_num_threads(wanted)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn signals to stop into a wish that the loop grants at its next step."""

        def stop(number: int, _: object) -> None:
            self.stop_signal = signal.Signals(number).name

        # A worker that was begun with SIGINT ignored is not to hear Ctrl-C: who began it hears it, and asks by SIGTERM.
        deaf = {number for number in [signal.SIGINT] if signal.getsignal(number) == signal.SIG_IGN}
        try:
            before = {number: signal.signal(number, stop) for number in _STOP_SIGNALS if number not in deaf}
        except ValueError:  # not the main thread: whoever owns it handles signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
