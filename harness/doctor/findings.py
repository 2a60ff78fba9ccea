"""Findings of `harness doctor`: each has a level and a message that says what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    level: Literal["ok", "warning", "problem"]
    message: str


def ok(message: str) -> Finding:
    return Finding("ok", message)


def warning(message: str) -> Finding:
    return Finding("warning", message)


def problem(message: str) -> Finding:
    return Finding("problem", message)


def one_line(text: str) -> str:
    """Return a text in one line of at most 400 characters."""
    return " ".join(text.split())[:400]
