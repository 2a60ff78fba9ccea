"""Base classes for the parameter classes of plugins. Imports no torch.

from typing import Literal
from harness.plugins import Field, ScheduleModel

class Sigmoid(ScheduleModel):
    name: Literal["sigmoid"] = "sigmoid"
    start: float = -3.0
    end: float = Field(3.0, gt=0)

def sigmoid(num_timesteps, start, end): ...

SCHEDULES = {"sigmoid": (Sigmoid, sigmoid)}
"""

from pydantic import Field, field_validator, model_validator

from harness.data.facts import DatasetFacts
from harness.spec.data import DataModel
from harness.spec.discriminators import DiscriminatorModel
from harness.spec.evaluation import MetricModel, SamplerModel
from harness.spec.methods import MethodSpec
from harness.spec.networks import NetworkModel
from harness.spec.parts import NamedModel
from harness.spec.run import ObjectiveModel

ScheduleModel = NamedModel
TimestepSamplerModel = NamedModel

__all__ = [
    "DataModel",
    "DatasetFacts",
    "DiscriminatorModel",
    "Field",
    "MethodSpec",
    "MetricModel",
    "NetworkModel",
    "ObjectiveModel",
    "SamplerModel",
    "ScheduleModel",
    "TimestepSamplerModel",
    "field_validator",
    "model_validator",
]
