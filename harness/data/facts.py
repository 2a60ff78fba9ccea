"""Declared properties of each data set, readable on a login node without the data, NumPy or torch."""

from dataclasses import dataclass
from typing import Literal, get_args

ExtractorName = Literal["auto", "inception", "classifier", "coordinates", "clip", "vgg", "dinov2", "random_features"]
EXTRACTORS = get_args(ExtractorName)
"""The feature extractors; `auto` is the `usual_extractor` of a data set."""


@dataclass(frozen=True)
class DatasetFacts:
    """The shape of one example and the number of its values.

    Attributes:
        image_size: height and width in pixels after padding; None where the spec chooses it.
        channels: 1 for grey, 3 for colour; the number of coordinates where the examples are points.
        levels: integer values a pixel can take (0 .. levels - 1), None where the data are continuous.
        num_classes: None where only the files can tell.
        padding: pixels added on each side to reach image_size.
        num_train, num_test: examples of each split, None where only the files can tell.
        licence: of the data, as their publishers state it; empty where that is not known here.
    """

    image_size: int | None
    channels: int
    levels: int | None
    num_classes: int | None
    padding: int = 0
    num_train: int | None = None
    num_test: int | None = None
    licence: str = ""

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


@dataclass(frozen=True)
class Mixture:
    """Equally likely Gaussians that the data are drawn from, as far as measures of modes need them.

    Attributes:
        centres: of the modes, in the data's scale.
        std: standard deviation of each mode along each coordinate.
    """

    centres: tuple[tuple[float, ...], ...]
    std: float


MOG_MIXTURE = Mixture(tuple((x / 11, y / 11) for x in range(-10, 11, 5) for y in range(-10, 11, 5)), std=1 / 33)
"""That of `harness.data.mog`: a grid of 5 x 5 modes 5 apart with a standard deviation of 1 / 3, divided by 11."""

_NONE_STATED = "none is stated by its publishers"
_OWN = "made by this code"

DATASET_FACTS: dict[str, DatasetFacts] = {
    "digits": DatasetFacts(
        image_size=8,
        channels=1,
        levels=17,
        num_classes=10,
        num_train=1_442,
        num_test=355,
        licence="CC BY 4.0 (UCI repository, optical recognition of handwritten digits; copy of scikit-learn)",
    ),
    "mnist": DatasetFacts(
        image_size=32,
        channels=1,
        levels=256,
        num_classes=10,
        padding=2,
        num_train=60_000,
        num_test=10_000,
        licence=_NONE_STATED,
    ),
    "fashion_mnist": DatasetFacts(
        image_size=32,
        channels=1,
        levels=256,
        num_classes=10,
        padding=2,
        num_train=60_000,
        num_test=10_000,
        licence="MIT",
    ),
    "cifar10": DatasetFacts(
        image_size=32, channels=3, levels=256, num_classes=10, num_train=50_000, num_test=10_000, licence=_NONE_STATED
    ),
    "imagenet64": DatasetFacts(
        image_size=64,
        channels=3,
        levels=256,
        num_classes=1000,
        num_train=1_281_167,
        num_test=50_000,
        licence="ImageNet's terms of access: non-commercial research and education only",
    ),
    "image_folder": DatasetFacts(None, channels=3, levels=256, num_classes=None),
    "mog": DatasetFacts(1, channels=2, levels=None, num_classes=25, num_train=250_000, num_test=50_000, licence=_OWN),
}

EXTRACTOR_LICENCES: dict[str, str] = {
    "inception": "Apache 2.0 (TensorFlow's graph of 2015-12-05, ported by torch-fidelity, Apache 2.0)",
    "clip": "MIT (OpenAI)",
    "dinov2": "Apache 2.0 (Meta)",
    "classifier": _OWN,
    "coordinates": _OWN,
    "random_features": _OWN,
}
"""Licences of the weights that features come from, where they are known here."""


def usual_extractor(*, continuous: bool, pixels: int, labelled: bool, inception: bool) -> str:
    """Return the feature extractor that `auto` stands for: coordinates, inception, classifier or random_features.

    Args:
        pixels: height and width of the images; below 32 Inception is not taken, whose input is 299.
        inception: whether its weights are available.
    """
    if continuous:
        return "coordinates"
    if inception and pixels >= 32:
        return "inception"
    return "classifier" if labelled else "random_features"


def classifier_name(data: str, digest: str | None = None) -> str:
    """Return the name of the classifier that is trained on a data set's labels: `digitsnet`.

    That of an image folder, whose name says nothing of its content, ends in the first 8 digits of the data's digest.

    Args:
        digest: None where the data have not been read.
    """
    return f"{data}net_{digest[:8]}" if digest and data == "image_folder" else f"{data}net"
