"""What a figure was made of, and how: written into its file, so that a copy of it can be traced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from harness.errors import RecordError
from harness.text import count

METADATA = "harness"
"""The keyword of a provenance in a PNG; PDF and SVG have it among their keywords."""


@dataclass(frozen=True)
class Provenance:
    """The provenance of a figure, stored in the metadata of its PNG, PDF and SVG.

    Attributes:
        data_digests: of the images that the runs were trained on.
        protocols: ids of the protocols that samples were measured by.
        records: digest of what the figure shows.
    """

    title: str
    study: str
    run_keys: tuple[str, ...]
    code_versions: tuple[str, ...]
    command: str
    data_digests: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ()
    records: str = ""

    @property
    def runs_digest(self) -> str:
        """Return 12 hex digits of sha256 over the sorted run keys."""
        return hashlib.sha256("\n".join(sorted(self.run_keys)).encode()).hexdigest()[:12]

    def sentence(self) -> str:
        if not self.run_keys:
            return f"closed form, no runs; made by: {self.command}"
        return (
            f"study {self.study}; {count(len(self.run_keys), 'run')}, digest {self.runs_digest}: "
            f"{' '.join(sorted(self.run_keys))}; code {', '.join(self.code_versions)}; made by: {self.command}"
        )

    def as_json(self) -> str:
        """Return all fields as JSON in ASCII, for programs."""
        return json.dumps({"format": 1, **asdict(self)})


def provenance_from(values: Any, place: str) -> Provenance:
    """Return a provenance from the plain values of its fields.

    Raises:
        RecordError: they are not those of a provenance.
    """
    if not isinstance(values, Mapping):
        raise RecordError(f"{place}: has no provenance")
    read: dict[str, Any] = {}
    for field in fields(Provenance):
        value = values.get(field.name, () if "tuple" in str(field.type) else "")
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise RecordError(f"{place}: its {field.name} is not a text")
        read[field.name] = value if isinstance(value, str) else tuple(texts)
    return Provenance(**read)
