"""Read files that anybody may have written: each value has the type and range that its reader relies on.

A run directory may be damaged, edited, or come from elsewhere. What is read here is either right or a RecordError that
names the file and the value, so that one such file does not end a command about other runs.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import RecordError

if TYPE_CHECKING:
    import numpy as np

MAX_JSON_BYTES = 64 << 20  # the largest are lists of environments, of kilobytes
MAX_ARRAY_BYTES = 8 << 30  # of all arrays in one file, unpacked
MAX_EXPANSION = 100  # limit of an unpacked size, relative to the packed one; journals compress tenfold
MAX_INTEGER = 2**63 - 1  # of MLflow's and NumPy's integers
MAX_SECONDS = 253_402_300_799  # the end of year 9999: later times cannot be written as a date
STUDY_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
FILE_NAME = re.compile(r"(?!.*\.\.)[^\W_][\w.+=,-]{0,149}")

_REQUIRED: Any = object()


def read_bytes(path: Path, offset: int = 0, limit: int | None = None) -> bytes:
    """Read a regular file from an offset on.

    Raises:
        FileNotFoundError: there is none.
        RecordError: it cannot be read, is a folder or a device, or is larger than `limit`.
    """
    try:
        # Without waiting: opening a named pipe would not return.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise RecordError(f"{path}: cannot be read: it is not a file")
        if limit is not None and facts.st_size > limit:
            raise RecordError(f"{path}: cannot be read: it has {facts.st_size} bytes, more than {limit}")
        os.lseek(descriptor, offset, os.SEEK_SET)
        chunks = []
        while chunk := os.read(descriptor, max(1 << 16, facts.st_size - offset + 1)):
            chunks.append(chunk)
        return b"".join(chunks)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is none.
        RecordError: it cannot be read, or is not JSON in UTF-8.
    """
    return parse_json(read_bytes(path, limit=MAX_JSON_BYTES), str(path))


