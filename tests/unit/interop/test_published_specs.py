"""The specs of OpenAI's published checkpoints."""

import pytest
import torch
from pydantic import ValidationError

from harness.interop.improved_diffusion import PUBLISHED, build_published, published_spec
from harness.registry import make_network
from harness.spec.evaluation import Evaluation

SHA256 = "a" * 64


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_spec_of_a_published_checkpoint_builds_its_network(name):
    spec = published_spec(name, SHA256)
    with torch.device("meta"):
        expected = {key: value.shape for key, value in build_published(name).state_dict().items()}
        found = make_network(spec, spec.data.facts).state_dict()
    assert {key: value.shape for key, value in found.items()} == expected


@pytest.mark.parametrize(
    "name, steps, objective, sampler, rescaled",
    [
        ("imagenet64_uncond", 1_500_000, ("hybrid", 0.001), "uniform", True),
        ("cifar10_uncond", 500_000, ("hybrid", 0.001), "uniform", True),
        ("imagenet64_cond", 250_000, ("hybrid", 1 / 4000), "uniform", False),
        ("upsample_cond", 500_000, ("hybrid", 1 / 4000), "uniform", False),
        ("lsun_uncond_bs128", 1_200_000, ("hybrid", 1 / 1000), "uniform", False),
        ("lsun_uncond_bs64", 2_400_000, ("hybrid", 1 / 1000), "uniform", False),
        ("imagenet64_uncond_vlb", 1_500_000, ("vlb", None), "loss_second_moment", True),
        ("cifar10_uncond_vlb", 500_000, ("vlb", None), "loss_second_moment", True),
    ],
)
def test_the_specs_say_what_the_readme_says(name, steps, objective, sampler, rescaled):
    spec = published_spec(name, SHA256)
    assert spec.train.steps == steps
    assert (spec.objective.name, getattr(spec.objective, "lambda_vlb", None)) == objective
    assert spec.timestep_sampler.name == sampler
    assert spec.model.rescale_timesteps is rescaled


def test_an_upsampler_cannot_be_trained_or_evaluated_and_says_what_it_can():
    with pytest.raises(ValidationError, match="cannot be trained, only imported"):
        published_spec("upsample_cond")
    with pytest.raises(ValueError, match="--low-res"):
        Evaluation(grid=4).resolve(published_spec("upsample_cond", SHA256), inception=False)
