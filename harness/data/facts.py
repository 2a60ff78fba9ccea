"""Declared properties of each data set, readable on a login node without the data, NumPy or torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetFacts:
    """The shape of one example and the number of its values.

    Attributes:
        image_size: height and width in pixels after padding; None where the spec chooses it.
        channels: 1 for grey, 3 for colour; the number of coordinates where the examples are points.
        levels: integer values a pixel can take (0 .. levels - 1), None where the data are continuous.
        num_classes: None where only the files can tell.
        padding: pixels added on each side to reach image_size.
    """

    image_size: int | None
    channels: int
    levels: int | None
    num_classes: int | None
    padding: int = 0

    @property
    def are_points(self) -> bool:
        """Whether the examples are points rather than images: [C, 1, 1]."""
        return self.image_size == 1

    @property
    def padded_share(self) -> float:
        """The share of the dimensions that are padding, in [0, 1): 0.234 for 28x28 in 32x32."""
        if not self.padding:
            return 0.0
        assert self.image_size is not None, "padding is only declared where the size is"
        return 1 - ((self.image_size - 2 * self.padding) / self.image_size) ** 2


DATASET_FACTS: dict[str, DatasetFacts] = {
    "digits": DatasetFacts(image_size=8, channels=1, levels=17, num_classes=10),
    "mnist": DatasetFacts(image_size=32, channels=1, levels=256, num_classes=10, padding=2),
    "fashion_mnist": DatasetFacts(image_size=32, channels=1, levels=256, num_classes=10, padding=2),
    "cifar10": DatasetFacts(image_size=32, channels=3, levels=256, num_classes=10),
    "imagenet64": DatasetFacts(image_size=64, channels=3, levels=256, num_classes=1000),
    "image_folder": DatasetFacts(image_size=None, channels=3, levels=256, num_classes=None),
    "mog": DatasetFacts(image_size=1, channels=2, levels=None, num_classes=25),
}
