"""Files of weights from elsewhere: checked at a glance without torch, and read as tensors only.

What torch says of a file that it refuses is never passed on, because it recommends `weights_only=False`, which would
run the code in the file.
"""

from __future__ import annotations

import os
import stat
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.base import foreign_content
from harness.data.folder import shown
from harness.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

INCEPTION_VARIABLE = "HARNESS_INCEPTION_WEIGHTS"
_CHUNK = 1 << 24  # bytes read at a time
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # how torch's files start: of today, and of before 1.6


def inception_weights() -> Path | None:
    """Return the file that HARNESS_INCEPTION_WEIGHTS names, None if it names none; checked at a glance.

    Raises:
        DataError: a file is named that is missing, or that cannot be one of weights.
    """
    named = os.environ.get(INCEPTION_VARIABLE)
    if not named:
        return None
    try:
        path = Path(named).expanduser()
        check_weights_file(path)
    except RuntimeError as error:  # expanduser: no such user
        raise DataError(f"{INCEPTION_VARIABLE}: {named}: {error}") from error
    except DataError as error:
        raise DataError(f"{INCEPTION_VARIABLE}: {error}; correct or unset it") from error
    return path


def check_weights_file(path: Path) -> None:
    """Check what can be seen of a file of torch's weights without reading it whole.

    Raises:
        DataError: it is missing, unreadable, cut short, or something else: a web page, a git-lfs pointer, an archive.
    """
    name = shown(path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise DataError(f"{name}: {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}, not a file of weights")
        with path.open("rb") as file:
            head = file.read(512)
        if problem := foreign_content(head) or _foreign_format(path, head):
            raise DataError(f"{name}: not a file of weights: {problem}")
    except FileNotFoundError as error:
        raise DataError(f"{name}: there is no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise DataError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _foreign_format(path: Path, head: bytes) -> str | None:
    if head.startswith(_ZIP):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError):
            return "cut short or damaged: copy or download it again"
        if not any(name.endswith("/data.pkl") for name in names):
            return "an archive that torch did not write: unpack it first"
        return None
    if head.startswith(_PICKLE):
        return None
    if head[8:9] == b"{":
        return "it looks like safetensors; a .pth file of torch is needed"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or head[257:262] == b"ustar":
        return "packed: unpack it first"
    return f"it starts with {head[:4].hex()}, as no file of torch does"


def read_state_dict(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
    """Read a state dict from a file, on the CPU, without executing code from it.

    A `module.` before every name, which DistributedDataParallel adds, is removed.

    Args:
        shapes: of the entries that the network has; None checks no shapes.

    Raises:
        DataError: not a readable file of named tensors; entries that are missing, unknown or of another shape; values
            that are not finite.
    """
    import torch

    check_weights_file(path)
    require_intact(path)
    name = shown(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # torch asks users of odd files to file issues with it
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no exception of its own for a damaged file
        raise DataError(
            f"{name}: not a file of weights: damaged, or it holds more than tensors; what else a file holds could run "
            "code and is never read"
        ) from error
    state = without_module_prefix(_named_tensors(content, name))
    if shapes is not None:
        _require_shapes(state, shapes, name)
    require_finite(state, name)
    return state


def require_intact(path: Path) -> None:
    """Raise DataError if a part of torch's archive does not have the checksum that it was written with.

    torch itself compares none, so that a flipped bit would be a slightly different network. Files of before torch 1.6,
    and parts written without a checksum, which is stored as 0, cannot be compared.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.CRC and member.compress_type == zipfile.ZIP_STORED:
                    with archive.open(member) as file:
                        while file.read(_CHUNK):
                            pass
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        raise DataError(
            f"{shown(path)}: not a file of weights: damaged, its content does not have its checksum: copy or download "
            "it again"
        ) from error


def _named_tensors(content: Any, name: str) -> dict[str, Tensor]:
    import torch

    if not isinstance(content, dict):
        raise DataError(f"{name}: holds a {type(content).__name__}, not tensors by name")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            keys = ", ".join(shown(key) for key in list(content)[:5])
            raise DataError(f"{name}: holds not only tensors by name; its entries are {keys}, ...")
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise DataError(f"{name}: {shown(key)} is not a plain tensor")
    return dict(content)


def without_module_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the `module.` that DistributedDataParallel puts before every name."""
    while state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _require_shapes(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    # Files older than torch 0.4.1 lack these counters, and nothing reads them.
    missing = [key for key in shapes if key not in state and not key.endswith(".num_batches_tracked")]
    problems = [f"{key} is missing" for key in missing]
    problems += [f"{shown(key)} is unknown" for key in state if key not in shapes]
    problems += [
        f"{key} is {list(state[key].shape)} instead of {list(shape)}"
        for key, shape in shapes.items()
        if key in state and tuple(state[key].shape) != tuple(shape)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise DataError(f"{name}: the weights of another network: {'; '.join(problems[:3])}{more}")


def require_finite(state: Mapping[str, Tensor], name: str) -> None:
    """Raise DataError if a tensor holds a value that is not a finite number."""
    for key, value in state.items():
        if value.is_floating_point() or value.is_complex():
            bad = int((~value.isfinite()).sum())
            if bad:
                raise DataError(
                    f"{name}: {bad} of the {value.numel()} values of {shown(key)} are not finite numbers: the training "
                    "of these weights diverged, or the file is damaged"
                )
