"""Parameters of the noise schedules."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.spec.parts import Choice, NamedModel


class Linear(NamedModel):
    name: Literal["linear"] = "linear"


class Cosine(NamedModel):
    name: Literal["cosine"] = "cosine"
    s: float = Field(0.008, ge=0, lt=1)


class Vp(NamedModel):
    name: Literal["vp"] = "vp"
    beta_min: float = Field(0.1, gt=0)
    beta_max: float = Field(20.0, gt=0)

    def check(self, run: Any) -> None:
        if self.beta_max < self.beta_min:
            raise ValueError(f"diffusion.schedule: beta_max {self.beta_max} is less than beta_min {self.beta_min}")


class Geometric(NamedModel):
    name: Literal["geometric"] = "geometric"
    variance_min: float = Field(1e-4, gt=0, lt=1)
    variance_max: float = Field(0.999, gt=0, lt=1)

    def check(self, run: Any) -> None:
        if self.variance_max <= self.variance_min:
            raise ValueError(
                f"diffusion.schedule: variance_max {self.variance_max} must be above variance_min {self.variance_min}"
            )


SCHEDULES: dict[str, type[NamedModel]] = {"linear": Linear, "cosine": Cosine, "vp": Vp, "geometric": Geometric}
Schedule = Annotated[NamedModel, Choice("schedule", NamedModel, SCHEDULES)]
