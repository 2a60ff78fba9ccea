"""The only place that imports torch_fidelity, and with it torchvision, which does not always import.

torchvision from the package index is a CUDA build. Beside a CPU build of torch its compiled operators cannot load, and
`import torchvision` fails with "operator torchvision::nms does not exist", because it describes operators (nms, and
since 0.28 qnms) that are not declared. Neither we nor torch-fidelity call them, so it is enough to declare them.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_KEEP: list[object] = []  # a Library removes its declarations when it is garbage-collected


def ensure_torchvision() -> None:
    """Import torchvision; where its operators are missing, declare nms and qnms and import it again.

    Raises:
        RuntimeError: whatever else keeps torchvision from importing.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or "does not exist" not in str(error):
            raise
        import torch

        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEEP.append(library)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # the half that was imported
        import torchvision  # noqa: F401


def torch_fidelity() -> ModuleType:
    """Import torch_fidelity, with all of its submodules as attributes."""
    ensure_torchvision()
    import torch_fidelity

    return torch_fidelity


def vgg16() -> nn.Module:
    """Return torchvision's VGG-16 with random weights."""
    ensure_torchvision()
    import torchvision

    return torchvision.models.vgg16()
