"""Data sets of points and of images, a timestep sampler with a state, a sampler and a metric of a user's own."""

from typing import ClassVar, Literal

from harness.plugins import DataModel, DatasetFacts, Field, MetricModel, SamplerModel, TimestepSamplerModel


class Ring(DataModel):
    """Points on a circle."""

    name: Literal["ring"] = "ring"
    radius: float = Field(0.5, gt=0, lt=1)
    facts: ClassVar[DatasetFacts] = DatasetFacts(image_size=1, channels=2, levels=None, num_classes=4)


class Stripes(DataModel):
    """Images of vertical or horizontal stripes."""

    name: Literal["stripes"] = "stripes"
    size: int = Field(8, ge=4)
    num_classes: int = Field(2, ge=1, le=2)

    @property
    def facts(self):
        return DatasetFacts(image_size=self.size, channels=1, levels=16, num_classes=self.num_classes)


class Halves(TimestepSamplerModel):
    """Draw the half of the chain with the larger loss more often."""

    name: Literal["halves"] = "halves"
    momentum: float = Field(0.9, ge=0, lt=1)


class Euler(SamplerModel):
    """Walk from x_t to x_{t-1} by the predicted x_0 and eps, with some noise."""

    name: Literal["euler"] = "euler"
    churn: float = Field(0.0, ge=0, le=1)

    def check(self, run):
        if run.diffusion.num_timesteps < 2:
            raise ValueError("sampler euler needs two timesteps or more")


class Spread(MetricModel):
    """How far samples lie from their mean, beside how far the data do."""

    name: Literal["spread"] = "spread"
    num_samples: int = Field(64, ge=2)
    num_steps: int = Field(10, ge=1)
    outputs: ClassVar[tuple[str, ...]] = ("spread", "spread_of_data")


DATASETS = {"ring": (Ring, "own_torch_parts.py:ring"), "stripes": (Stripes, "own_torch_parts.py:stripes")}
TIMESTEP_SAMPLERS = {"halves": (Halves, "own_torch_parts.py:HalvesSampler")}
SAMPLERS = {"euler": (Euler, "own_torch_parts.py:euler")}
METRICS = {"spread": (Spread, "own_torch_parts.py:spread")}
