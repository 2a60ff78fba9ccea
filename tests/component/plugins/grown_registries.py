"""A pytest plugin that adds an entry to every registry, as somebody does who adds a part to the package."""

from typing import Literal

from harness.data import DATASETS
from harness.data.facts import DATASET_FACTS
from harness.diffusion import OBJECTIVES, SAMPLERS, SCHEDULES, TIMESTEP_SAMPLERS
from harness.spec.data import DataModel
from harness.spec.evaluation import SamplerModel
from harness.spec.parts import KINDS, NamedModel
from harness.spec.run import ObjectiveModel


class Plain(NamedModel):
    name: Literal["added"] = "added"


class Objective(ObjectiveModel):
    name: Literal["added"] = "added"


class Sampler(SamplerModel):
    name: Literal["added"] = "added"


class Data(DataModel):
    name: Literal["added"] = "added"


def shorter_cosine(num_timesteps):
    return 0.999 * SCHEDULES["cosine"](num_timesteps)


SCHEDULES["added"] = shorter_cosine
OBJECTIVES["added"] = OBJECTIVES["simple"]
TIMESTEP_SAMPLERS["added"] = TIMESTEP_SAMPLERS["uniform"]
SAMPLERS["added"] = SAMPLERS["ancestral"]
DATASETS["added"] = DATASETS["digits"]
DATASET_FACTS["added"] = DATASET_FACTS["digits"]
for kind, parameters in {
    "schedule": Plain,
    "objective": Objective,
    "timestep_sampler": Plain,
    "sampler": Sampler,
    "data": Data,
}.items():
    table = KINDS[kind].built_in
    assert isinstance(table, dict)
    table["added"] = parameters
