"""What GPUs can compute at most, for estimates of what has not been measured. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A GPU's peak in TFLOPS, dense (without sparsity), as its maker states it.

    Attributes:
        family: the name that all variants share, as clusters call the type of their GPUs.
        fp32: without tensor cores.
        tf32, bf16: with them; None where the card has none for it.
        source: of the figures.
    """

    name: str
    family: str
    fp32: float
    tf32: float | None
    bf16: float | None
    source: str

    def peak_tflops(self, precision: str) -> float:
        """Return the peak at a precision of the harness's; that of fp32 where the card has no tensor cores for it."""
        return getattr(self, precision) or self.fp32

    def is_family_of(self, device: str) -> bool:
        """Return whether a device is a variant of this card, or a slice of one, by the name that torch gives it."""
        return self.family in _words(device)


_HOPPER = "NVIDIA H100 Tensor Core GPU architecture, table 2; its datasheet"

CARDS: dict[str, Card] = {
    "v100": Card("V100 SXM2", "v100", 15.7, None, None, "NVIDIA Tesla V100 datasheet"),
    "v100 pcie": Card("V100 PCIe", "v100", 14.0, None, None, "NVIDIA Tesla V100 datasheet"),
    "t4": Card("T4", "t4", 8.1, None, None, "NVIDIA T4 datasheet"),
    "a100": Card("A100", "a100", 19.5, 156.0, 312.0, "NVIDIA A100 datasheet"),
    "a30": Card("A30", "a30", 10.3, 82.0, 165.0, "NVIDIA A30 datasheet"),
    "a40": Card("A40", "a40", 37.4, 74.8, 149.7, "NVIDIA A40 datasheet"),
    "a10": Card("A10", "a10", 31.2, 62.5, 125.0, "NVIDIA A10 datasheet"),
    "a6000": Card("RTX A6000", "a6000", 38.7, 77.4, 154.8, "NVIDIA GA102 architecture whitepaper"),
    "3090": Card("RTX 3090", "3090", 35.6, 35.6, 71.0, "NVIDIA GA102 architecture whitepaper"),
    "4090": Card("RTX 4090", "4090", 82.6, 82.6, 165.2, "NVIDIA Ada architecture whitepaper, appendix A"),
    "l4": Card("L4", "l4", 30.3, 60.0, 121.0, "NVIDIA L4 datasheet, half of the figures with sparsity"),
    "l40": Card("L40", "l40", 90.5, 90.5, 181.0, "NVIDIA L40 datasheet"),
    "l40s": Card("L40S", "l40s", 91.6, 183.0, 362.0, "NVIDIA L40S datasheet"),
    "h100": Card("H100 SXM", "h100", 66.9, 494.7, 989.4, _HOPPER),
    "h100 pcie": Card("H100 PCIe", "h100", 51.2, 378.0, 756.0, _HOPPER),
    "h100 nvl": Card(
        "H100 NVL", "h100", 60.0, 417.5, 835.5, "NVIDIA H100 datasheet, half of the figures with sparsity"
    ),
    "h200": Card("H200", "h200", 67.0, 494.5, 989.5, "NVIDIA H200 datasheet, half of the figures with sparsity"),
    "gh200": Card("GH200", "gh200", 67.0, 494.0, 990.0, "NVIDIA GH200 datasheet"),
    "b200": Card("B200", "b200", 75.0, 1125.0, 2250.0, "NVIDIA HGX B200 datasheet, an eighth of the board"),
}
"""By the words of a card's name that tell it apart."""

UTILISATION = {"fp32": 0.5, "tf32": 0.3, "bf16": 0.2}
"""The share of the peak that the training of a U-Net is assumed to reach, by precision.

Published speeds of the CIFAR-10 U-Net of 35 M parameters (18.7 G multiply-adds an example and step): 1.84 steps of 128
a second on a V100 (TorchCFM) are 56 % of its fp32 peak; 5.85 on an RTX 4090 are 34 % of its TF32 peak. With half the
bits the arithmetic takes less of a step, and a smaller share of the peak is reached.
"""


def find_card(text: str | None) -> Card | None:
    """Return the card that a text names, such as `NVIDIA H100 PCIe` or the type of a cluster's GPUs.

    None for no card of the table, for several, for one of a laptop, and for a slice of one (MIG).
    """
    words = _words(text or "")
    if "laptop" in words or re.search(r"\d+g\.\d+gb", (text or "").lower()):
        return None
    matches = [key for key in CARDS if words.issuperset(key.split())]
    families = {CARDS[key].family for key in matches}
    return CARDS[max(matches, key=len)] if len(families) == 1 else None


def _words(text: str) -> set[str]:
    return {word.removeprefix("rtx") for word in re.split(r"[^a-z0-9]+", text.lower())}
