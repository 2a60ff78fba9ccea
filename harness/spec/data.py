"""What a study can say of its data."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from harness.data.facts import DATASET_FACTS, MOG_MIXTURE, DatasetFacts, Mixture
from harness.spec.base import YOUNGER, SpecModel
from harness.spec.parts import Choice


class DataModel(SpecModel):
    """Base of data set parameters; a plugin's class declares its `facts`, and its `mixture` if it is one."""

    mixture: ClassVar[Mixture | None] = None
    horizontal_flip: bool = False  # DDPM flips at random in training; IDDPM's code does not
    name: str

    @property
    def facts(self) -> DatasetFacts:
        return DATASET_FACTS[self.name]

    @classmethod
    def check_declaration(cls) -> None:
        """Require declared facts."""
        if "facts" not in {name for base in cls.__mro__ if base is not DataModel for name in vars(base)}:
            raise ValueError("declare its facts: facts: ClassVar[DatasetFacts] = DatasetFacts(...), or a property")

    @property
    def pixels(self) -> int:
        """Return the height and width of an image, padding included."""
        size = self.facts.image_size
        assert size is not None, "only image_folder leaves it open, and its spec says it"
        return size


class Digits(DataModel):
    name: Literal["digits"] = "digits"


class Mnist(DataModel):
    name: Literal["mnist"] = "mnist"


class FashionMnist(DataModel):
    name: Literal["fashion_mnist"] = "fashion_mnist"


class Cifar10(DataModel):
    name: Literal["cifar10"] = "cifar10"
    batches: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field((1, 2, 3, 4, 5), min_length=1)

    @field_validator("batches")
    @classmethod
    def _each_batch_once_and_in_order(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        if list(batches) != sorted(set(batches)):
            raise ValueError(f"name each batch once and in order: {sorted(set(batches))}")
        return batches

    @property
    def facts(self) -> DatasetFacts:
        return replace(DATASET_FACTS[self.name], num_train=10_000 * len(self.batches))


class ImageNet64(DataModel):
    name: Literal["imagenet64"] = "imagenet64"


class ImageFolder(DataModel):
    """Images below a folder; classes are its folders, or in a flat folder what a name has before the first "_"."""

    name: Literal["image_folder"] = "image_folder"
    path: str = Field(min_length=1, max_length=200, description="The folder, below data_root.")
    image_size: int = Field(ge=4, le=1024, description="Pixels a side after scaling and cropping.")
    test_fraction: float = Field(
        0.1, gt=0, lt=1, description="Share of the images for testing, chosen by a hash of each one's path."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of that split.")
    num_classes: int | None = Field(
        None, ge=1, description="Number of classes; null if there are none, or they are not used."
    )
    test_path: Annotated[str | None, YOUNGER] = Field(
        None,
        min_length=1,
        max_length=200,
        description="A folder of test images, below data_root; then all of `path` is trained on.",
    )

    @model_validator(mode="after")
    def _one_kind_of_split(self) -> ImageFolder:
        if self.test_path is not None and (self.test_fraction, self.seed) != (0.1, 0):
            raise ValueError("test_path names the test images, so nothing is split: remove test_fraction and seed")
        return self

    @field_validator("path", "test_path")
    @classmethod
    def _stays_below_data_root(cls, path: str | None) -> str | None:
        if path is None:
            return None
        if path.startswith(("/", "~")) or ".." in path.split("/") or not path.isprintable():
            raise ValueError(f"{path!r} leaves data_root: give a plain path below it")
        return path

    @property
    def facts(self) -> DatasetFacts:
        return replace(DATASET_FACTS[self.name], image_size=self.image_size, num_classes=self.num_classes)


class Mog(DataModel):
    name: Literal["mog"] = "mog"
    mixture: ClassVar[Mixture | None] = MOG_MIXTURE


Data = Annotated[
    DataModel,
    Choice(
        "data",
        DataModel,
        {
            "digits": Digits,
            "mnist": Mnist,
            "fashion_mnist": FashionMnist,
            "cifar10": Cifar10,
            "imagenet64": ImageNet64,
            "image_folder": ImageFolder,
            "mog": Mog,
        },
    ),
]
