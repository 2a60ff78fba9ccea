"""The networks of DDGAN under the names and arguments of the published code, whose vectors lie beside this file."""

from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.models.discriminators import (
    LargeDiscriminator,
    PublishedDiscriminator,
    SmallDiscriminator,
    minibatch_stddev,
)
from harness.models.discriminators import published_name as published_discriminator_name
from harness.models.fir import conv_downsample, downsample, upsample
from harness.models.layers import Latent, pixel_norm, time_embedding
from harness.models.ncsnpp import NCSNpp, published_names

__all__ = [
    "build_discriminator",
    "build_generator",
    "checkpoint_shapes",
    "conv_downsample",
    "discriminator",
    "downsample",
    "generator",
    "minibatch_stddev",
    "pixel_norm",
    "time_embedding",
    "upsample",
]

Network = TypeVar("Network", bound=torch.nn.Module)


class CalledAsPublished(PublishedDiscriminator):
    """A discriminator that returns its logits alone."""

    def forward(self, x_t: Tensor, t: Tensor, x_next: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x_t, t, x_next).logits


class SmallAsPublished(CalledAsPublished, SmallDiscriminator):
    pass


class LargeAsPublished(CalledAsPublished, LargeDiscriminator):
    pass


class GeneratorAsPublished(NCSNpp):
    """A generator whose third argument is z."""

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, t, z=z)


def build_discriminator(args: dict[str, Any]) -> PublishedDiscriminator:
    """Build a discriminator from the published code's arguments; its nc counts the channels of both images."""
    kinds = {"small": SmallAsPublished, "large": LargeAsPublished}
    return kinds[args["kind"]](
        args["nc"] // 2,
        pair=True,
        channels=args["ngf"],
        time_dim=args["t_emb_dim"],
        negative_slope=args["negative_slope"],
    )


def build_generator(args: dict[str, Any]) -> NCSNpp:
    """Build a generator from the published code's arguments."""
    return GeneratorAsPublished(
        in_channels=args["num_channels"],
        out_channels=args["num_channels"],
        image_size=args["image_size"],
        latent=Latent(args["nz"], style_dim=args["z_emb_dim"], mapping_layers=args["n_mlp"] + 1),
        channels=args["num_channels_dae"],
        channel_mult=args["ch_mult"],
        num_res_blocks=args["num_res_blocks"],
        attention_resolutions=args["attn_resolutions"],
    )


def discriminator(args: dict[str, Any], state: dict[str, Tensor]) -> PublishedDiscriminator:
    """Build a discriminator with published weights, of their type."""
    network = build_discriminator(args)
    names = {name: published_discriminator_name(name) for name, _ in network.named_parameters()}
    return _loaded(network, names, state)


def generator(args: dict[str, Any], state: dict[str, Tensor]) -> NCSNpp:
    """Build a generator with published weights, of their type."""
    network = build_generator(args)
    return _loaded(network, published_names(network), state)


def checkpoint_shapes(args: dict[str, Any]) -> dict[str, torch.Size]:
    """List what a published file of a generator has: name -> shape."""
    with torch.device("meta"):
        network = build_generator(args)
    parameters = dict(network.named_parameters())
    return {f"module.{theirs}": parameters[ours].shape for ours, theirs in published_names(network).items()}


def _loaded(network: Network, names: dict[str, str], state: dict[str, Tensor]) -> Network:
    if unknown := state.keys() - names.values():
        raise KeyError(f"no parameter of the network is called {sorted(unknown)}")
    network.to(next(iter(state.values())).dtype).load_state_dict(
        {ours: state[theirs] for ours, theirs in names.items()}
    )
    return network
