"""The eight checkpoints that openai/improved-diffusion published in March 2021: settings, specs and file format.

`PUBLISHED` holds the flags from the repository's README, with its scripts' defaults filled in. Each file is the EMA
weights (rate 0.9999) as a plain state dict, named `<file>.pt`.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.interop.files import Layout, look_up, read_state, write_state
from harness.models.unet import SuperResUNet, UNet
from harness.spec.run import RunSpec


@dataclass(frozen=True)
class Published:
    """One published checkpoint: its network and its training.

    Attributes:
        file: stem of the published file.
        image_size: height and width in pixels.
        network: arguments of UNet, or of SuperResUNet where low_res_size is set.
        diffusion: num_timesteps, schedule, learn_sigma; rescale_timesteps (the network sees t * 1000 / num_timesteps);
            rescale_learned_sigmas (L_hybrid with lambda 0.001, else 1 / num_timesteps); use_kl (L_vlb).
        training: lr, batch_size, schedule_sampler.
        low_res_size: pixels of the small image that an upsampler is given.
    """

    file: str
    image_size: int
    network: Mapping[str, Any]
    diffusion: Mapping[str, Any]
    training: Mapping[str, Any]
    low_res_size: int | None = None

    @property
    def arm(self) -> str:
        """Return its name in studies."""
        return self.file


def published(name: str) -> Published:
    """Look up a published checkpoint by its name in PUBLISHED or by its file's stem."""
    return look_up(name, PUBLISHED)[1]


