"""Averages of the weights: those that a training keeps, and the one that an evaluation measures."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag

from harness.diffusion.power_averages import exponent_of, fit
from harness.spec.base import SpecModel

LARGEST_ERROR = 0.1
"""From which distance on, relative to the norm of its profile, a width cannot be made of the snapshots."""
_MANY = 64

Width = Annotated[float, Field(ge=0.005, le=0.28)]


def _require_different(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(values)) < len(values):
        raise ValueError("two of them are equal")
    return values


def _require_several(rates: tuple[float, ...]) -> tuple[float, ...]:
    if len(rates) < 2:
        raise ValueError("give two rates or more; a single one is train.ema_rate")
    return _require_different(rates)


class PowerAverages(SpecModel):
    """Two power-function averages and snapshots of them, of which an evaluation can make any width (EDM2)."""

    power: Annotated[tuple[Width, Width], AfterValidator(_require_different)] = Field(
        (0.05, 0.1), description="Their widths: standard deviations as fractions of the training time, sigma_rel."
    )
    every: int = Field(ge=1, description="Steps from one snapshot to the next; each has both averages in float16.")


class EmaOfWidth(SpecModel):
    """The power-function average of a width."""

    width: Width = Field(description="Its standard deviation as a fraction of the training time, sigma_rel.")


def _kind(value: Any) -> str:
    return "by_width" if isinstance(value, (dict, SpecModel)) else "by_rate"


Rate = Annotated[float, Field(ge=0, lt=1)]
Rates = Annotated[tuple[Rate, ...], Field(max_length=16), AfterValidator(_require_several)]
Ema = (
    Annotated[Annotated[Rates, Tag("by_rate")] | Annotated[PowerAverages, Tag("by_width")], Discriminator(_kind)] | None
)
ChosenEma = (
    Annotated[Annotated[Rate, Tag("by_rate")] | Annotated[EmaOfWidth, Tag("by_width")], Discriminator(_kind)] | None
)


def average_name(rate_or_width: float) -> str:
    """Return the name of an average beside the first in checkpoints and to methods."""
    return repr(float(rate_or_width))


def require_averages(run: Any) -> None:
    """Raise ValueError if a run, a RunSpec, cannot keep the averages that its `train.ema` asks for."""
    if run.train.ema is None:
        return
    if not run.method.keeps_averages:
        raise ValueError(f"train.ema: method {run.method.name} keeps one average of the weights: use ema_rate")
    if run.imported_sha256:
        raise ValueError("train.ema: imported weights are not averaged: remove it")
    if isinstance(run.train.ema, PowerAverages) and run.continue_from:
        raise ValueError(
            "train.ema: the snapshots of a continued run would begin after its parent's last step, but widths are made "
            "of those of the whole training: use rates, or train anew"
        )


def choose_average(chosen: float | EmaOfWidth, train: Any, *, during_training: bool) -> float | EmaOfWidth | None:
    """Return an evaluation's choice among the averages that a run keeps, None for the first.

    Args:
        chosen: the rate of one, or a width.
        train: the run's spec.Train.
        during_training: whether it is measured during training, too.

    Raises:
        ValueError: the run does not keep it, or it cannot be made of the snapshots.
    """
    kept = train.ema
    if not isinstance(kept, PowerAverages):
        choices = ", ".join(map(str, train.ema_rates))
        if isinstance(chosen, EmaOfWidth):
            raise ValueError(
                f"ema: a width is made of snapshots, which train.ema: {{power: [0.05, 0.1], every: STEPS}} keeps; this "
                f"run keeps ema {choices}"
            )
        if chosen not in train.ema_rates:
            raise ValueError(f"ema: this run does not keep an average of rate {chosen}; choices: {choices}")
        return None if chosen == train.ema_rates[0] else chosen
    if not isinstance(chosen, EmaOfWidth):
        raise ValueError(f"ema: this run keeps averages by width, not by rate: say ema: {{width: {kept.power[1]}}}")
    if chosen.width == kept.power[0]:
        return None
    if during_training:
        raise ValueError("ema: a width is made of snapshots when the training is over: remove every, or the width")
    error = profile_error(chosen.width, kept.power, kept.every, train.steps)
    if error > LARGEST_ERROR:
        raise ValueError(
            f"ema: width {chosen.width} cannot be made of averages of widths {kept.power[0]} and {kept.power[1]} every "
            f"{kept.every} of {train.steps} steps: the best combination is {error:.0%} away from it, and "
            f"{LARGEST_ERROR:.0%} are allowed; choose a width nearer to those, or a smaller train.ema.every"
        )
    return chosen


def average_of(number: float, train: Any) -> float | EmaOfWidth | None:
    """Return the average that a number means among those that a run keeps: its rate, or its width of snapshots.

    Args:
        train: the run's spec.Train.

    Raises:
        ValueError: the run does not keep it, or it cannot be made of the snapshots.
    """
    if not isinstance(train.ema, PowerAverages):
        return choose_average(number, train, during_training=False)
    if not 0.005 <= number <= 0.28:
        raise ValueError(f"ema: this run keeps averages by width, and {number} is none: widths are 0.005 to 0.28")
    return choose_average(EmaOfWidth(width=number), train, during_training=False)


def snapshot_steps(every: int, step: int) -> list[int]:
    """Return the steps before `step` that have a snapshot."""
    return list(range(every, step, every))


@cache
def profile_error(width: float, power: tuple[float, float], every: int, num_steps: int) -> float:
    """Return how far the best combination of a run's averages is from a width, as a fraction of its profile's norm."""
    steps = [*snapshot_steps(every, num_steps), num_steps]
    # Fewer snapshots cannot be better, so that a good fit of some is enough.
    some = [*steps[:-1][:: len(steps) // _MANY + 1], num_steps]
    error = _error(width, power, some)
    return error if error <= LARGEST_ERROR or len(some) == len(steps) else _error(width, power, steps)


def _error(width: float, power: tuple[float, float], steps: list[int]) -> float:
    return fit(width, steps[-1], [(step, exponent_of(stored)) for step in steps for stored in power])[1]
