"""What spec.py names and what the registries hold are the same: names, parameters and their defaults.

`plan` reads spec.py alone (no torch), a job the registries alone; without these tests one could promise what the other
does not have.
"""

import inspect
from contextlib import nullcontext

import pytest
import torch
from pydantic_core import PydanticUndefined

from harness.data import DATASET_FACTS, DATASETS
from harness.diffusion import MEAN_TYPES, OBJECTIVES, SAMPLERS, SCHEDULES, TIMESTEP_SAMPLERS, VAR_TYPES
from harness.methods.base import HasGradientNoise, HasLikelihood, Method
from harness.models import DISCRIMINATORS, MODELS
from harness.registry import METHODS, make_method, make_network, make_process
from harness.spec import data, discriminators, evaluation, networks, parts, run
from harness.spec.resources import Resources

KINDS = {
    "schedule": (run.Schedule, SCHEDULES),
    "objective": (run.Objective, OBJECTIVES),
    "timestep_sampler": (run.TimestepSampler, TIMESTEP_SAMPLERS),
    "sampler": (evaluation.Sampler, SAMPLERS),
    "model": (run.Model, MODELS),
    "discriminator": (discriminators.Discriminator, DISCRIMINATORS),
    "data": (data.Data, DATASETS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_spec_names_exactly_what_is_registered(kind):
    union, registry = KINDS[kind]
    assert list(parts.choices(union)) == list(registry)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_class_carries_its_name_as_the_default(kind):
    for name, part in parts.choices(KINDS[kind][0]).items():
        assert part.model_fields["name"].default == name


def test_the_spec_names_exactly_the_methods_that_are_registered():
    assert list(run.METHODS) == list(METHODS)
    for name, part in run.METHODS.items():
        assert part.model_fields["name"].default == name


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_all_that_the_seam_asks_for_and_can_be_measured_as_its_spec_says(name):
    spec = run.RunSpec.model_validate(
        {"data": "mog", "model": {"name": "mlp"}, "method": {"name": name}, "train": {"steps": 1}}
    )
    method = make_method(spec, spec.data.facts, Resources(), torch.device("cpu"))
    members = [*Method.__annotations__, *(name for name in vars(Method) if not name.startswith("_"))]
    assert "denoiser" in members and [member for member in members if not hasattr(method, member)] == []
    assert isinstance(method, HasLikelihood) or "nll" not in spec.method.measures
    assert isinstance(method, HasGradientNoise) or "noise_scale" not in spec.method.measures


@pytest.mark.parametrize("part", run.METHODS.values())
def test_what_a_method_owns_and_measures_exists(part):
    for path in part.owns:
        kind = run.RunSpec
        for key in path.split("."):
            assert key in kind.model_fields, path
            kind = kind.model_fields[key].annotation
    assert set(evaluation.PARTS) >= part.measures


def test_every_data_set_has_its_facts():
    assert list(DATASET_FACTS) == list(DATASETS)


# What the callables take that is no field of the spec, and why.
CALLED_WITH = {
    "schedule": {"num_timesteps"},  # Diffusion.num_timesteps
    "objective": {"process", "model_output", "x_0", "x_t", "t", "noise"},  # the training step
    "timestep_sampler": {"num_timesteps", "device"},
    "sampler": {"denoise", "x_T", "process", "generator", "start", "on_step"},  # the evaluation
    "discriminator": {"in_channels", "pair", "num_classes", "heads", "negative_slope"},  # the method; a test's value
    "data": {"data_root", "checksums", "counts"},  # where it lies; what it must be, given by tests alone
}
# What the spec says that the callables do not take, and who reads it.
READ_ELSEWHERE = {
    "sampler": {"spacing"},  # respacing
    "discriminator": {"rescale_timesteps"},  # the method
    "data": {"horizontal_flip", "num_classes"},  # the training; the plan
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in CALLED_WITH for name in KINDS[kind][1]], ids=lambda part: part
)
def test_a_parameter_class_has_the_parameters_of_what_it_names_and_their_defaults(kind, name):
    union, registry = KINDS[kind]
    taken = {
        parameter.name: parameter.default
        for parameter in inspect.signature(registry[name]).parameters.values()
        if parameter.name not in CALLED_WITH[kind]
    }
    written = {
        field: info.default
        for field, info in parts.choices(union)[name].model_fields.items()
        if field != "name" and field not in READ_ELSEWHERE.get(kind, ())
    }
    assert set(written) == set(taken)
    for parameter, default in taken.items():
        missing = default is inspect.Parameter.empty
        assert written[parameter] == (PydanticUndefined if missing else default), parameter


def test_the_unet_of_the_spec_has_the_parameters_of_the_network():
    # Named otherwise: channels (model_channels). Made from the data and the process: in_channels, out_channels,
    # num_classes. Of the method: latent. Of the resources: use_checkpoint. Outside the network: class_cond,
    # label_dropout, rescale_timesteps.
    taken = set(inspect.signature(MODELS["unet"]).parameters)
    taken -= {"in_channels", "out_channels", "num_classes", "use_checkpoint", "num_heads_upsample", "latent"}
    written = set(run.UNet.model_fields) - {"name", "class_cond", "label_dropout", "rescale_timesteps", "low_res_size"}
    assert written - {"channels"} == taken - {"model_channels"}


def test_the_mlp_of_the_spec_has_the_parameters_of_the_network_and_their_defaults():
    parameters = inspect.signature(MODELS["mlp"]).parameters
    for name in ("width", "depth", "input_scale"):
        assert run.MLP.model_fields[name].default == parameters[name].default
    assert set(parameters) == {"in_channels", "out_channels", "num_classes", "latent", "width", "depth", "input_scale"}


def test_the_ncsnpp_of_the_spec_has_the_parameters_of_the_network_and_their_defaults():
    parameters = inspect.signature(MODELS["ncsnpp"]).parameters
    given = {"in_channels", "out_channels", "image_size", "num_classes", "latent"}
    written = set(networks.Ncsnpp.model_fields) - set(networks.NetworkModel.model_fields)
    assert written == set(parameters) - given
    for name in written:
        assert networks.Ncsnpp.model_fields[name].default == parameters[name].default


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_discriminator_that_says_it_has_heads_can_be_built_with_them_and_another_cannot(name):
    heads = parts.choices(discriminators.Discriminator)[name].heads
    with nullcontext() if heads else pytest.raises(ValueError, match="has no heads"):
        DISCRIMINATORS[name](in_channels=2, pair=False, num_classes=None, heads=True)


def test_the_spec_knows_the_mean_and_variance_types_of_the_process():
    def literals(field):
        return set(run.Diffusion.model_fields[field].annotation.__args__)

    assert literals("mean_type") == set(MEAN_TYPES)
    assert literals("var_type") == {"fixed", *VAR_TYPES}  # fixed: the evaluation chooses small or large


@pytest.mark.parametrize("mean_type", MEAN_TYPES)
@pytest.mark.parametrize("var_type", VAR_TYPES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_process_that_a_spec_can_name_is_built(mean_type, var_type, schedule):
    diffusion = run.Diffusion(
        num_timesteps=21, schedule=parts.choices(run.Schedule)[schedule](), mean_type=mean_type, var_type=var_type
    )
    process = make_process(diffusion, levels=256)
    assert (process.num_timesteps, process.mean_type, process.var_type) == (21, mean_type, var_type)


def test_fixed_is_large_or_small_as_the_evaluation_says():
    diffusion = run.Diffusion(var_type="fixed")
    assert make_process(diffusion, 256, fixed_variance="small").var_type == "fixed_small"
    assert make_process(diffusion, 256, fixed_variance="large").var_type == "fixed_large"


def test_a_network_with_learned_variance_has_twice_the_channels():
    def out_channels(var_type, objective):
        spec = run.RunSpec.model_validate(
            {
                "data": {"name": "digits"},
                "diffusion": {"var_type": var_type},
                "objective": {"name": objective},
                "model": {"name": "unet", "channels": 32, "channel_mult": [1, 2], "attention_resolutions": [4]},
                "train": {"steps": 1},
            }
        )
        return make_network(spec, DATASET_FACTS["digits"]).out_channels

    assert out_channels("fixed", "simple") == 1
    assert out_channels("learned_range", "hybrid") == 2
    assert out_channels("learned", "vlb") == 2