def parse_json(content: bytes, place: str) -> Any:
    """Return the value of a JSON text; `place` names it in errors.

    Raises:
        RecordError: it is not JSON in UTF-8, or nested too deeply.
    """
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise RecordError(f"{place}: is not text in UTF-8") from None
    except RecursionError:
        raise RecordError(f"{place}: is nested too deeply") from None
    except ValueError as error:
        reason = str(error) if content else "it is empty"
        raise RecordError(f"{place}: is not JSON: {reason}") from None


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an npz file of numbers.

    Raises:
        FileNotFoundError: there is none.
        RecordError: it is damaged, holds anything else than numbers, or unpacks to far more than its size.
    """
    import zipfile
    import zlib

    import numpy as np

    if not path.exists():
        raise FileNotFoundError(path)
    if not path.is_file():
        raise RecordError(f"{path}: cannot be read: it is not a file")
    try:
        with zipfile.ZipFile(path) as archive:
            num_bytes = sum(member.file_size for member in archive.infolist())
        if num_bytes > min(MAX_ARRAY_BYTES, MAX_EXPANSION * path.stat().st_size + (64 << 20)):
            raise RecordError(f"{path}: unpacks to {num_bytes >> 20} MiB, more than a file of its size holds")
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, MemoryError, RuntimeError) as error:
        raise RecordError(f"{path}: is not a file of arrays: {error}") from error
    except (zipfile.BadZipFile, zlib.error, SyntaxError, TypeError) as error:
        raise RecordError(f"{path}: is not a file of arrays: {error}") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
            raise RecordError(f"{path}: {name} does not hold numbers")
    return arrays


class Fields:
    """A JSON object, whose values are read by their types.

    Args:
        place: names the object in errors.

    Raises:
        RecordError: from the constructor if the value is not an object; from a method if a value is absent without a
            default, or is not of its type.
    """

    __slots__ = ("_place", "_values")

    def __init__(self, values: Any, place: str):
        if not isinstance(values, dict):
            raise RecordError(f"{place}: is {_kind(values)}, not an object")
        self._values, self._place = values, place

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def get(self, name: str) -> Any:
        """Return a value as it is, None if it is absent."""
        return self._values.get(name)

    def integer(self, name: str, default: Any = _REQUIRED, *, low: int = 0, high: int = MAX_INTEGER) -> int:
        """Return a whole number in low .. high."""
        value = self._get(name, default)
        if type(value) is not int:
            raise self._refused(name, value, "a whole number")
        if not low <= value <= high:
            raise self._refused(name, value, f"in {low} .. {high}")
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        """Return a number; NaN and infinities are ones."""
        value = self._get(name, default)
        number = as_number(value)
        if number is None:
            raise self._refused(name, value, "a number")
        return number

    def finite(self, name: str, default: Any = _REQUIRED, *, low: float = -math.inf, high: float = math.inf) -> float:
        """Return a finite number in low .. high."""
        number = self.number(name, default)
        if not math.isfinite(number) or not low <= number <= high:
            raise self._refused(name, number, f"a finite number in {low} .. {high}")
        return number

    def seconds(self, name: str, default: Any = _REQUIRED) -> float:
        """Return a time in Unix seconds, before the year 10000."""
        return self.finite(name, default, low=0, high=MAX_SECONDS)

    def optional_number(self, name: str) -> float | None:
        """Return a number, None if it is absent or null."""
        return None if self._values.get(name) is None else self.number(name)

    def optional_finite(self, name: str, *, low: float = -math.inf) -> float | None:
        """Return a finite number of at least `low`, None if it is absent or null."""
        return None if self._values.get(name) is None else self.finite(name, low=low)

    def optional_integer(self, name: str) -> int | None:
        """Return a whole number of at least 0, None if it is absent or null."""
        return None if self._values.get(name) is None else self.integer(name)

    def text(self, name: str, default: Any = _REQUIRED) -> str:
        """Return a text; what is no Unicode character in it becomes a question mark."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._refused(name, value, "a text")
        return value.encode("utf-8", "replace").decode("utf-8")

    def line(self, name: str, default: Any = _REQUIRED, *, max_characters: int = 1000) -> str:
        """Return a name: printable, not empty, of one line."""
        value = self._get(name, default)
        if not isinstance(value, str) or not value or not value.isprintable() or len(value) > max_characters:
            raise self._refused(name, value, f"a printable line of at most {max_characters} characters")
        return value

    def file_name(self, name: str) -> str:
        """Return a text that is safe as a part of a file's name."""
        value = self._get(name, _REQUIRED)
        if not isinstance(value, str) or not FILE_NAME.fullmatch(value):
            raise self._refused(name, value, "a name of letters, digits and _ - . + = ,")
        return value

    def choice(self, name: str, choices: Container[str], default: Any = _REQUIRED) -> Any:
        """Return one of the known texts."""
        value = self._get(name, default)
        if not isinstance(value, str) or value not in choices:
            known = ", ".join(filter(None, choices)) if isinstance(choices, Iterable) else ""
            raise self._refused(name, value, f"one of {known}")
        return value

    def fields(self, name: str, default: Any = _REQUIRED) -> Fields:
        """Return an object."""
        return Fields(self._get(name, default), f"{self._place}: {name}")

    def items(self, name: str, default: Any = _REQUIRED) -> list[Fields]:
        """Return a list of objects."""
        value = self._get(name, default)
        if not isinstance(value, list):
            raise self._refused(name, value, "a list")
        return [Fields(entry, f"{self._place}: {name}.{index}") for index, entry in enumerate(value)]

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(name, default)
        if value is _REQUIRED:
            raise RecordError(f"{self._place}: {name} is missing")
        return value

    def _refused(self, name: str, value: Any, expected: str) -> RecordError:
        return RecordError(f"{self._place}: {name} is {shortened(value)}, not {expected}")


def as_number(value: Any) -> float | None:
    """Return a JSON number as a float; None if it is none, or too large for one."""
    if type(value) is float:
        return value
    if type(value) is not int:
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def shortened(value: Any) -> str:
    """Describe a value that was refused, in at most 60 characters."""
    if isinstance(value, dict | list):
        return _kind(value)
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return "a number of more than 77 digits"
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
