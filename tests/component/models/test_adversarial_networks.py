"""Networks of adversarial methods take a training step with what a spec says of them, also a user's own."""

import pytest
import torch

from harness.methods.base import Batch
from harness.models import MLP, NCSNpp, UNet, UNetDiscriminator
from harness.randomness import Streams
from harness.registry import make_method
from harness.spec.parts import active
from harness.spec.plugins import load_plugin
from harness.spec.resources import Resources
from harness.spec.run import RunSpec
from harness.training.distributed import ProcessGroup

UNET = {"channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_resolutions": [], "num_heads": 1}
NCSNPP = {"name": "ncsnpp", "channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_resolutions": [4]}
PLUGIN = """
from typing import ClassVar, Literal
from harness.plugins import DiscriminatorModel

class Linear(DiscriminatorModel):
    name: Literal["linear"] = "linear"
    bias: bool = True
    heads: ClassVar[bool] = True

DISCRIMINATORS = {"linear": (Linear, "networks.py:LinearDiscriminator")}
"""
NETWORKS = """
import torch
from torch import nn
from harness.models.discriminators import Verdict

class LinearDiscriminator(nn.Module):
    def __init__(self, in_channels, pair, num_classes, heads, bias):
        super().__init__()
        self.layer = nn.Linear((1 + pair) * in_channels, 1 + 2 * in_channels, bias)

    def forward(self, x_t, t, x_next=None, y=None):
        seen = x_t if x_next is None else torch.cat([x_t, x_next], 1)
        logits, x_0, x_next = self.layer(seen.flatten(1)).split([1, x_t.shape[1], x_t.shape[1]], 1)
        return Verdict(logits, x_0.reshape(x_t.shape), x_next.reshape(x_t.shape))
"""


def after_one_step(parts):
    """Build a run's method and take a step; return it and the names of the weights that have not moved."""
    spec = RunSpec.model_validate({"train": {"steps": 10, "batch_size": 4}} | parts)
    facts = spec.data.facts
    method = make_method(spec, facts, Resources(), torch.device("cpu"))
    modules = {name: network.module for name, network in method.networks().items()}
    before = {name: [weight.detach().clone() for weight in module.parameters()] for name, module in modules.items()}
    shape = (4, facts.channels, facts.image_size, facts.image_size)
    x_0 = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    output = method.step(
        0, Batch.whole(x_0, torch.arange(4) if spec.model.class_cond else None), Streams(0), ProcessGroup()
    )
    assert output.loss.isfinite().all()
    for name, module in modules.items():
        assert any(not torch.equal(old, new) for old, new in zip(before[name], module.parameters(), strict=True)), name
    return method


@pytest.mark.parametrize("method", ["ddgan", "siddm"])
@pytest.mark.parametrize(("model", "network"), [(NCSNPP, NCSNpp), (UNET | {"resample_first": True}, UNet)])
def test_each_generator_of_images_is_trained_with_classes_by_each_method(method, model, network):
    discriminator = {"name": "unet", "channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1}
    trained = after_one_step(
        {
            "data": "digits",
            "model": model | {"class_cond": True},
            "method": {
                "name": method,
                "discriminator": discriminator,
                "r1_gamma": 0.1,
                "latent_dim": 4,
                "style_dim": 8,
            },
        }
    )
    assert type(trained.generator) is network
    assert trained.generator.num_classes == 10
    assert trained.generator.downsampling == (4 if network is UNet else 2)
    assert type(trained.discriminator) is UNetDiscriminator


def test_both_networks_of_points_see_them_enlarged():
    trained = after_one_step(
        {
            "data": "mog",
            "model": {"name": "mlp", "width": 16, "input_scale": 16},
            "method": {"name": "ddgan", "discriminator": {"name": "mlp", "width": 32, "input_scale": 8}},
        }
    )
    assert isinstance(trained.generator, MLP)
    assert (trained.generator.input_scale, trained.discriminator.trunk.input_scale) == (16, 8)


@pytest.mark.parametrize("method", ["ddgan", "siddm"])
def test_a_plugin_s_discriminator_judges_as_the_built_in_ones_do(tmp_path, method):
    (tmp_path / "own.py").write_text(PLUGIN)
    (tmp_path / "networks.py").write_text(NETWORKS)
    with active([load_plugin(tmp_path / "own.py")]):
        trained = after_one_step(
            {
                "data": "mog",
                "model": {"name": "mlp", "width": 16},
                "method": {"name": method, "discriminator": {"name": "linear", "bias": False}},
            }
        )
    assert type(trained.discriminator).__name__ == "LinearDiscriminator"
    assert trained.discriminator.layer.bias is None
