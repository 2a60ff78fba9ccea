"""The networks with weights from a file, by random weights of the right shapes, and the random features."""

import dataclasses
import hashlib
import math

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data import load_dataset
from harness.errors import DataError
from harness.metrics.extractors import clip, dinov2, vgg
from harness.metrics.extractors.base import shapes_of
from harness.metrics.features import EXTRACTORS, READERS, load_extractor
from harness.metrics.torchvision_compat import torch_fidelity
from harness.metrics.weights import WEIGHTS


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    for published in WEIGHTS.values():
        monkeypatch.delenv(published.variable, raising=False)


def random_state(shapes, seed=0):
    """Random weights in little memory: the rows of a tensor are one sequence, each a number further along.

    Their sizes keep differences between images up to the last layer.
    """
    generator = torch.Generator().manual_seed(seed)
    return {name: _overlapping_rows(shape, generator) for name, shape in shapes.items()}


def _overlapping_rows(shape, generator):
    if len(shape) < 2:
        return torch.randn(shape, generator=generator) / 8 if shape else torch.tensor(0)
    row = math.prod(shape[1:])
    sequence = torch.randn(row + shape[0] - 1, generator=generator) * math.sqrt(2 / row)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(1, len(shape))]
    return sequence.as_strided(shape, (1, *strides))


@pytest.fixture(scope="module")
def dinov2_state():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dinov2, "DEPTH", 1)
        generator = torch.Generator().manual_seed(0)
        shapes = shapes_of(lambda: dinov2.DinoV2(1))
        # Of sizes that let the features of different images differ by far more than rounding.
        return {
            name: torch.randn(shape, generator=generator)
            * (1 if len(shape) in (1, 3) else math.prod(shape[1:]) ** -0.5)
            for name, shape in shapes.items()
        }


@pytest.fixture
def dinov2_file(dinov2_state, tmp_path, monkeypatch):
    monkeypatch.setattr(dinov2, "DEPTH", 1)
    torch.save(dinov2_state, tmp_path / "dinov2.pth")
    return tmp_path / "dinov2.pth"


def test_every_extractor_with_weights_from_elsewhere_has_a_reader():
    assert set(READERS) == set(WEIGHTS) <= set(EXTRACTORS)


@pytest.mark.parametrize("name", WEIGHTS)
def test_missing_weights_say_from_where_and_which_variable(name, digits, tmp_path):
    with pytest.raises(DataError, match=rf"{name}: no weights given\.\n  from: https://.*\n.*{WEIGHTS[name].variable}"):
        load_extractor(name, digits)
    with pytest.raises(DataError, match=f"{name}: no file"):
        load_extractor(name, digits, weights=tmp_path / "absent.pth")


