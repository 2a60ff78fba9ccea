"""Names for settings that differ: no label stands for two of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from harness.spec.base import canonical_json


def flatten(spec: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return a spec's values by their dotted paths; lists are not flattened."""
    values: dict[str, Any] = {}
    for key, value in spec.items():
        values |= flatten(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return values


def what_differs(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Describe each of several settings by the values in which it differs from the others: `train.steps=20`.

    Args:
        settings: values by dotted path; a value that one of them lacks is a dash.

    Returns:
        a text each, all different if the settings are; empty for a single one.
    """
    paths = dict.fromkeys(path for values in settings for path in values)
    differing = [path for path in paths if len({canonical_json(values.get(path)) for values in settings}) > 1]
    return [", ".join(f"{path}={_brief(values.get(path))}" for path in differing) for values in settings]


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


def _brief(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
