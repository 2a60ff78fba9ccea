"""What all parts of a spec share: frozen models that refuse unknown keys, and the hash that identities are made of."""

from __future__ import annotations

import hashlib
import json
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1
"""Part of every run_key. Raise it when a field keeps its name but changes its meaning."""


class SpecModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def expand_name(value: Any) -> Any:
    """Let `schedule: cosine` stand for `schedule: {name: cosine}`."""
    return {"name": value} if isinstance(value, str) else value


def choices(union: Any) -> dict[str, type[SpecModel]]:
    """Map each name of a discriminated union below to its parameter class."""
    variants = get_args(get_args(union)[0]) or (get_args(union)[0],)
    return {get_args(variant.model_fields["name"].annotation)[0]: variant for variant in variants}


def canonical_json(value: Any) -> str:
    """Spell plain values in the one way that is hashed: sorted keys, no spaces, floats by repr."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(value: Any) -> str:
    """Return the 16 hex digits that stand for plain values."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
