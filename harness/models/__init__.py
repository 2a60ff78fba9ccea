"""The denoising networks: `network(x_t, timesteps, y=None) -> output`, each in its own file, loaded on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.models.mlp import MLP
    from harness.models.unet import SuperResUNet, UNet

_HOME = {"UNet": "unet", "SuperResUNet": "unet", "MLP": "mlp"}  # class -> file

_MODELS = {"unet": "UNet", "mlp": "MLP"}  # name in a spec -> class; a new network adds a line to both

__all__ = ["MLP", "MODELS", "SuperResUNet", "UNet"]


def __getattr__(name: str) -> Any:
    if name == "MODELS":
        return {model: __getattr__(class_name) for model, class_name in _MODELS.items()}
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
