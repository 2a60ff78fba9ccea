"""FID by torch-fidelity's own functions, and precision and recall equal to its, from features that are extracted once.

torch-fidelity's file cache is never used: its keys contain neither the weights nor the data. Ours hash both.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.data.base import Dataset, spread
from harness.data.cache import cache_folder, publish
from harness.metrics.features import Extractor
from harness.metrics.finite import are_finite
from harness.metrics.neighbours import neighbourhoods
from harness.metrics.torchvision_compat import torch_fidelity

_CHUNK = 4096  # reference images held in memory at a time


def fidelity(reference: Tensor, samples: Tensor, k: int, *, device: str | torch.device = "cpu") -> dict[str, float]:
    """Compare the features of samples with those of reference images: {"fid", "precision", "recall"}."""
    return {"fid": frechet_distance(reference, samples), **precision_recall(reference, samples, k, device=device)}


def frechet_distance(reference: Tensor, samples: Tensor) -> float:
    """Return the Frechet distance of the Gaussians fitted to two sets of features.

        |mu_1 - mu_2|^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))                        (Heusel et al. 2017, eq. 6)

    Args:
        reference, samples: [N, D] and [M, D] float32 features of one extractor.

    Returns:
        NaN if a feature is not finite: diverged samples have no distance.
    """
    if not are_finite(reference, samples):
        return math.nan
    fid = torch_fidelity().metric_fid
    statistics = [fid.fid_features_to_statistics(features.cpu()) for features in (samples, reference)]
    return fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def precision_recall(
    reference: Tensor, samples: Tensor, k: int, *, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """Return precision, the share of samples within the k-NN radius of some reference image, and recall, the reverse.

    (Kynkaanniemi et al. 2019, eq. 2)

    Args:
        reference, samples: [N, D] and [M, D] float32 features of one extractor.
        k: neighbours that make a radius, the point itself not counted. IDDPM's table 4 has 5, torch-fidelity's default
            is 3.
        device: where the distances are computed.

    Returns:
        {"precision", "recall"}, NaN where a feature is not finite.

    Raises:
        DataError: k or fewer images on one side.
    """
    balls = neighbourhoods(reference.to(device), samples.to(device), k)
    return {"precision": balls.precision, "recall": balls.recall}


def reference_features(extractor: Extractor, dataset: Dataset, n: int | None = None, split: str = "train") -> Tensor:
    """Extract the features of n real images, cached by the digests of weights and data.

    Args:
        n: number of images, drawn without replacement by a fixed seed; None or more than there are means all.
        split: "train" (as the papers' FID) or "test".

    Returns:
        [n, D] float32, on the CPU.
    """
    part = {"train": dataset.train, "test": dataset.test}[split]
    rows = spread(len(part), n)
    key = hashlib.sha256(
        f"{extractor.name} {extractor.digest} {dataset.digest} {split} {len(rows)}".encode()
    ).hexdigest()
    cached = cache_folder("features") / f"{extractor.name}-{key[:16]}.npy"
    features_of_all = _read_features(cached, (len(rows), extractor.feature_dim))
    if features_of_all is None:
        cached.unlink(missing_ok=True)
        chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
        features = [extractor.features(dataset.to_images(part.images[chunk])) for chunk in chunks]
        features_of_all = torch.cat(features).numpy()
        with publish(cached) as temporary, temporary.open("wb") as file:
            np.save(file, features_of_all)
    return torch.from_numpy(features_of_all)


def _read_features(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Read features from the cache; None if they are missing or damaged."""
    try:
        features = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return features if features.shape == shape and features.dtype == np.float32 else None
