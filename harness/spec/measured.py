"""Which weights an evaluation measures: of the last or the best checkpoint, and those of a second run beside them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from harness.spec.averages import EmaOfWidth
from harness.spec.base import SpecModel

Checkpoint = Literal["last", "best"]


class Ensemble(SpecModel):
    """An ensemble by t: this run's network near both ends of the chain, another run's in between (IDDPM, appendix)."""

    middle: str = Field(pattern=r"^[0-9a-f]{16}$", description="The run_key of a done run, for low <= t < high.")
    low: int = Field(100, ge=0, description="From which t on.")
    high: int | None = Field(None, ge=1, description="Up to which t.  [default: T - low]")


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


def resolved_ensemble(evaluation: Any, spec: Any) -> dict[str, Ensemble]:
    """Return the field of an ensemble with its last t, for a RunSpec; empty where there is none.

    Raises:
        ValueError: the run's method has no network to share the chain with, or the chain no such t.
    """
    ensemble = evaluation.ensemble
    if ensemble is None:
        return {}
    if "nll" not in spec.method.measures:
        raise ValueError(f"ensemble: method {spec.method.name} has no network that could share the chain with another")
    for field, value, usual in (("every", evaluation.every, None), ("ema", evaluation.ema, None)):
        if value != usual:
            raise ValueError(f"ensemble: the other run is measured as it ended, by its first average: remove {field}")
    if evaluation.weights == "untrained" or evaluation.noise_scale:
        raise ValueError("ensemble: untrained weights and noise_scale are of one network: remove ensemble")
    num_timesteps = spec.diffusion.num_timesteps
    high = num_timesteps - ensemble.low if ensemble.high is None else ensemble.high
    if not ensemble.low < high <= num_timesteps:
        raise ValueError(f"ensemble: low {ensemble.low} and high {high} are no part of a chain of {num_timesteps} t")
    return {"ensemble": ensemble.model_copy(update={"high": high})}
