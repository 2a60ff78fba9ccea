"""Parameters of the networks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.spec.base import SpecModel
from harness.spec.parts import Choice, NamedModel


class UNet(SpecModel):
    """IDDPM's U-Net; `attention_resolutions` are in pixels (16 = where the feature map is 16x16), as in its flags."""

    name: Literal["unet"] = "unet"
    channels: int = Field(128, ge=1, le=4096)
    channel_mult: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field((1, 2, 2, 2), min_length=1, max_length=10)
    num_res_blocks: int = Field(3, ge=1, le=32)
    attention_resolutions: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (16, 8)
    num_heads: int = Field(4, ge=1, le=128)
    dropout: float = Field(0.0, ge=0, lt=1)
    use_scale_shift_norm: bool = True
    class_cond: bool = False
    label_dropout: float = Field(0.0, ge=0, lt=1)  # share of labels hidden in training, for classifier-free guidance
    rescale_timesteps: bool = True  # the network sees 1000 t / T
    low_res_size: int | None = Field(None, ge=2)  # an upsampler: pixels of its small input image

    def resolutions(self, image_size: int) -> list[int]:
        return [image_size // 2**level for level in range(len(self.channel_mult))]

    def require_image_size(self, image_size: int) -> None:
        """Raise ValueError if the network does not fit images of so many pixels."""
        if image_size % 2 ** (len(self.channel_mult) - 1):
            raise ValueError(
                f"model.channel_mult has {len(self.channel_mult)} levels, "
                f"but {image_size} pixels cannot be halved {len(self.channel_mult) - 1} times"
            )
        resolutions = self.resolutions(image_size)
        for resolution in self.attention_resolutions:
            if resolution not in resolutions:
                raise ValueError(
                    f"model.attention_resolutions: the network has no feature maps of {resolution}x{resolution}; "
                    f"choices: {', '.join(map(str, resolutions))}, or [] for none"
                )
        widths = {self.channels * mult for mult in self.channel_mult}
        if self.attention_resolutions and any(width % self.num_heads for width in widths):
            raise ValueError(f"model.num_heads {self.num_heads} does not divide the widths {sorted(widths)}")


class MLP(SpecModel):
    """A small fully connected network for points of the plane."""

    name: Literal["mlp"] = "mlp"
    width: int = Field(128, ge=1, le=65536)
    depth: int = Field(3, ge=1, le=100)
    class_cond: bool = False
    label_dropout: float = Field(0.0, ge=0, lt=1)
    rescale_timesteps: bool = True


class NetworkModel(NamedModel):
    """Base of network parameters; a plugin's class adds its own."""

    class_cond: bool = False
    label_dropout: float = Field(0.0, ge=0, lt=1)  # share of labels hidden in training, for classifier-free guidance
    rescale_timesteps: bool = True  # the network sees 1000 t / T


Model = Annotated[
    UNet | MLP | NetworkModel, Choice("model", NetworkModel, {"unet": UNet, "mlp": MLP}, default_name="unet")
]
