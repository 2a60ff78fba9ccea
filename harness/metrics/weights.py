"""Files of weights from elsewhere: checked at a glance without torch, and read as tensors only.

What torch says of a file that it refuses is never passed on, because it recommends `weights_only=False`, which would
run the code in the file.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.base import foreign_content
from harness.data.folder import shown
from harness.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 1 << 24  # bytes read at a time
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # how torch's files start: of today, and of before 1.6


@dataclass(frozen=True)
class PublishedWeights:
    """A file of weights that is published for a feature extractor.

    Attributes:
        variable: the environment variable that names the file on this machine.
        network: for messages.
        url: from where it can be had.
        sha256: how its checksum begins, as published; empty where none is.
    """

    variable: str
    network: str
    url: str
    sha256: str = ""

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


WEIGHTS = {
    "inception": PublishedWeights(
        "HARNESS_INCEPTION_WEIGHTS",
        "torch-fidelity's Inception-V3",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "6726825d",  # in the file's name, as torch.hub does it
    ),
    "clip": PublishedWeights(
        "HARNESS_CLIP_WEIGHTS",
        "OpenAI's CLIP ViT-B/32",
        "https://openaipublic.azureedge.net/clip/models/"
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    ),
    "vgg": PublishedWeights(
        "HARNESS_VGG_WEIGHTS",
        "torchvision's VGG-16",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af",
    ),
    "dinov2": PublishedWeights(
        "HARNESS_DINOV2_WEIGHTS",
        "DINOv2 ViT-L/14 without registers",
        "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    ),
}
"""Extractors whose weights come from elsewhere, by name."""


def weights_file(extractor: str) -> Path | None:
    """Return the file that an extractor's environment variable names, None if it names none; checked at a glance.

    Raises:
        DataError: a file is named that is missing, or that cannot be one of weights.
    """
    variable = WEIGHTS[extractor].variable
    named = os.environ.get(variable)
    if not named:
        return None
    try:
        path = Path(named).expanduser()
        check_weights_file(path)
    except RuntimeError as error:  # expanduser: no such user
        raise DataError(f"{variable}: {named}: {error}") from error
    except DataError as error:
        raise DataError(f"{variable}: {error}; correct or unset it") from error
    return path


def require_weights_file(extractor: str) -> Path:
    """Return the file that an extractor's environment variable names.

    Raises:
        DataError: it names none, or one that cannot be one of weights.
    """
    path = weights_file(extractor)
    if path is None:
        published = WEIGHTS[extractor]
        raise DataError(
            f"{extractor}: no weights given.\n"
            f"  from: {published.url}\n"
            f"  put it anywhere and set {published.variable} to the file"
        )
    return path


def file_digest(path: Path) -> str:
    """Return sha256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_official(extractor: str, path: Path) -> bool | None:
    """Return whether a file is the one published for an extractor; None where no checksum is published."""
    published = WEIGHTS[extractor]
    return file_digest(path).startswith(published.sha256) if published.sha256 else None


def read_weights(
    extractor: str, path: Path, shapes: Mapping[str, tuple[int, ...]], part: str = ""
) -> dict[str, Tensor]:
    """Read an extractor's weights, and check that they are of this network and can be used.

    Args:
        part: how the names begin of the entries that are read; the others may be anything.

    Raises:
        DataError: they are not.
    """
    published = WEIGHTS[extractor]
    try:
        state = read_state_dict(path, shapes, part)
        if path.name == published.file_name and is_official(extractor, path) is False:
            raise DataError(
                f"{path}: damaged: its sha256 does not start with {published.sha256[:8]} as that of the published file"
            )
        return state
    except DataError as error:
        raise DataError(f"{error}\n  needed: the weights of {published.network}\n  from: {published.url}") from error


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


def read_state_dict(
    path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None, part: str = ""
) -> dict[str, Tensor]:
    """Read a state dict from a file, on the CPU, without executing code from it.

    A `module.` before every name, which DistributedDataParallel adds, is removed.

    Args:
        shapes: of the entries that the network has; None checks no shapes.
        part: how the names begin of the entries that are returned.

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
    state = {key: value for key, value in state.items() if key.startswith(part)}
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
