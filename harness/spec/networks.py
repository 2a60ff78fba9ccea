"""Parameters of the denoising networks; harness/spec/discriminators.py has those of what judges them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.spec.base import YOUNGER, SpecModel
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
    resample_first: Annotated[bool, YOUNGER] = Field(
        False,
        description="Each level, the first too, halves the image before its residual blocks and doubles it after them.",
    )

    def check(self, run: Any) -> None:
        """Refuse a latent where nothing is scaled and shifted by it."""
        if getattr(run.method, "latent_dim", None) is not None and not self.use_scale_shift_norm:
            raise ValueError(
                f"model.use_scale_shift_norm: the latent of method {run.method.name} scales and shifts what is "
                "normalised, so it cannot be false"
            )

    def resolutions(self, image_size: int) -> list[int]:
        return [image_size // 2 ** (level + self.resample_first) for level in range(len(self.channel_mult))]

    def require_image_size(self, image_size: int) -> None:
        """Raise ValueError if the network does not fit images of so many pixels."""
        halvings = len(self.channel_mult) - 1 + self.resample_first
        because = " and model.resample_first" if self.resample_first else ""
        _require_halvings(image_size, halvings, f"model.channel_mult has {len(self.channel_mult)} levels{because}")
        _require_feature_maps(self.attention_resolutions, self.resolutions(image_size))
        widths = {self.channels * mult for mult in self.channel_mult}
        if self.attention_resolutions and any(width % self.num_heads for width in widths):
            raise ValueError(f"model.num_heads {self.num_heads} does not divide the widths {sorted(widths)}")


class MLP(SpecModel):
    """A small fully connected network for points of the plane."""

    name: Literal["mlp"] = "mlp"
    width: int = Field(128, ge=1, le=65536)
    depth: int = Field(3, ge=1, le=100)
    input_scale: Annotated[float, YOUNGER] = Field(
        1.0, gt=0, description="Multiplies the points: more than 1 where their details are small beside their range."
    )
    class_cond: bool = False
    label_dropout: float = Field(0.0, ge=0, lt=1)
    rescale_timesteps: bool = True


class NetworkModel(NamedModel):
    """Base of network parameters; a plugin's class adds its own."""

    class_cond: bool = False
    label_dropout: float = Field(0.0, ge=0, lt=1)  # share of labels hidden in training, for classifier-free guidance
    rescale_timesteps: bool = True  # the network sees 1000 t / T


class Ncsnpp(NetworkModel):
    """DDGAN's generator; `attention_resolutions` are in pixels (16 = where the feature map is 16x16), as in its flags.

    Its latent and the width of its style are parameters of the method.
    """

    name: Literal["ncsnpp"] = "ncsnpp"
    channels: int = Field(
        128, ge=4, le=4096, description="Base width. A group of its normalisation has four channels or more."
    )
    channel_mult: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field((1, 2, 2, 2), min_length=1, max_length=10)
    num_res_blocks: int = Field(2, ge=1, le=32)
    attention_resolutions: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (16,)
    rescale_timesteps: bool = False  # as published: it sees t in 0 .. T-1

    def resolutions(self, image_size: int) -> list[int]:
        return [image_size // 2**level for level in range(len(self.channel_mult))]

    def require_image_size(self, image_size: int) -> None:
        """Raise ValueError if the network does not fit images of so many pixels."""
        levels = len(self.channel_mult)
        _require_halvings(image_size, levels - 1, f"model.channel_mult has {levels} levels")
        _require_feature_maps(self.attention_resolutions, self.resolutions(image_size))

    def check(self, run: Any) -> None:
        """Refuse methods without a latent, points, and images and widths that do not fit."""
        if getattr(run.method, "latent_dim", None) is None:
            raise ValueError(
                f"model ncsnpp generates from a latent, but method {run.method.name} has none: "
                "choose method ddgan or siddm, or model unet"
            )
        if run.data.facts.are_points:
            raise ValueError(f"model ncsnpp is for images, but data {run.data.name} are points: choose model mlp")
        self.require_image_size(run.data.pixels)
        for width in sorted(self._normalised_widths()):
            if width % min(width // 4, 32):
                raise ValueError(
                    f"model.channels {self.channels}: with channel_mult {list(self.channel_mult)} a layer of {width} "
                    f"channels is normalised in {min(width // 4, 32)} groups, which do not divide it; "
                    "choose a multiple of 32, or a smaller multiple of 4"
                )

    def _normalised_widths(self) -> set[int]:
        """List the widths of what residual blocks normalise: of the levels, and on the way up with the skips."""
        widths = [self.channels * mult for mult in self.channel_mult]
        channels, skips = self.channels, [self.channels]
        for level, width in enumerate(widths):
            skips += [width] * (self.num_res_blocks + (level < len(widths) - 1))
            channels = width
        joined = set()
        for width in reversed(widths):
            for _ in range(self.num_res_blocks + 1):
                joined.add(channels + skips.pop())
                channels = width
        return joined | {self.channels, *widths}


def _require_halvings(image_size: int, halvings: int, because: str) -> None:
    if image_size % 2**halvings:
        raise ValueError(f"{because}, but {image_size} pixels cannot be halved {halvings} times")


def _require_feature_maps(attention_resolutions: tuple[int, ...], resolutions: list[int]) -> None:
    for resolution in attention_resolutions:
        if resolution not in resolutions:
            raise ValueError(
                f"model.attention_resolutions: the network has no feature maps of {resolution}x{resolution}; "
                f"choices: {', '.join(map(str, resolutions))}, or [] for none"
            )


Model = Annotated[
    UNet | MLP | NetworkModel,
    Choice("model", NetworkModel, {"unet": UNet, "mlp": MLP, "ncsnpp": Ncsnpp}, default_name="unet"),
]
