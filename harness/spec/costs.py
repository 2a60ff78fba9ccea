"""The cost of an evaluation in network evaluations: one image through the network once. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.spec.evaluation import Evaluation
from harness.spec.run import RunSpec

FORWARD_AND_BACKWARD = 3
"""A training step's cost in forward passes."""


def network_evaluations(evaluation: Evaluation, spec: RunSpec) -> dict[str, int | None]:
    """Return the number of network evaluations of each part of a resolved evaluation.

    None: only the data's files, or a plugin, can tell. Not counted: the pilot of a stratified NLL, about a tenth more,
    and feature extractors.
    """
    counts = {part: _COSTS[part](getattr(evaluation, part), evaluation, spec) for part in evaluation.parts}
    for part in evaluation.during_training if evaluation.every else ():
        count = counts[part]
        if evaluation.every and count is not None:
            counts[part] = count * (1 + spec.train.steps // evaluation.every)
    return counts


def _num_images(limit: int | None, evaluation: Evaluation, spec: RunSpec) -> int | None:
    facts = spec.data.facts
    whole = facts.num_test if evaluation.split == "test" else facts.num_train
    return whole if limit is None else min(limit, whole or limit)


def _nll(part: Any, evaluation: Evaluation, spec: RunSpec) -> int | None:
    num_images, num_timesteps = _num_images(part.num_images, evaluation, spec), spec.diffusion.num_timesteps
    if num_images is None:
        return None
    if part.estimator == "full" or num_timesteps <= part.evaluations_per_image:
        return (num_images + min(num_images, 16)) * num_timesteps  # 16 again, for the standard error
    return num_images * part.evaluations_per_image


def _sampling(num_samples: float, evaluation: Evaluation) -> int:
    return round(num_samples) * (1 if evaluation.guidance == 1 else 2)  # with and without the label


def _fidelity(part: Any, evaluation: Evaluation, spec: RunSpec) -> int:
    return _sampling(part.seeds * part.num_samples * part.num_steps, evaluation)


def _sweep(part: Any, evaluation: Evaluation, spec: RunSpec) -> int:
    return _sampling(part.num_samples * sum(part.num_steps) * len(part.samplers), evaluation)


def _skip(part: Any, evaluation: Evaluation, spec: RunSpec) -> int:
    steps = [max(1, round((1 - fraction) * part.num_steps)) for fraction in part.fractions]
    return _sampling(part.num_samples * sum(steps), evaluation)


def _modes(part: Any, evaluation: Evaluation, spec: RunSpec) -> int:
    return _sampling(part.num_samples * sum(part.num_steps), evaluation)


def _rate_distortion(part: Any, evaluation: Evaluation, spec: RunSpec) -> int | None:
    num_images = _num_images(part.num_images, evaluation, spec)
    return None if num_images is None else num_images * part.num_steps


def _noise_scale(part: Any, evaluation: Evaluation, spec: RunSpec) -> int:
    return FORWARD_AND_BACKWARD * part.batch_size * part.small_per_big * part.num_big


def _grid(count: Any, evaluation: Evaluation, spec: RunSpec) -> int:
    fidelity = evaluation.fidelity
    if fidelity and fidelity.num_samples >= count:
        return 0  # those that FID was measured on
    num_steps = fidelity.num_steps if fidelity else None
    return _sampling(count * (num_steps or spec.diffusion.num_timesteps), evaluation)


def _trajectories(part: Any, evaluation: Evaluation, spec: RunSpec) -> int:
    return _sampling(part.num_samples * part.num_steps, evaluation)


def _progressive(part: Any, evaluation: Evaluation, spec: RunSpec) -> int:
    return _sampling(part.num_samples * part.num_steps, evaluation)


def _interpolation(part: Any, evaluation: Evaluation, spec: RunSpec) -> int:
    return _sampling(part.num_pairs * part.num_weights * sum(t + 1 for t in part.t), evaluation)


def _reconstruction(part: Any, evaluation: Evaluation, spec: RunSpec) -> int | None:
    num_images = _num_images(part.num_images, evaluation, spec)
    return None if num_images is None else num_images * sum(2 * count - 1 for count in part.num_steps)


def _metrics(part: Any, evaluation: Evaluation, spec: RunSpec) -> None:
    return None


_COSTS: dict[str, Callable[[Any, Evaluation, RunSpec], int | None]] = {
    "nll": _nll,
    "fidelity": _fidelity,
    "sweep": _sweep,
    "skip": _skip,
    "modes": _modes,
    "rate_distortion": _rate_distortion,
    "noise_scale": _noise_scale,
    "grid": _grid,
    "trajectories": _trajectories,
    "progressive": _progressive,
    "interpolation": _interpolation,
    "reconstruction": _reconstruction,
    "metrics": _metrics,
}
