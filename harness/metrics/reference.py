"""Reference statistics in a file: mean and covariance of real images' features, with the features where they are kept.

Our files say of what they are. Others' are taken too: those of openai/guided-diffusion (ADM: `mu`, `sigma`, `mu_s`,
`sigma_s`, and sometimes the images) and of pytorch-fid (`mu`, `sigma`).
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data.base import Dataset
from harness.data.cache import publish
from harness.data.folder import shown
from harness.errors import DataError
from harness.metrics.features import Extractor
from harness.metrics.fidelity import reference_features
from harness.metrics.torchvision_compat import torch_fidelity

FACTS = ("num_images", "extractor", "weights_sha256", "data", "data_digest", "split")
_ADM_ONLY = "mu_s"


@dataclass(frozen=True)
class ReferenceStatistics:
    """Statistics of the features of real images.

    Attributes:
        mu, sigma: [D] and [D, D] float64, the mean and the unbiased covariance.
        features: [N, D] float32, None where the file has only the statistics.
        facts: of what they are, as far as the file says: the keys of FACTS.
        sha256: of the file; empty where there is none.
    """

    mu: np.ndarray
    sigma: np.ndarray
    features: np.ndarray | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @property
    def points(self) -> Tensor:
        """The features [N, D]; where there are none, 2 D points that have this mean and covariance.

        The points stand for the reference in what looks at mean and covariance alone, such as FID: for each principal
        axis of the covariance one on either side of the mean.
        """
        if self.features is not None:
            return torch.from_numpy(self.features)
        variances, axes = np.linalg.eigh(self.sigma)
        count = 2 * len(self.mu)
        steps = axes.T * np.sqrt(variances.clip(0) * (count - 1) / 2)[:, None]  # of an unbiased covariance
        return torch.from_numpy(np.concatenate([self.mu + steps, self.mu - steps])).float()

    def require_extractor(self, extractor: Extractor, path: Path) -> None:
        """Raise DataError unless the statistics are of this extractor's features, as far as the file says."""
        name, weights = self.facts.get("extractor"), self.facts.get("weights_sha256")
        if len(self.mu) != extractor.feature_dim:
            raise DataError(
                f"{shown(path)}: has {len(self.mu)} features, and {extractor.name} has {extractor.feature_dim}: the "
                "reference is of another network"
            )
        if name not in (None, extractor.name):
            raise DataError(f"{shown(path)}: is of the features of {name}, not of {extractor.name}")
        if weights not in (None, extractor.digest):
            raise DataError(
                f"{shown(path)}: is of other weights of {name} (sha256 {str(weights)[:12]}, not "
                f"{extractor.digest[:12]}): write it again with `harness reference`"
            )


def reference_of(extractor: Extractor, dataset: Dataset, split: str, num_images: int | None) -> ReferenceStatistics:
    """Return the statistics and the features of a data set's images; all of the split, or num_images of it."""
    features = reference_features(extractor, dataset, n=num_images, split=split)
    statistics = torch_fidelity().metric_fid.fid_features_to_statistics(features)
    mu, sigma = (statistics[name].astype(np.float64) for name in ("mu", "sigma"))
    facts = {
        "num_images": len(features),
        "extractor": extractor.name,
        "weights_sha256": extractor.digest,
        "data": dataset.name,
        "data_digest": dataset.digest,
        "split": split,
    }
    return ReferenceStatistics(mu, sigma, features.numpy(), facts)


def write_reference(path: Path, reference: ReferenceStatistics) -> None:
    """Write reference statistics as an npz of plain arrays, whole or not at all.

    Raises:
        DataError: the file exists, or cannot be written.
    """
    if path.exists():
        raise DataError(f"{shown(path)}: exists already; remove it, or write to another file")
    arrays = {"mu": reference.mu, "sigma": reference.sigma, **reference.facts}
    if reference.features is not None:
        arrays["features"] = reference.features
    with publish(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{name: np.asarray(value) for name, value in arrays.items()})  # type: ignore[arg-type]


def read_reference(path: Path, sha256: str | None = None) -> ReferenceStatistics:
    """Read reference statistics, ours or those of others; nothing in the file is executed.

    Args:
        sha256: what the file has to have, in hex; None takes any.

    Raises:
        DataError: it cannot be read, is another file than expected, or holds no mean and covariance.
    """
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror}") from error
    if sha256 not in (None, actual):
        raise DataError(
            f"{shown(path)}: is not the file that the evaluation was planned with (sha256 {actual[:12]}, not "
            f"{str(sha256)[:12]}): restore it, or submit the study again"
        )
    arrays = _read_arrays(path)
    missing = [name for name in ("mu", "sigma") if name not in arrays]
    if missing:
        raise DataError(f"{shown(path)}: has no {' and no '.join(missing)}; it has {', '.join(arrays) or 'nothing'}")
    mu, sigma = (arrays[name].astype(np.float64) for name in ("mu", "sigma"))
    features = arrays.get("features")
    if problem := _problem(mu, sigma, features):
        raise DataError(f"{shown(path)}: not reference statistics: {problem}")
    facts = {name: arrays[name].item() for name in FACTS if name in arrays and arrays[name].ndim == 0}
    if _ADM_ONLY in arrays:
        facts = {"extractor": "inception"} | facts
    return ReferenceStatistics(mu, sigma, None if features is None else features.astype(np.float32), facts, actual)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{shown(path)}: not an npz")
            wanted = ("mu", "sigma", "features", _ADM_ONLY, *FACTS)
            arrays = {name: archive[name] for name in archive.files if name in wanted}
            return arrays or {name: np.empty(0) for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise DataError(f"{shown(path)}: cannot be read as an npz of plain arrays: damaged, or another file") from error


def _problem(mu: np.ndarray, sigma: np.ndarray, features: np.ndarray | None) -> str:
    """Say what is wrong with statistics; empty if nothing is."""
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        return f"mu is {list(mu.shape)} and sigma {list(sigma.shape)} instead of [D] and [D, D]"
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        return "mu or sigma has values that are not finite"
    if not np.allclose(sigma, sigma.T, atol=1e-6 * max(1.0, float(np.abs(sigma).max(initial=0)))):
        return "sigma is not symmetric"
    if features is not None and (features.ndim != 2 or features.shape[1] != len(mu) or not np.isfinite(features).all()):
        return f"features are {list(features.shape)} instead of [N, {len(mu)}], or not finite"
    return ""
