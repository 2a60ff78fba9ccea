"""Data as CSV files, beside figures and tables; without matplotlib, so that an upload need not import it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.text import spreadsheet_cell

if TYPE_CHECKING:
    import pandas as pd


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write data as `csv_text` has it."""
    path.write_bytes(csv_text(frame).encode("utf-8", "replace"))


def csv_text(frame: pd.DataFrame) -> str:
    """Return a frame as CSV; arrays in cells as shape and digest, and no cell that a spreadsheet would run."""
    for column in frame.select_dtypes(exclude="number").columns:
        frame = frame.assign(**{column: frame[column].map(_cell)})
    return str(frame.rename(columns=spreadsheet_cell).to_csv(index=False, float_format="%.10g"))


def _cell(value: Any) -> Any:
    return spreadsheet_cell(value) if isinstance(value, str) else _digest_of_array(value)


def _digest_of_array(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    shape = "x".join(map(str, value.shape))
    return f"{value.dtype} {shape} sha256:{hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]}"
