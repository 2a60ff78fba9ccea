"""A field that is younger than the schema is written, and hashed, only when it is set: held by keys that are frozen."""

from typing import Annotated

import pytest

from harness.spec.base import YOUNGER, SpecModel, digest
from harness.spec.evaluation import Evaluation
from harness.spec.run import RunSpec

SMALL = {
    "data": {"name": "digits"},
    "model": {"name": "unet", "channels": 32, "channel_mult": [1, 2], "attention_resolutions": [4]},
    "train": {"steps": 400, "batch_size": 64, "ema_rate": 0.98},
}
PARENT = "566baaac0e8635f3"
FOLDER = {"name": "image_folder", "path": "cats", "image_size": 32, "num_classes": 2}
FOLDER_KEY = "bfe80948f5fc5dcb"
WIDE = SMALL | {"model": {"name": "unet", "channels": 32, "channel_mult": [1, 2], "attention_resolutions": [16]}}

# If one of these fails, run directories in the world get new names: mark a new field YOUNGER, and keep old defaults.
RUN_KEYS = {
    "566baaac0e8635f3": SMALL,
    "11cba5161131857c": {"data": "mog", "model": {"name": "mlp"}, "train": {"steps": 10}, "objective": "min_snr"},
    "7b9d121d1077363b": SMALL
    | {
        "seed": 3,
        "diffusion": {"num_timesteps": 100, "schedule": "cosine", "var_type": "learned_range"},
        "objective": {"name": "hybrid", "lambda_vlb": 0.01},
        "timestep_sampler": "loss_second_moment",
        "optim": {"lr": 2e-4, "grad_clip": 1.0, "decay": "linear"},
    },
    "dafccf3cfb53bc92": SMALL | {"continue_from": PARENT, "train": {"steps": 800}},
}
EVALUATION_KEYS = {
    "ad73a19a18efa98f": {"nll": {}},
    "299d726881a443a2": {
        "name": "eval_raw",
        "weights": "raw",
        "guidance": 2.0,
        "fidelity": {"num_samples": 100, "num_steps": 10, "extractor": "classifier"},
        "noise_scale": {},
        "every": 10,
        "nll": {"estimator": "full"},
    },
}


@pytest.mark.parametrize("key", RUN_KEYS)
def test_run_keys_are_frozen(key):
    assert RunSpec.model_validate(RUN_KEYS[key]).run_key == key


@pytest.mark.parametrize("key", EVALUATION_KEYS)
def test_evaluation_keys_are_frozen(key):
    assert Evaluation.model_validate(EVALUATION_KEYS[key]).key == key


def test_the_default_method_is_not_written_however_it_is_said():
    plain, said = RunSpec.model_validate(SMALL), RunSpec.model_validate(SMALL | {"method": {"name": "gaussian"}})
    assert plain.run_key == said.run_key == PARENT
    assert "method" not in said.model_dump(mode="json")


def test_a_test_folder_is_hashed_only_where_one_is_named():
    plain, named = (RunSpec.model_validate(WIDE | {"data": FOLDER | more}) for more in ({}, {"test_path": "dogs"}))
    assert plain.run_key == FOLDER_KEY != named.run_key
    assert "test_path" not in plain.model_dump(mode="json")["data"]
    assert RunSpec.model_validate(named.model_dump(mode="json")).run_key == named.run_key


# -- the mechanism, for any part


class Old(SpecModel):
    width: int = 1


class Grown(SpecModel):
    width: int = 1
    depth: Annotated[int | None, YOUNGER] = None
    bias: Annotated[bool, YOUNGER] = True


class Whole(SpecModel):
    part: Grown = Grown()
    parts: tuple[Grown, ...] = ()
    kind: Annotated[Grown, YOUNGER] = Grown(width=3)


def key(part: SpecModel) -> str:
    return digest(part.model_dump(mode="json"))


def test_a_part_that_has_grown_keeps_its_key_until_a_new_field_is_set():
    assert key(Grown()) == key(Old())
    assert key(Grown(depth=None, bias=True)) == key(Old())  # set to its default is not set
    assert Grown(depth=0).model_dump() == {"width": 1, "depth": 0}
    assert Grown(bias=False).model_dump(mode="json") == {"width": 1, "bias": False}


def test_younger_fields_are_left_out_of_parts_within_parts():
    whole = Whole(parts=(Grown(), Grown(depth=2)))
    assert whole.model_dump(mode="json") == {"part": {"width": 1}, "parts": [{"width": 1}, {"width": 1, "depth": 2}]}
    assert Whole(kind=Grown(width=4)).model_dump()["kind"] == {"width": 4}
    assert Whole.model_validate(whole.model_dump()) == whole


def test_what_is_excluded_stays_excluded():
    assert Grown(depth=2).model_dump(exclude={"width"}) == {"depth": 2}
