"""Which checkpoint of a run an evaluation measures."""

from __future__ import annotations

from typing import Any, Literal

from harness.spec.averages import EmaOfWidth

Checkpoint = Literal["last", "best"]


def check_checkpoint(evaluation: Any) -> None:
    """Raise ValueError if an evaluation of the best checkpoint asks for what that one does not have."""
    if evaluation.checkpoint == "last":
        return
    if evaluation.every is not None:
        raise ValueError("checkpoint: the best one is known when the training is over: remove every")
    if evaluation.weights == "untrained":
        raise ValueError("checkpoint: the untrained weights are of no checkpoint: remove it")
    if isinstance(evaluation.ema, EmaOfWidth):
        raise ValueError(
            "checkpoint: a width is made of the snapshots of the whole training, for the last checkpoint: remove ema, "
            "or checkpoint"
        )
