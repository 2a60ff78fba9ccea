"""Tell settings apart by their values: two arms, samplers or protocols of one name that differ are never one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.spec.base import canonical_json

if TYPE_CHECKING:
    from harness.analysis.runs import Measurement, RunRecord


def settings_of(run: RunRecord) -> dict[str, Any]:
    """Return all resolved values of a run's spec but its seed, by dotted path: what makes an arm."""
    return {path: value for path, value in flatten(run.spec).items() if path != "seed"}


def sampling_protocol(measurement: Measurement, part: str) -> dict[str, Any]:
    """Return all of a protocol that a measurement of samples (fidelity, sweep) depends on."""
    shared = ("fixed_variance", "guidance", "seed")
    of_samples = {name: measurement.evaluation.get(name) for name in shared}
    return {part: measurement.evaluation[part]} | measured_weights(measurement.evaluation) | of_samples


def measured_weights(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an evaluation says of the weights that it measures: average, checkpoint, ensemble."""
    return {name: evaluation[name] for name in ("weights", "ema", "checkpoint", "ensemble") if name in evaluation}


def what_differs(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Describe each of several settings by the values in which it differs from the others: `train.steps=20`.

    Args:
        settings: values by dotted path; a value that one of them lacks is a dash.

    Returns:
        a text each, all different if the settings are; empty for a single one.
    """
    paths = dict.fromkeys(path for values in settings for path in values)
    differing = [path for path in paths if len({canonical_json(values.get(path)) for values in settings}) > 1]
    return [", ".join(f"{path}={brief(values.get(path))}" for path in differing) for values in settings]


class Labels:
    """Names for settings: a name as it is, and with the values that differ where it stands for several settings."""

    def __init__(self) -> None:
        self._settings: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, name: str, settings: dict[str, Any]) -> tuple[str, str]:
        """Note settings under a name; return what identifies them in `texts`."""
        key = (name, canonical_json(settings))
        self._settings[key] = flatten(settings)
        return key

    def texts(self) -> dict[tuple[str, str], str]:
        """Return the label of each setting; all of them are different."""
        texts = {}
        for name in dict.fromkeys(name for name, _ in self._settings):
            keys = [key for key in self._settings if key[0] == name]
            for key, difference in zip(keys, what_differs([self._settings[key] for key in keys]), strict=True):
                texts[key] = f"{name} ({difference})" if difference else name
        return texts


def flatten(spec: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return a spec's values by their dotted paths; lists are not flattened."""
    values: dict[str, Any] = {}
    for key, value in spec.items():
        values |= flatten(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return values


def brief(value: Any) -> str:
    """Format a value of a spec for a label."""
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
