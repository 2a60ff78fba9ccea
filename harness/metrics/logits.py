"""Logits of classes from features: both extractors that classify end in one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.errors import DataError
from harness.metrics.features import Extractor


def class_logits(extractor: Extractor, features: Tensor) -> Tensor:
    """Return the logits of an extractor's classes for its features.

    Of Inception those without the bias, as in the original graph and in torch-fidelity's Inception Score.

    Args:
        features: [N, extractor.feature_dim].

    Returns:
        [N, num_classes] float32, on the CPU.

    Raises:
        DataError: the extractor is no classifier.
    """
    if extractor.name == "inception":
        return features.cpu() @ extractor.module.state_dict()["fc.weight"].cpu().T
    if extractor.accuracy is None or extractor.weights_path is None:
        raise DataError(f"extractor {extractor.name} has no logits: the Inception Score needs inception or classifier")
    weights = torch.load(extractor.weights_path, map_location="cpu", weights_only=True)["state_dict"]
    return features.cpu() @ weights["head.weight"].T + weights["head.bias"]
