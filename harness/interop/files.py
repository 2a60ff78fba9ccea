"""What the published formats share: names, state dicts held against a network's layout, and files written whole."""

from __future__ import annotations

import difflib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from harness.errors import CheckpointError, DataError
from harness.metrics.weights import read_state_dict

Layout = Mapping[str, list[int]]
"""The shape of every entry of a state dict."""


class Entry(Protocol):
    """A published checkpoint."""

    @property
    def file(self) -> str:
        """Return the stem of the published file."""

    @property
    def arm(self) -> str:
        """Return its name in studies."""


AnyEntry = TypeVar("AnyEntry", bound=Entry)


def look_up(name: str, entries: Mapping[str, AnyEntry]) -> tuple[str, AnyEntry]:
    """Find a published checkpoint by its name or by its file's, with or without a suffix.

    Raises:
        CheckpointError: no such name; the message has the choices.
    """
    stem = name.removesuffix(".pt").removesuffix(".pth")
    for key, entry in entries.items():
        if stem in (key, entry.file):
            return key, entry
    close = difflib.get_close_matches(stem, entries, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise CheckpointError(f"{name!r} is not a published checkpoint; {hint}choices: {', '.join(entries)}")


def read_state(path: Path, name: str, names: Iterable[str], layout: Callable[[str], Layout]) -> dict[str, Tensor]:
    """Read a state dict, `module.` before its names or not, and check that it fits the named configuration.

    Args:
        path: nothing but tensors is unpickled from it.
        name: key of a published checkpoint.
        names: all of this format.
        layout: of each name.

    Returns: the state dict, on the CPU.

    Raises:
        CheckpointError: no readable state dict, values that are not finite, or a state dict of another network; then
            the message has the first entries that differ, and the published configuration that the file is nearest to.
    """
    try:
        state = read_state_dict(path)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    shapes = {key: list(value.shape) for key, value in state.items()}
    if differences := _differences(shapes, layout(name)):
        raise CheckpointError(
            f"{path}: is not {name}, {len(differences)} entries differ: {'; '.join(differences[:3])}"
            f"{'; ...' if len(differences) > 3 else ''}. {_nearest(shapes, {key: layout(key) for key in names})}"
        )
    return state


def write_state(state_dict: Mapping[str, Tensor], target: Path) -> None:
    """Write a plain state dict atomically, bit for bit.

    Raises:
        CheckpointError: the file cannot be written.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    plain = OrderedDict((key, _alone(value)) for key, value in state_dict.items())
    try:
        with partial.open("wb") as file:
            torch.save(plain, file)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{target}: cannot be written: {error.strerror}") from error


def _alone(tensor: Tensor) -> Tensor:
    """Copy a tensor out of the storage that it may share, which torch.save would store whole."""
    return tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)


def _differences(shapes: Layout, expected: Layout) -> list[str]:
    """Describe how two state dicts' shapes differ."""
    missing = [f"{key} {shape} is missing" for key, shape in expected.items() if key not in shapes]
    unknown = [f"{key} {shape} is not in this network" for key, shape in shapes.items() if key not in expected]
    reshaped = [
        f"{key} is {shapes[key]} instead of {shape}"
        for key, shape in expected.items()
        if key in shapes and shapes[key] != shape
    ]
    return missing + unknown + reshaped


def _nearest(shapes: Layout, layouts: Mapping[str, Layout]) -> str:
    """Name the published configurations that fit the shapes, or have the fewest differences."""
    distance = {name: len(_differences(shapes, layout)) for name, layout in layouts.items()}
    least = min(distance.values())
    names = " or ".join(name for name in layouts if distance[name] == least)
    return f"It fits {names}" if least == 0 else f"No published one fits; nearest: {names} ({least} entries differ)"
