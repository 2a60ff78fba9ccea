"""What doctor says: a level, and what to do."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    level: Literal["ok", "warning", "problem"]
    said: str


def ok(said: str) -> Finding:
    return Finding("ok", said)


def warning(said: str) -> Finding:
    return Finding("warning", said)


def problem(said: str) -> Finding:
    return Finding("problem", said)


def run_program(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: not here")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"{command[0]}: no answer within 30 s")


def one_line(text: str) -> str:
    return " ".join(text.split())[:400]
