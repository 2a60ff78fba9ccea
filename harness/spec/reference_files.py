"""Files of reference statistics that a protocol names: identified by their content, without reading the arrays."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

SUFFIX = ".npz"


def examine(path: Path) -> tuple[str, bool]:
    """Return the sha256 (hex) of a file of reference statistics, and whether it has the features themselves.

    Raises:
        ValueError: it cannot be read, or is no npz with a mean and a covariance.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}; `harness reference` writes such a file") from error
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{path}: not an npz: damaged, or another file") from error
    if not {"mu.npy", "sigma.npy"} <= names:
        raise ValueError(f"{path}: has no mu and sigma; `harness reference` writes such a file")
    return digest, "features.npy" in names
