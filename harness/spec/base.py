"""The base of all parts of a spec: frozen models that refuse unknown keys, and the hash for identities."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_serializer

SCHEMA_VERSION = 1
"""Part of every run_key. Raise it when a field keeps its name but changes its meaning."""


YOUNGER = object()
"""Marks a field that was added after the schema version: `Annotated[int | None, YOUNGER] = None`.

It is written and hashed only if it differs from its default. So every spec that does not use it keeps its key, and
existing run directories keep their spec.
"""


class SpecModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    younger_fields: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        fields = cls.model_fields.items()
        cls.younger_fields = tuple(name for name, field in fields if any(mark is YOUNGER for mark in field.metadata))

    def unwritten_paths(self) -> Iterable[str]:
        """Return the dotted paths of the fields that are neither written nor hashed."""
        fields = type(self).model_fields
        return [name for name in self.younger_fields if getattr(self, name) == fields[name].default]

    @model_serializer(mode="wrap")
    def _write(self, handler: Any) -> dict[str, Any]:
        written = handler(self)
        for path in self.unwritten_paths():
            *parents, name = path.split(".")
            part = written
            for parent in parents:
                part = part.get(parent, {})
            part.pop(name, None)
        return written

    @cached_property
    def as_plain(self) -> dict[str, Any]:
        """The plain values that are written, for all specs that share this part; they are not to be changed."""
        return self.model_dump(mode="json")

    @cached_property
    def as_json(self) -> str:
        """These values in the canonical form for hashing."""
        return canonical_json(self.as_plain)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy the fields, and nothing that was computed of them, such as run_key: the copy may have other values."""
        copy = super().model_copy(update=update, deep=deep)
        for name in copy.__dict__.keys() - type(self).model_fields.keys():
            del copy.__dict__[name]
        return copy

    @classmethod
    def check_declaration(cls) -> None:
        """Raise ValueError if a plugin's parameter class lacks what parts of its kind must declare."""

    def check(self, run: Any) -> None:
        """Raise ValueError if this part does not fit the rest of `run`, a RunSpec; start with the field's path."""


def expand_name(value: Any) -> Any:
    """Accept `schedule: cosine` for `schedule: {name: cosine}`."""
    return {"name": value} if isinstance(value, str) else value


def canonical_json(value: Any) -> str:
    """Format plain values in the canonical form for hashing: sorted keys, no spaces, floats by repr."""
    return _CANONICAL.encode(value)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(value: Any) -> str:
    """Return 16 hex digits of sha256 over plain values."""
    return digest_of_json(canonical_json(value))


def digest_of_json(text: str) -> str:
    """Return 16 hex digits of sha256 over values in their canonical form."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