def published_spec(name: str, sha256: str | None = None) -> RunSpec:
    """Return the spec of a published checkpoint, from the flags in its README.

    Args:
        name: a key of PUBLISHED, or the file's stem.
        sha256: of the file; None for a new training with these flags.

    Raises:
        CheckpointError: no such name.
        pydantic.ValidationError: the upsampler without a file; it can be sampled, not trained.
    """
    entry = published(name)
    network, diffusion, training = entry.network, entry.diffusion, entry.training
    size, num_timesteps = entry.image_size, diffusion["num_timesteps"]
    data: dict[str, Any] | None = {64: {"name": "imagenet64"}, 32: {"name": "cifar10"}}.get(size)
    if data is None:
        num_classes = network.get("num_classes")
        folder = "imagenet" if num_classes else "lsun_bedroom"
        data = {"name": "image_folder", "path": folder, "image_size": size, "num_classes": num_classes}
    lambda_vlb = 0.001 if diffusion["rescale_learned_sigmas"] else 1 / num_timesteps
    resampled = training["schedule_sampler"] == "loss-second-moment"
    steps = re.search(r"_(\d+)K", entry.file)
    assert steps, "every published file's name ends in its number of steps"
    return RunSpec.model_validate(
        {
            "imported_sha256": sha256,
            "data": data,
            "diffusion": {
                "num_timesteps": num_timesteps,
                "schedule": diffusion["schedule"],
                "var_type": "learned_range",
            },
            "objective": "vlb" if diffusion["use_kl"] else {"name": "hybrid", "lambda_vlb": lambda_vlb},
            "timestep_sampler": "loss_second_moment" if resampled else "uniform",
            "model": {
                "name": "unet",
                "channels": network["model_channels"],
                "channel_mult": tuple(network["channel_mult"]),
                "num_res_blocks": network["num_res_blocks"],
                "attention_resolutions": tuple(size // factor for factor in network["attention_resolutions"]),
                "num_heads": network["num_heads"],
                "dropout": network.get("dropout", 0.0),
                "use_scale_shift_norm": network["use_scale_shift_norm"],
                "class_cond": network.get("num_classes") is not None,
                "rescale_timesteps": diffusion["rescale_timesteps"],
                "low_res_size": entry.low_res_size,
            },
            "optim": {"lr": training["lr"]},
            "train": {"steps": 1000 * int(steps[1]), "batch_size": training["batch_size"]},
        }
    )


def build_published(name: str) -> UNet:
    """Build the network of a published checkpoint, freshly initialised, on torch's default device."""
    entry = published(name)
    return (UNet if entry.low_res_size is None else SuperResUNet)(**entry.network)


def load_published(path: str | os.PathLike, name: str) -> dict[str, Tensor]:
    """Read a checkpoint in the published format and check that it fits the named configuration.

    Args:
        path: a file that holds a state dict, `module.` before its names or not; nothing but tensors is unpickled.
        name: a key of PUBLISHED, or the file's stem as published.

    Returns: the state dict, on the CPU, for `build_published(name).load_state_dict`.

    Raises:
        CheckpointError: no such name, no readable state dict, values that are not finite, or a state dict of another
            network; then the message has the first entries that differ, and the published configuration that the file
            is nearest to.
    """
    published(name)
    return read_state(Path(path), name, PUBLISHED, _layout)


def save_published(state_dict: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Write a network's weights atomically as a file in the published format.

    Args:
        state_dict: of a UNet or a SuperResUNet, on any device; written as it is, bit for bit.
        path: the file to write or replace.

    Raises:
        CheckpointError: the file cannot be written.
    """
    write_state(state_dict, Path(path))


@cache
def _layout(name: str) -> Layout:
    """Return the shape of every entry of a published state dict."""
    with torch.device("meta"):
        return {key: list(value.shape) for key, value in build_published(name).state_dict().items()}


_IMAGENET64 = {
    "in_channels": 3,
    "model_channels": 128,
    "out_channels": 6,  # learn_sigma: the noise and the variance's interpolation
    "num_res_blocks": 3,
    "attention_resolutions": (4, 8),  # 16 and 8 pixels of 64
    "dropout": 0.0,
    "channel_mult": (1, 2, 3, 4),
    "num_classes": None,
    "num_heads": 4,
    "use_scale_shift_norm": True,
}
_CIFAR10 = _IMAGENET64 | {"attention_resolutions": (2, 4), "dropout": 0.3, "channel_mult": (1, 2, 2, 2)}
_LSUN = _IMAGENET64 | {
    "num_res_blocks": 2,
    "attention_resolutions": (16,),  # 16 pixels of 256
    "channel_mult": (1, 1, 2, 2, 4, 4),
    "num_heads": 1,
    "use_scale_shift_norm": False,
}
_UPSAMPLE = _IMAGENET64 | {
    "model_channels": 192,
    "num_res_blocks": 2,
    "attention_resolutions": (16, 32),  # 16 and 8 pixels of 256
    "channel_mult": (1, 1, 2, 2, 4, 4),
    "num_classes": 1000,
}

_COSINE_4000 = {
    "num_timesteps": 4000,
    "schedule": "cosine",
    "learn_sigma": True,
    "rescale_timesteps": True,
    "rescale_learned_sigmas": True,
    "use_kl": False,
}
_UNSCALED = {"rescale_timesteps": False, "rescale_learned_sigmas": False}
_LINEAR_1000 = _COSINE_4000 | _UNSCALED | {"num_timesteps": 1000, "schedule": "linear"}

_TRAINING = {"lr": 1e-4, "batch_size": 128, "schedule_sampler": "uniform"}
_RESAMPLED = _TRAINING | {"schedule_sampler": "loss-second-moment"}

PUBLISHED: dict[str, Published] = {
    "imagenet64_uncond": Published("imagenet64_uncond_100M_1500K", 64, _IMAGENET64, _COSINE_4000, _TRAINING),
    "cifar10_uncond": Published("cifar10_uncond_50M_500K", 32, _CIFAR10, _COSINE_4000, _TRAINING),
    "imagenet64_cond": Published(
        "imagenet64_cond_270M_250K",
        64,
        _IMAGENET64 | {"model_channels": 192, "num_classes": 1000},
        _COSINE_4000 | _UNSCALED,
        _TRAINING | {"lr": 3e-4, "batch_size": 2048},
    ),
    "upsample_cond": Published(
        "upsample_cond_500K",
        256,
        _UPSAMPLE,
        _COSINE_4000 | _UNSCALED | {"schedule": "linear"},
        _TRAINING | {"lr": 3e-4, "batch_size": 256},
        low_res_size=64,
    ),
    "lsun_uncond_bs128": Published("lsun_uncond_100M_1200K_bs128", 256, _LSUN, _LINEAR_1000, _TRAINING),
    "lsun_uncond_bs64": Published(
        "lsun_uncond_100M_2400K_bs64",
        256,
        _LSUN,
        _LINEAR_1000,
        _TRAINING | {"lr": 2e-5, "batch_size": 64},  # the README's command says 128, the file's name and the paper 64
    ),
    "imagenet64_uncond_vlb": Published(
        "imagenet64_uncond_vlb_100M_1500K", 64, _IMAGENET64, _COSINE_4000 | {"use_kl": True}, _RESAMPLED
    ),
    "cifar10_uncond_vlb": Published(
        "cifar10_uncond_vlb_50M_500K", 32, _CIFAR10, _COSINE_4000 | {"use_kl": True}, _RESAMPLED
    ),
}
