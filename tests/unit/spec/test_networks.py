"""The parameters of generators and discriminators: which data, methods and sizes they fit."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from harness.data.facts import DATASET_FACTS
from harness.errors import SpecError
from harness.models import DISCRIMINATORS, MODELS, Latent
from harness.registry import parameters
from harness.spec.base import YOUNGER
from harness.spec.discriminators import Discriminator, DiscriminatorModel
from harness.spec.networks import MLP, Ncsnpp, NetworkModel, UNet
from harness.spec.parts import active
from harness.spec.plugins import load_plugin
from harness.spec.run import RunSpec


def run_spec(data, method="ddgan", **model):
    return RunSpec.model_validate({"data": data, "method": method, "model": model, "train": {"steps": 1}})


def refusal(data, method="ddgan", **model):
    with pytest.raises(ValidationError) as caught:
        run_spec(data, method, **model)
    return str(caught.value)


def test_a_network_that_generates_from_a_latent_is_refused_under_a_method_without_one():
    message = refusal("cifar10", "gaussian", name="ncsnpp")
    assert "model ncsnpp generates from a latent, but method gaussian has none: choose method ddgan or siddm" in message


def test_points_are_no_images_for_ncsnpp():
    assert "model ncsnpp is for images, but data mog are points: choose model mlp" in refusal("mog", name="ncsnpp")


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        (
            "digits",
            {"channel_mult": [1, 1, 1, 1, 1]},
            "channel_mult has 5 levels, but 8 pixels cannot be halved 4 times",
        ),
        ("digits", {}, "attention_resolutions: the network has no feature maps of 16x16; choices: 8, 4, 2, 1, or []"),
        ("cifar10", {"channels": 3}, "greater than or equal to 4"),
        ("cifar10", {"channels": 36}, r"a layer of 144 channels is normalised in 32 groups, which do not divide it"),
        ("cifar10", {"channels": 6}, r"a layer of 18 channels is normalised in 4 groups"),
    ],
)
def test_sizes_that_do_not_fit_ncsnpp_are_refused(data, model, message):
    assert message in refusal(data, name="ncsnpp", **model)


@pytest.mark.parametrize("channels", [4, 6, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 64, 96])
@pytest.mark.parametrize("channel_mult", [(1,), (1, 2), (1, 1, 2), (2, 3)])
def test_the_widths_that_the_spec_takes_are_those_that_the_network_takes(channels, channel_mult):
    model = {"channels": channels, "channel_mult": channel_mult, "attention_resolutions": [], "num_res_blocks": 1}

    def build():
        with torch.device("meta"):
            MODELS["ncsnpp"](1, 1, 32, Latent(2, 2, 1), **model)

    try:
        run_spec("mnist", name="ncsnpp", **model)
    except ValidationError as error:
        assert "normalised in" in str(error)
        with pytest.raises(ValueError, match=r"num_channels \(\d+\) must be divisible by num_groups"):
            build()
    else:
        build()


def test_the_published_generators_are_accepted_and_built_from_the_fields_of_their_specs():
    folder = {"name": "image_folder", "path": "celeba_hq", "image_size": 256}
    celeba_hq = {"channels": 64, "channel_mult": [1, 1, 2, 2, 4, 4]}
    counts = {}
    for name, data, model in (("cifar10", "cifar10", {}), ("celeba_hq", folder, celeba_hq)):
        spec = run_spec(data, name="ncsnpp", **model)
        options = {key: value for key, value in parameters(spec.model).items() if key not in NetworkModel.model_fields}
        latent = Latent(100, style_dim=256, mapping_layers=5 if name == "cifar10" else 4)
        with torch.device("meta"):
            network = MODELS["ncsnpp"](3, 3, spec.data.pixels, latent, num_classes=None, **options)
        counts[name] = sum(parameter.numel() for parameter in network.parameters())
    assert counts == {"cifar10": 48_432_515, "celeba_hq": 39_726_979}


def test_ncsnpp_sees_the_index_of_a_timestep_unless_a_spec_says_otherwise():
    assert run_spec("cifar10", name="ncsnpp").model.rescale_timesteps is False
    assert run_spec("cifar10").model.rescale_timesteps is True


def test_a_latent_needs_a_u_net_that_scales_and_shifts():
    message = refusal("cifar10", name="unet", use_scale_shift_norm=False)
    assert "model.use_scale_shift_norm: the latent of method ddgan scales and shifts" in message
    assert not run_spec("cifar10", "gaussian", name="unet", use_scale_shift_norm=False).model.use_scale_shift_norm


def test_what_is_new_of_older_networks_is_younger_than_the_keys():
    assert YOUNGER in UNet.model_fields["resample_first"].metadata
    assert YOUNGER in MLP.model_fields["input_scale"].metadata
    assert "resample_first" not in run_spec("cifar10", "gaussian").model_dump(mode="json")["model"]
    assert "input_scale" not in run_spec("mog", "gaussian", name="mlp").model_dump(mode="json")["model"]


def test_when_resampling_comes_first_sizes_are_counted_from_half_of_the_image():
    assert UNet(resample_first=True).resolutions(64) == [32, 16, 8, 4]
    message = refusal("cifar10", "gaussian", channel_mult=[1] * 6, attention_resolutions=[], resample_first=True)
    assert "model.channel_mult has 6 levels and model.resample_first, but 32 pixels cannot be halved 6 times" in message
    message = refusal("cifar10", "gaussian", attention_resolutions=[32], resample_first=True)
    assert "no feature maps of 32x32; choices: 16, 8, 4, 2" in message


# -- discriminators

DISCRIMINATOR = TypeAdapter(Discriminator)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_discriminator_s_name_alone_is_enough_and_unknown_ones_are_refused_with_the_choices(name):
    assert DISCRIMINATOR.validate_python(name) == DISCRIMINATOR.validate_python({"name": name})
    with pytest.raises(ValidationError, match="'small', 'large', 'unet', 'mlp'"):
        DISCRIMINATOR.validate_python("patch")


@pytest.mark.parametrize(
    ("discriminator", "data", "message"),
    [
        ("small", "mog", "small is for images; choose mlp for points"),
        ("large", "mog", "large is for images; choose mlp for points"),
        ("unet", "mog", "unet is for images; choose mlp for points"),
        ("mlp", "digits", "mlp is for points such as mog; choose small, large or unet for images"),
        ("large", "cifar10", "large needs images of 64 pixels or more, not of 32"),
        (
            {"name": "unet", "channel_mult": [1, 1, 1, 1, 1]},
            "digits",
            "channel_mult has 5 levels, but 8 pixels cannot be halved 4 times",
        ),
    ],
)
def test_data_that_do_not_fit_a_discriminator_are_refused(discriminator, data, message):
    with pytest.raises(ValueError, match=message):
        DISCRIMINATOR.validate_python(discriminator).require_data(DATASET_FACTS[data])


@pytest.mark.parametrize(
    ("discriminator", "data"),
    [("small", "digits"), ("small", "cifar10"), ("large", "imagenet64"), ("unet", "digits"), ("mlp", "mog")],
)
@torch.no_grad()
def test_data_that_fit_a_discriminator_pass_through_it_with_the_fields_of_its_spec(discriminator, data):
    facts, part = DATASET_FACTS[data], DISCRIMINATOR.validate_python(discriminator)
    part.require_data(facts)
    options = {"in_channels": facts.channels, "pair": True, "num_classes": None, "heads": part.heads}
    with torch.device("meta"):
        network = DISCRIMINATORS[part.name](**options, **part.model_dump(exclude={"name", "rescale_timesteps"}))
        x = torch.empty(part.batch_multiple, facts.channels, facts.image_size, facts.image_size)
        assert network(x, torch.zeros(len(x)), x).logits.shape == (len(x), 1)


def test_batches_are_of_whole_groups_where_outputs_depend_on_groups():
    multiples = {name: DISCRIMINATOR.validate_python(name).batch_multiple for name in DISCRIMINATORS}
    assert multiples == {"small": 4, "large": 4, "unet": 1, "mlp": 1}


def test_the_json_schema_describes_every_discriminator_and_the_generator():
    schema = DISCRIMINATOR.json_schema()
    assert schema["oneOf"][0]["enum"] == ["small", "large", "unet", "mlp"]
    titles = {part.get("title") or part["allOf"][0]["title"] for part in schema["oneOf"][1:]}
    assert titles == {"SmallDiscriminator", "LargeDiscriminator", "UNetDiscriminator", "MLPDiscriminator"}
    assert Ncsnpp.model_json_schema()["properties"]["channels"]["minimum"] == 4


OWN = """
from typing import ClassVar, Literal
from harness.plugins import DiscriminatorModel, Field

