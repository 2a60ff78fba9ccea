"""The networks, each kind in its own file, loaded on first use.

Denoisers and generators: `network(x, timesteps, y=None, z=None) -> output`; a generator has a latent z and gives x_0.
Discriminators: `discriminator(x_t, t, x_next=None, y=None) -> Verdict`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.models.discriminators import (
        LargeDiscriminator,
        MLPDiscriminator,
        SmallDiscriminator,
        UNetDiscriminator,
        Verdict,
    )
    from harness.models.layers import Latent
    from harness.models.mlp import MLP
    from harness.models.ncsnpp import NCSNpp
    from harness.models.unet import SuperResUNet, UNet

_HOME = {  # class -> file
    "UNet": "unet",
    "SuperResUNet": "unet",
    "MLP": "mlp",
    "NCSNpp": "ncsnpp",
    "Latent": "layers",
    "SmallDiscriminator": "discriminators",
    "LargeDiscriminator": "discriminators",
    "UNetDiscriminator": "discriminators",
    "MLPDiscriminator": "discriminators",
    "Verdict": "discriminators",
}

_TABLES = {  # table -> name in a spec -> class; a new network adds a line here and above
    "MODELS": {"unet": "UNet", "mlp": "MLP", "ncsnpp": "NCSNpp"},
    "DISCRIMINATORS": {
        "small": "SmallDiscriminator",
        "large": "LargeDiscriminator",
        "unet": "UNetDiscriminator",
        "mlp": "MLPDiscriminator",
    },
}

__all__ = [
    "DISCRIMINATORS",
    "MLP",
    "MODELS",
    "LargeDiscriminator",
    "Latent",
    "MLPDiscriminator",
    "NCSNpp",
    "SmallDiscriminator",
    "SuperResUNet",
    "UNet",
    "UNetDiscriminator",
    "Verdict",
]


def __getattr__(name: str) -> Any:
    if name in _TABLES:
        return {network: __getattr__(class_name) for network, class_name in _TABLES[name].items()}
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
