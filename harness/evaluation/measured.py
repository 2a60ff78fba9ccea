"""The weights that are measured: of the last checkpoint, of the best one, or an average that is made of snapshots."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from harness.data.base import Dataset
from harness.data.facts import DatasetFacts
from harness.errors import CheckpointError
from harness.methods.base import Method
from harness.records.disk import scores
from harness.registry import make_method
from harness.spec.averages import EmaOfWidth, choose_average
from harness.spec.evaluation import Evaluation
from harness.spec.resources import Resources
from harness.spec.run import RunSpec
from harness.training.checkpoints import Checkpoints
from harness.training.loop import Training
from harness.training.snapshots import synthesise


class Measured(NamedTuple):
    """A method with the weights that are measured, and what has to be reported of how they were chosen."""

    method: Method
    protocol: dict[str, Any]


def measured_weights(
    evaluation: Evaluation,
    training: Training,
    data: Dataset,
    checkpoints: Checkpoints,
    best: str | None,
    resources: Resources,
) -> Measured:
    """Return what an evaluation measures of a training that has ended.

    Args:
        best: the metric that the best checkpoint was chosen by.

    Raises:
        CheckpointError: the best checkpoint is asked for and none has a score; or a file is missing or damaged.
    """
    spec, device = training.spec, training.device
    if evaluation.weights == "untrained":
        return Measured(make_method(spec, data, resources, device), {})
    if isinstance(evaluation.ema, EmaOfWidth):
        width = evaluation.ema.width
        method = with_width(training.method, spec, data, device, checkpoints, training.step, width, resources)
        return Measured(method, {})
    if evaluation.checkpoint == "last":
        return Measured(training.method, {})
    step, values = checkpoints.best_step(), scores(checkpoints.folder, checkpoints.metric)
    if step is None:
        raise CheckpointError(
            f"evaluation {evaluation.name} is of the best checkpoint, but none has a score: let records.best name a "
            "metric that is measured during training, and train again if there is none"
        )
    method = make_method(spec, data, resources, device)
    method.load_state_dict(checkpoints.load(step, device))
    selection = {"step": step, "last_step": training.step, "metric": best, "value": values[step]}
    return Measured(method, {"checkpoint": selection})


def with_width(
    method: Method,
    spec: RunSpec,
    data: Dataset | DatasetFacts,
    device: torch.device,
    checkpoints: Checkpoints,
    step: int,
    width: float,
    resources: Resources = Resources(),  # noqa: B008 (it is frozen)
) -> Method:
    """Return a method whose weights "ema" are the power-function average of a width at the step of a checkpoint.

    Args:
        method: with the checkpoint's weights.

    Raises:
        CheckpointError: a snapshot is missing or damaged, or those before the step do not make the width.
    """
    try:
        until_then = spec.train.model_copy(update={"steps": step})
        choose_average(EmaOfWidth(width=width), until_then, during_training=False)
    except ValueError as error:
        raise CheckpointError(f"checkpoint of step {step}: {error}") from None
    made = make_method(spec, data, resources, device)
    average = synthesise(checkpoints.folder, step, method.sampling_network, spec.train, width)
    made.sampling_network("ema").load_state_dict(average)
    return made