@pytest.mark.parametrize("name", ["clip", "vgg", "dinov2"])
def test_a_file_of_another_network_is_refused_with_what_is_needed(name, digits, tmp_path):
    torch.save({"other.weight": torch.ones(2), "visual.other": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(
        DataError, match=r"the weights of another network(.|\n)*needed: the weights of .*\n  from: https"
    ):
        load_extractor(name, digits, weights=tmp_path / "other.pth")


# -- DINOv2


def test_the_keys_and_shapes_of_dinov2_are_those_of_the_published_file():
    shapes = shapes_of(lambda: dinov2.DinoV2(dinov2.DEPTH))
    block = {
        **{f"norm{i}.{kind}": (1024,) for i in (1, 2) for kind in ("weight", "bias")},
        **{"attn.qkv.weight": (3072, 1024), "attn.qkv.bias": (3072,)},
        **{"attn.proj.weight": (1024, 1024), "attn.proj.bias": (1024,)},
        **{"ls1.gamma": (1024,), "ls2.gamma": (1024,)},
        **{"mlp.fc1.weight": (4096, 1024), "mlp.fc1.bias": (4096,)},
        **{"mlp.fc2.weight": (1024, 4096), "mlp.fc2.bias": (1024,)},
    }
    assert shapes == {
        "cls_token": (1, 1, 1024),
        "pos_embed": (1, 1370, 1024),
        "mask_token": (1, 1024),
        "patch_embed.proj.weight": (1024, 3, 14, 14),
        "patch_embed.proj.bias": (1024,),
        **{f"blocks.{index}.{name}": shape for index in range(24) for name, shape in block.items()},
        "norm.weight": (1024,),
        "norm.bias": (1024,),
    }
    assert sum(np.prod(shape) for shape in shapes.values()) == 304_368_640  # published as 300 M


@pytest.mark.slow
def test_dinov2_is_the_published_function_of_its_weights(dinov2_state, dinov2_file, digits):
    """Against the formulas of the published code, written out with torch's own attention."""
    state, images = dinov2_state, digits.to_images(digits.test.images[:2])
    x = dinov2.prepared(torch.from_numpy(images))
    x = torch.nn.functional.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    grid = state["pos_embed"][:, 1:].reshape(1, 37, 37, 1024).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
    position = torch.cat([state["pos_embed"][:, :1], grid.permute(0, 2, 3, 1).reshape(1, 256, 1024)], 1)
    x = torch.cat([state["cls_token"].repeat(2, 1, 1), x.flatten(2).transpose(1, 2)], 1) + position

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, (1024,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def linear(x, name):
        return x @ state[f"blocks.0.{name}.weight"].T + state[f"blocks.0.{name}.bias"]

    attention = torch.nn.MultiheadAttention(1024, 16, batch_first=True)
    attention.load_state_dict(
        {
            "in_proj_weight": state["blocks.0.attn.qkv.weight"],
            "in_proj_bias": state["blocks.0.attn.qkv.bias"],
            "out_proj.weight": state["blocks.0.attn.proj.weight"],
            "out_proj.bias": state["blocks.0.attn.proj.bias"],
        }
    )
    with torch.no_grad():
        y = norm(x, "blocks.0.norm1")
        x = x + state["blocks.0.ls1.gamma"] * attention(y, y, y)[0]
        y = torch.nn.functional.gelu(linear(norm(x, "blocks.0.norm2"), "mlp.fc1"))
        x = x + state["blocks.0.ls2.gamma"] * linear(y, "mlp.fc2")
        expected = norm(x, "norm")[:, 0]
    extractor = load_extractor("dinov2", digits, weights=dinov2_file)
    features = extractor.features(images)
    assert features.shape == (2, extractor.feature_dim) == (2, 1024)
    assert features.std(0).mean() > 5e-3  # 50 times the tolerance
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert extractor.official is None  # no checksum is published
    assert extractor.digest == hashlib.sha256(dinov2_file.read_bytes()).hexdigest()


@pytest.mark.parametrize("size", [32, 64, 300])
def test_dinov2_sees_images_as_pil_resizes_them(size):
    images = np.random.default_rng(0).integers(80, 176, (1, 3, size, size), dtype=np.uint8)  # nothing overshoots 0, 255
    picture = Image.fromarray(images[0].transpose(1, 2, 0)).resize((224, 224), Image.Resampling.BICUBIC)
    theirs = torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).astype(np.float32) / 255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (dinov2.MEAN, dinov2.STD))
    ours = dinov2.prepared(torch.from_numpy(images))[0] * std + mean
    assert (ours - theirs).abs().max() < 1.5 / 255  # PIL rounds twice


@pytest.mark.slow
def test_dinov2_with_registers_is_another_network(dinov2_state, tmp_path, digits, monkeypatch):
    monkeypatch.setattr(dinov2, "DEPTH", 1)
    torch.save(dinov2_state | {"register_tokens": torch.zeros(1, 4, 1024)}, tmp_path / "reg4.pth")
    with pytest.raises(DataError, match="the weights of another network: register_tokens is unknown"):
        load_extractor("dinov2", digits, weights=tmp_path / "reg4.pth")


# -- CLIP and VGG, as torch-fidelity has them


@pytest.fixture
def clip_state(monkeypatch):
    monkeypatch.setattr(clip, "LAYERS", 1)
    texts = {"text_projection": torch.zeros(1, 512), "logit_scale": torch.tensor(1.0)}
    state = {name: value.half() for name, value in random_state(shapes_of(clip._visual)).items()}
    return {name: value.contiguous() for name, value in state.items()} | texts


class Tensors(torch.nn.Module):
    """A module with the entries of a state dict, as the published archive is one."""

    def __init__(self, state):
        super().__init__()
        for name, value in state.items():
            *parents, last = name.split(".")
            module = self
            for parent in parents:
                if parent not in module._modules:
                    module.add_module(parent, torch.nn.Module())
                module = module._modules[parent]
            module.register_buffer(last, value)

    def forward(self, x):
        return x


@pytest.mark.slow
def test_clip_gives_torch_fidelitys_features_and_runs_no_code_of_an_archive(clip_state, digits, tmp_path, monkeypatch):
    torch.save(clip_state, tmp_path / "state.pth")
    archive = tmp_path / "ViT-B-32.pt"
    torch.jit.trace(Tensors(clip_state), torch.ones(1)).save(str(archive))
    images = np.repeat(digits.to_images(digits.test.images[:2]), 3, 1)
    theirs = torch_fidelity().feature_extractor_clip.FeatureExtractorCLIP(
        "clip-vit-b-32", ["clip"], feature_extractor_weights_path=str(archive)
    )(torch.from_numpy(images))[0]
    extractor = load_extractor("clip", digits, weights=tmp_path / "state.pth")
    assert torch.equal(extractor.features(images[:, :1]), theirs)
    assert extractor.official is False and theirs.shape == (2, extractor.feature_dim) and theirs.std(0).min() > 0
    with pytest.raises(DataError, match="a TorchScript archive, whose code would be run, and not the published one"):
        load_extractor("clip", digits, weights=archive)
    published = dataclasses.replace(WEIGHTS["clip"], sha256=hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setitem(WEIGHTS, "clip", published)
    assert torch.equal(load_extractor("clip", digits, weights=archive).features(images), theirs)


@pytest.mark.slow
def test_vgg_gives_torch_fidelitys_features(digits, tmp_path, monkeypatch):
    for name in ("normal_", "kaiming_normal_", "kaiming_uniform_"):  # of 138 M weights that are overwritten at once
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *arguments, **options: tensor)
    torch.save(random_state(shapes_of(vgg.vgg16)), tmp_path / "vgg.pth")
    images = np.repeat(digits.to_images(digits.test.images[:2]), 3, 1)
    theirs = torch_fidelity().feature_extractor_vgg16.FeatureExtractorVGG16(
        "vgg16", ["fc2_relu"], feature_extractor_weights_path=str(tmp_path / "vgg.pth")
    )(torch.from_numpy(images))[0]
    extractor = load_extractor("vgg", digits, weights=tmp_path / "vgg.pth")
    assert torch.equal(extractor.features(images[:, :1]), theirs)
    assert theirs.shape == (2, extractor.feature_dim) == (2, 4096) and theirs.std(0).max() > 0


# -- random features


def test_random_features_are_the_same_on_every_machine(digits):
    extractor = load_extractor("random_features", digits)
    assert extractor.digest.startswith("513f6ef983e5d406")
    features = extractor.features(digits.to_images(digits.test.images[:4]))
    assert features.shape == (4, extractor.feature_dim) == (4, 384)
    assert torch.equal(
        features, load_extractor("random_features", digits).features(digits.to_images(digits.test.images[:4]))
    )


@pytest.mark.parametrize("size", [4, 5, 8, 32, 33, 64])
def test_random_features_take_images_of_any_size_grey_or_colour(size, digits):
    extractor = load_extractor("random_features", digits)
    grey = np.random.default_rng(0).integers(0, 256, (2, 1, size, size), dtype=np.uint8)
    features = extractor.features(grey)
    assert features.shape == (2, 384) and features.std(0).max() > 0
    assert torch.equal(features, extractor.features(np.repeat(grey, 3, 1)))
