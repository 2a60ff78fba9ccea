"""The training loop: data, one step of the method, then the records.

A step never synchronises with the device and never contacts a server. Random numbers are a function of the seed and the
step (randomness.py), so a run that was killed anywhere and resumed ends in the same bits as an uninterrupted one. If
several processes train one run, each executes this loop with its rows of the batch (distributed.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from harness.data.base import Dataset
from harness.errors import TrainingError
from harness.methods.base import Method
from harness.methods.ranges import named_range
from harness.randomness import Streams
from harness.records.journal import Journal
from harness.spec.averages import PowerAverages
from harness.spec.base import SCHEMA_VERSION
from harness.spec.resources import Records
from harness.spec.run import RunSpec
from harness.training.batches import Batches
from harness.training.checkpoints import Checkpoints
from harness.training.distributed import ProcessGroup
from harness.training.snapshots import save_snapshot
from harness.training.window import Window


class Interrupted(Exception):
    """The training was asked to stop; its state is in a checkpoint."""


class Training:
    """All state that the next step depends on: the content of a checkpoint."""

    def __init__(self, spec: RunSpec, method: Method, device: torch.device):
        self.spec, self.method, self.device = spec, method, device
        self.step = 0
        self.window = Window(spec.diffusion.num_timesteps, method.terms_logged, method.scalars_logged, device)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with the spec, so that sampling and evaluation need no flags."""
        return {
            "schema_version": SCHEMA_VERSION,
            "spec": self.spec.model_dump(mode="json"),
            "step": self.step,
            "window": {"sums": self.window.sums.clone(), "steps": self.window.steps.clone()},
            **self.method.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a checkpoint's state."""
        self.step = state["step"]
        self.method.load_state_dict(state)
        self.window.sums.copy_(state["window"]["sums"])
        self.window.steps.copy_(state["window"]["steps"])


def train(
    training: Training,
    data: Dataset,
    *,
    journal: Journal | None,
    checkpoints: Checkpoints,
    records: Records,
    measure: Callable[[int], float | None],
    on_log: Callable[[int, dict[str, float]], None],
    stop_requested: Callable[[], bool],
    group: ProcessGroup | None = None,
) -> None:
    """Train from the current step of `training` to the last.

    Args:
        training: the state, fresh or from a checkpoint; changed in place.
        data: its training split is used.
        journal: gets the metrics, one batch of rows every records.log_every steps. None: this process only trains, and
            another one keeps the records.
        checkpoints: saves the state by time, every records.keep_every steps, when stopped and at the end.
        records: the intervals.
        measure: called with the number of steps done after each step; runs evaluations that are due, and returns the
            metric for the best checkpoint if it was measured.
        on_log: called with each log line.
        stop_requested: called after each step; must return the same on all processes of a group.
        group: the processes that train this run; None: only this one.

    Raises:
        TrainingError: a loss or gradient is not a number; the last good checkpoint is kept.
        Interrupted: stop_requested returned True; the state is saved.
    """
    spec, method, window = training.spec, training.method, training.window
    streams = Streams(spec.seed, training.device)
    batches = Batches(spec, data, streams)
    group = group or ProcessGroup()
    rows = group.share(spec.train.batch_size)
    method.distribute(group.size)
    last_saved, log_time, log_step = time.monotonic(), time.monotonic(), training.step

    for step in range(training.step, spec.train.steps):
        streams.seed_dropout(step, group.rank)
        with named_range("data"):
            batch = batches(step, rows)
        output = method.step(step, batch, streams, group)
        with named_range("records"):
            window.add(step, output)

        training.step = done = step + 1
        finished = done == spec.train.steps
        if journal and (done % records.log_every == 0 or finished):
            with named_range("records"):
                _check_finite(window, batches, spec)
                now = time.monotonic()
                speed = (done - log_step) / (now - log_time)
                log_time, log_step = now, done
                values = window.flush() | {f"train/{name}": rate for name, rate in method.learning_rates().items()}
                values |= {
                    "perf/steps_per_second": speed,
                    "perf/images_per_second": speed * spec.train.batch_size,
                }
                journal.metrics(done, values)
                on_log(done, values)
                for name, fields in method.events():
                    journal.event(name, step=done, **fields)
        if journal and isinstance(spec.train.ema, PowerAverages) and done % spec.train.ema.every == 0:
            _check_finite(window, batches, spec)
            save_snapshot(checkpoints.folder, done, method.sampling_network, spec.train)
        score = measure(done) if journal else None
        stopping = stop_requested() and not finished
        by_time = time.monotonic() - last_saved >= records.checkpoint_every_seconds
        by_step = records.keep_every and done % records.keep_every == 0
        if journal and (finished or stopping or by_time or by_step or score is not None):
            _check_finite(window, batches, spec)
            save(training, journal, checkpoints, score)
            last_saved = time.monotonic()
        if stopping:
            raise Interrupted


def save(training: Training, journal: Journal, checkpoints: Checkpoints, score: float | None = None) -> None:
    """Make the state durable, and only then record it in the journal: rows up to here are final."""
    journal.sync()
    began = time.monotonic()
    checkpoints.save(training.step, training.state_dict(), score=score)
    checkpoints.slowest_seconds = max(checkpoints.slowest_seconds, time.monotonic() - began)
    journal.event("checkpoint", step=training.step)
    journal.sync()


def _check_finite(window: Window, batches: Batches, spec: RunSpec) -> None:
    bad = window.first_bad_step()
    if bad is not None:
        images = ", ".join(map(str, batches.indices(bad).tolist()[:8]))
        raise TrainingError(
            f"the loss or its gradient is not a number at step {bad} (training images {images}, ...); the last good "
            f"checkpoint is kept. A smaller optim.lr ({spec.optim.lr} now) or optim.grad_clip may help"
        )