class Linear(DiscriminatorModel):
    name: Literal["linear"] = "linear"
    bias: bool = True
    heads: ClassVar = False

DISCRIMINATORS = {"linear": (Linear, "networks.py:Linear")}
"""


def test_a_plugin_brings_a_discriminator_of_its_own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "networks.py").write_text("class Linear: ...\n")
    plugin = load_plugin(tmp_path / "own.py")
    with active([plugin]):
        part = DISCRIMINATOR.validate_python({"name": "linear", "bias": False})
    assert isinstance(part, DiscriminatorModel)
    assert parameters(part) == {"rescale_timesteps": True, "bias": False}
    part.require_data(DATASET_FACTS["mog"])


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("heads: ClassVar = 1", "heads: 1 is neither True nor False"),
        ("batch_multiple: ClassVar = 0", "batch_multiple: 0 is no number of examples"),
    ],
)
def test_a_plugin_s_discriminator_that_says_what_it_can_do_wrongly_is_refused(tmp_path, declared, message):
    (tmp_path / "own.py").write_text(OWN.replace("heads: ClassVar = False", declared))
    (tmp_path / "networks.py").write_text("class Linear: ...\n")
    with pytest.raises(SpecError, match=f"own.py:10: DISCRIMINATORS: 'linear': {message}"):
        load_plugin(tmp_path / "own.py")
