"""The eight checkpoints that openai/improved-diffusion published in March 2021: settings and file format.

`PUBLISHED` holds the flags from the repository's README, with its scripts' defaults filled in. Each file is the EMA
weights (rate 0.9999) as a plain state dict, named `<file>.pt`.
"""

import difflib
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.errors import CheckpointError, DataError
from harness.metrics.weights import read_state_dict
from harness.models.unet import SuperResUNet, UNet


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


def published(name: str) -> Published:
    """Look up a published checkpoint by its name in PUBLISHED or by its file's stem."""
    stem = name.removesuffix(".pt")
    for key, entry in PUBLISHED.items():
        if stem in (key, entry.file):
            return entry
    close = difflib.get_close_matches(stem, PUBLISHED, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise CheckpointError(f"{name!r} is not a published checkpoint; {hint}choices: {', '.join(PUBLISHED)}")


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
    entry = published(name)
    try:
        state = read_state_dict(Path(path))
    except DataError as error:
        raise CheckpointError(str(error)) from error

    shapes = {key: list(value.shape) for key, value in state.items()}
    if differences := _differences(shapes, _layout(entry.file)):
        raise CheckpointError(
            f"{path}: is not {name}, {len(differences)} entries differ: {'; '.join(differences[:3])}"
            f"{'; ...' if len(differences) > 3 else ''}. {_nearest(shapes)}"
        )
    return dict(state)


def save_published(state_dict: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Write a network's weights atomically as a file in the published format.

    Args:
        state_dict: of a UNet or a SuperResUNet, on any device; written as it is, bit for bit.
        path: the file to write or replace.

    Raises:
        CheckpointError: the file cannot be written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    plain = OrderedDict((key, _alone(value)) for key, value in state_dict.items())
    try:
        with partial.open("wb") as file:
            torch.save(plain, file)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error


def _alone(tensor: Tensor) -> Tensor:
    """Copy a tensor out of the storage that it may share, which torch.save would store whole."""
    return tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)


@cache
def _layout(name: str) -> dict[str, list[int]]:
    """Return the shape of every entry of a published state dict."""
    with torch.device("meta"):
        return {key: list(value.shape) for key, value in build_published(name).state_dict().items()}


def _differences(shapes: dict[str, list[int]], expected: dict[str, list[int]]) -> list[str]:
    """Describe how two state dicts' shapes differ."""
    missing = [f"{key} {shape} is missing" for key, shape in expected.items() if key not in shapes]
    unknown = [f"{key} {shape} is not in this network" for key, shape in shapes.items() if key not in expected]
    reshaped = [
        f"{key} is {shapes[key]} instead of {shape}"
        for key, shape in expected.items()
        if key in shapes and shapes[key] != shape
    ]
    return missing + unknown + reshaped


def _nearest(shapes: dict[str, list[int]]) -> str:
    """Name the published configurations that fit the shapes, or have the fewest differences."""
    distance = {name: len(_differences(shapes, _layout(name))) for name in PUBLISHED}
    least = min(distance.values())
    names = " or ".join(name for name in PUBLISHED if distance[name] == least)
    return f"It fits {names}" if least == 0 else f"No published one fits; nearest: {names} ({least} entries differ)"


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
