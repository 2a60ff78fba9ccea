"""What all parts of a spec share: frozen models that refuse unknown keys, and the hash that identities are made of."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1
"""Part of every run_key. Raise it when a field keeps its name but changes its meaning."""


class SpecModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def check(self, run: Any) -> None:
        """Raise ValueError where this part does not fit the rest of `run`, a RunSpec; begin with the path at fault."""


def expand_name(value: Any) -> Any:
    """Let `schedule: cosine` stand for `schedule: {name: cosine}`."""
    return {"name": value} if isinstance(value, str) else value


def canonical_json(value: Any) -> str:
    """Spell plain values in the one way that is hashed: sorted keys, no spaces, floats by repr."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(value: Any) -> str:
    """Return the 16 hex digits that stand for plain values."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
