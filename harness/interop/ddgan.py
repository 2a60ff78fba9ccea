"""The generators that NVlabs/denoising-diffusion-gan published: settings, specs and file format.

`PUBLISHED` holds the commands of the repository's README, with its script's defaults filled in. Each file is the EMA
weights of the generator as the state dict of DistributedDataParallel, every name after `module.`, called `<file>.pth`.
The discriminator was not published.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.errors import CheckpointError
from harness.interop.files import Layout, look_up, read_state, write_state
from harness.models.layers import Latent
from harness.models.ncsnpp import NCSNpp, published_names
from harness.registry import make_network
from harness.spec.methods import Adversarial
from harness.spec.run import RunSpec

PREFIX = "module."


@dataclass(frozen=True)
class Published:
    """One published generator and its training.

    Attributes:
        arm: its name in studies.
        file: stem of the published file.
        epochs: that the weights were trained for; the file is named by the last one's number, counted from 0.
        epochs_of_training: of the whole command, over which the learning rates decay.
        batches_per_epoch: complete ones; the rest of the images is dropped in each epoch.
        settings: parts of the spec.
    """

    arm: str
    file: str
    epochs: int
    epochs_of_training: int
    batches_per_epoch: int
    settings: Mapping[str, Any]


def published_spec(name: str, sha256: str | None = None) -> RunSpec:
    """Return the spec of a published generator, from the command in its README.

    Args:
        name: a key of PUBLISHED, or the file's stem.
        sha256: of the file, whose number of epochs is then the number of steps; None for a new training by the whole
            command.

    Raises:
        CheckpointError: no such name.
    """
    entry = look_up(name, PUBLISHED)[1]
    epochs = entry.epochs if sha256 else entry.epochs_of_training
    train = entry.settings["train"] | {"steps": epochs * entry.batches_per_epoch}
    return RunSpec.model_validate({"imported_sha256": sha256, **entry.settings, "train": train})


def load_published(path: Path, name: str) -> dict[str, Tensor]:
    """Read a published generator and check that it fits the named configuration.

    Returns: the state dict of our network, on the CPU.

    Raises:
        CheckpointError: no such name, no readable state dict, values that are not finite, or another network's.
    """
    key, _ = look_up(name, PUBLISHED)
    state = read_state(path, key, PUBLISHED, _layout)
    return {ours: state[theirs] for ours, theirs in published_names(_build(key)).items()}


def save_published(network: nn.Module, path: Path) -> None:
    """Write a generator's weights atomically as a file in the published format, bit for bit.

    Raises:
        CheckpointError: the format has no name for a part of the network, or the file cannot be written.
    """
    assert isinstance(network, NCSNpp)
    if network.num_classes is not None:
        raise CheckpointError("a class-conditional generator cannot be exported: no published one has labels")
    state = network.state_dict()
    names = {f"{PREFIX}{theirs}": ours for ours, theirs in published_names(network).items()}
    write_state({theirs: state[ours] for theirs, ours in names.items()}, path)


def _build(name: str) -> NCSNpp:
    """Build a published generator without memory for its weights."""
    spec = published_spec(name)
    method = cast(Adversarial, spec.method)
    with torch.device("meta"):
        network = make_network(
            spec, spec.data.facts, latent=Latent(method.latent_dim, method.style_dim, method.mapping_layers)
        )
    assert isinstance(network, NCSNpp)
    return network


@cache
def _layout(name: str) -> Layout:
    """Return the shape of every entry of a published state dict, without the leading `module.`."""
    network = _build(name)
    shapes = {ours: list(value.shape) for ours, value in network.state_dict().items()}
    return {theirs: shapes[ours] for ours, theirs in published_names(network).items()}


_CIFAR10: dict[str, Any] = {
    "method": {
        "name": "ddgan",
        "latent_dim": 100,
        "style_dim": 256,
        "mapping_layers": 5,  # n_mlp 4, and the layer from z to the style's width
        "discriminator": {"name": "small", "channels": 64, "time_dim": 256},
        "lr_discriminator": 1.25e-4,
        "r1_gamma": 0.02,
        "r1_every": 15,
    },
    "data": {"name": "cifar10", "horizontal_flip": True},
    "diffusion": {"num_timesteps": 4, "schedule": {"name": "vp", "beta_min": 0.1, "beta_max": 20.0}},
    "model": {
        "name": "ncsnpp",
        "channels": 128,
        "channel_mult": (1, 2, 2, 2),
        "num_res_blocks": 2,
        "attention_resolutions": (16,),
    },
    "optim": {"lr": 1.6e-4, "betas": (0.5, 0.9), "decay": "cosine", "final_lr": 1e-5},
    "train": {"batch_size": 256, "ema_rate": 0.9999},
}
_CELEBAHQ256 = _CIFAR10 | {
    "method": _CIFAR10["method"]
    | {
        "mapping_layers": 4,
        "discriminator": {"name": "large", "channels": 64, "time_dim": 256},
        "lr_discriminator": 1e-4,
        "r1_gamma": 2.0,
        "r1_every": 10,
    },
    "data": {"name": "image_folder", "path": "celebahq256", "image_size": 256, "horizontal_flip": True},
    "diffusion": _CIFAR10["diffusion"] | {"num_timesteps": 2},  # the command; the paper reports T = 4 elsewhere
    "model": _CIFAR10["model"] | {"channels": 64, "channel_mult": (1, 1, 2, 2, 4, 4)},
    "optim": _CIFAR10["optim"] | {"lr": 2e-4},
    "train": {"batch_size": 32, "ema_rate": 0.9999},
}

PUBLISHED: dict[str, Published] = {
    # 50,000 images on 4 devices, 64 each; 27,000 images on 8 devices, 4 each.
    "ddgan_cifar10": Published("ddgan_cifar10", "netG_1200", 1201, 1801, 195, _CIFAR10),
    "ddgan_celebahq256": Published("ddgan_celebahq256", "netG_550", 551, 801, 843, _CELEBAHQ256),
}
