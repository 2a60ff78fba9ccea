"""Parameters of the discriminators that adversarial methods train."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from harness.data.facts import DatasetFacts
from harness.spec.parts import Choice, NamedModel


class DiscriminatorModel(NamedModel):
    """Base of discriminators; a plugin's class adds its parameters and says what its network can do."""

    heads: ClassVar[bool] = False
    """Whether it can also predict the clean image, and x_{t+1} from x_t."""
    batch_multiple: ClassVar[int] = 1
    """The number of examples that must divide a batch on each process, since outputs depend on groups of examples."""

    rescale_timesteps: bool = True  # the network sees 1000 t / T

    @classmethod
    def check_declaration(cls) -> None:
        """Require that what it can do is said by values."""
        if not isinstance(cls.heads, bool):
            raise ValueError(f"heads: {cls.heads!r} is neither True nor False")
        if type(cls.batch_multiple) is not int or cls.batch_multiple < 1:
            raise ValueError(f"batch_multiple: {cls.batch_multiple!r} is no number of examples")

    def require_data(self, facts: DatasetFacts) -> None:
        """Raise ValueError if the network does not fit such data; a method puts the field's path before the message."""

    def _require_images(self, facts: DatasetFacts) -> int:
        """Return the number of pixels a side, or raise ValueError if the data are points."""
        if facts.are_points:
            raise ValueError(f"{self.name} is for images; choose mlp for points")
        assert facts.image_size is not None, "a run's data have their size"
        return facts.image_size


class PublishedDiscriminatorModel(DiscriminatorModel):
    """What both discriminators of DDGAN have: their sizes, and a deviation over groups of four examples."""

    channels: int = Field(64, ge=1, le=4096)
    time_dim: int = Field(256, ge=4, le=65536, description="Width of the time embedding.")
    rescale_timesteps: bool = False  # as published: it sees t in 0 .. T-1

    batch_multiple: ClassVar[int] = 4
    smallest_image: ClassVar[int]

    def require_data(self, facts: DatasetFacts) -> None:
        """Raise ValueError for points, and for images that are too small to be halved so often."""
        pixels = self._require_images(facts)
        if pixels < self.smallest_image:
            raise ValueError(f"{self.name} needs images of {self.smallest_image} pixels or more, not of {pixels}")


class SmallDiscriminator(PublishedDiscriminatorModel):
    """DDGAN's discriminator for CIFAR-10: three halvings."""

    name: Literal["small"] = "small"
    smallest_image: ClassVar[int] = 8


class LargeDiscriminator(PublishedDiscriminatorModel):
    """DDGAN's discriminator for CelebA-HQ and LSUN: six halvings."""

    name: Literal["large"] = "large"
    smallest_image: ClassVar[int] = 64


class UNetDiscriminator(DiscriminatorModel):
    """A U-Net: the logit from its middle, the heads from its way up (SIDDM)."""

    name: Literal["unet"] = "unet"
    channels: int = Field(64, ge=1, le=4096)
    channel_mult: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field((1, 2, 2, 2), min_length=1, max_length=10)
    num_res_blocks: int = Field(2, ge=1, le=32)

    heads: ClassVar[bool] = True

    def require_data(self, facts: DatasetFacts) -> None:
        """Raise ValueError for points, and for images that cannot be halved so often."""
        pixels, halvings = self._require_images(facts), len(self.channel_mult) - 1
        if pixels % 2**halvings:
            raise ValueError(
                f"channel_mult has {halvings + 1} levels, but {pixels} pixels cannot be halved {halvings} times"
            )


class MLPDiscriminator(DiscriminatorModel):
    """Fully connected layers for points of the plane."""

    name: Literal["mlp"] = "mlp"
    width: int = Field(512, ge=1, le=65536)  # DDGAN, appendix C.5
    depth: int = Field(3, ge=1, le=100)
    input_scale: float = Field(
        1.0, gt=0, description="Multiplies the points: more than 1 where their details are small beside their range."
    )

    heads: ClassVar[bool] = True

    def require_data(self, facts: DatasetFacts) -> None:
        """Raise ValueError for images."""
        if not facts.are_points:
            raise ValueError("mlp is for points such as mog; choose small, large or unet for images")


Discriminator = Annotated[
    DiscriminatorModel,
    Choice(
        "discriminator",
        DiscriminatorModel,
        {"small": SmallDiscriminator, "large": LargeDiscriminator, "unet": UNetDiscriminator, "mlp": MLPDiscriminator},
    ),
]
