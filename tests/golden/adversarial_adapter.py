"""The project's own functions under the names that the reference's checker asks for: thin maps, nothing is computed."""

import sys
from pathlib import Path

import numpy as np
import torch

from harness.diffusion import adversarial
from harness.diffusion.pairs import posterior_sample as draw_posterior
from harness.diffusion.pairs import q_sample_pair as draw_pair
from harness.diffusion.pairs import sample_pairs
from harness.diffusion.process import GaussianDiffusion
from harness.diffusion.schedules import geometric, tables, vp
from harness.methods.ddgan import DenoisingGan, Draws, cosine_decay
from harness.metrics import mixture
from harness.metrics.fidelity import frechet_distance

sys.path.insert(0, str(Path(__file__).parent))  # not a package: the checker runs this file by its path

from adversarial_networks import (
    checkpoint_shapes,
    conv_downsample,
    discriminator,
    downsample,
    generator,
    minibatch_stddev,
    pixel_norm,
    published_discriminator_name,
    published_names,
    time_embedding,
    upsample,
)

__all__ = [
    "checkpoint_shapes",
    "conv_downsample",
    "downsample",
    "minibatch_stddev",
    "pixel_norm",
    "time_embedding",
    "upsample",
]


def process(num_timesteps):
    return GaussianDiffusion(vp(num_timesteps), mean_type="x_0", var_type="fixed_small", levels=None)


def schedule(num_timesteps, beta_min, beta_max, is_geometric):
    return tables((geometric if is_geometric else vp)(num_timesteps, beta_min, beta_max))._asdict()


def q_sample_pair(num_timesteps, x_0, t, noise_t, noise_next):
    return draw_pair(process(num_timesteps), x_0, t, noise_t, noise_next)


def posterior_sample(num_timesteps, x_0, x_next, t, noise):
    return draw_posterior(process(num_timesteps), x_0, x_next, t, noise)


def sample(num_timesteps, generator, x_T, z, noise):
    return sample_pairs(process(num_timesteps), generator, x_T, z, noise)


d_loss_real = adversarial.discriminator_loss_real
d_loss_fake = adversarial.discriminator_loss_fake
g_loss = adversarial.generator_loss


def r1_penalty(discriminator, x_t, t, x_next, gamma):
    x_t = x_t.detach().requires_grad_()
    return adversarial.r1_penalty(discriminator(x_t, t, x_next), x_t, gamma)


def afd(x_prev_fake, x_prev, x_t, beta, c_psi, target, renoise):
    options = {"cross_entropy": "printed", "target": target, "renoise": renoise}
    return adversarial.afd(x_prev_fake, x_prev, x_t, beta, c_psi, **options)


def afd_exact(x_prev_fake, x_prev, x_t, beta, c_psi, target, renoise):
    options = {"cross_entropy": "exact", "target": target, "renoise": renoise}
    return adversarial.afd(x_prev_fake, x_prev, x_t, beta, c_psi, **options)


def regression_loss(x_prev_fake, x_t, beta, c_psi, target, renoise):
    return adversarial.afd_regression(x_prev_fake, x_t, beta, c_psi, target=target, renoise=renoise)


def frechet(real, fake):
    return frechet_distance(torch.from_numpy(np.asarray(real)), torch.from_numpy(np.asarray(fake)))


mmd2 = mixture.mmd2


def train_modules(args, generator, discriminator, draws):
    """Train two modules as the reference's loop does; an epoch of its learning rate is an iteration here."""
    names = {module: {name: name for name, _ in module.named_parameters()} for module in (generator, discriminator)}
    return _train(args, generator, discriminator, draws, names)


def train(args, state_g, state_d, draws):
    """Train the published networks from given weights, named as theirs."""
    g, d = generator(args, state_g), discriminator(args["discriminator"], state_d)
    names = {g: published_names(g), d: {name: published_discriminator_name(name) for name, _ in d.named_parameters()}}
    return _train(args, g, d, draws, names)


def _train(args, generator, discriminator, draws, names):
    def adam(module, lr):
        return torch.optim.Adam(module.parameters(), lr=lr, betas=tuple(args["adam_betas"]), eps=args["adam_eps"])

    def decayed(lr):
        return cosine_decay(lr, args["num_epoch"], floor=args["lr_eta_min"])

    game = DenoisingGan(
        generator,
        discriminator,
        process(args["num_timesteps"]),
        adam(generator, args["lr_g"]),
        adam(discriminator, args["lr_d"]),
        learning_rates=(decayed(args["lr_g"]), decayed(args["lr_d"])),
        r1_gamma=args["r1_gamma"],
        r1_every=args["lazy_reg"],
        ema_rate=args["ema_decay"],
    )

    def weights(module, theirs):
        return {theirs[name]: value.detach().clone() for name, value in module.named_parameters()}

    iterations = []
    for step, draw in enumerate(draws):
        losses = game.update(step, draw["x_0"], _draws(draw["d"]), _draws(draw["g"]))
        iterations.append(
            {name: float(loss) for name, loss in losses.items()}
            | {f"{name[0]}_lr": optimizer.param_groups[0]["lr"] for name, optimizer in game.optimizers.items()}
            | {"g": weights(generator, names[generator]), "d": weights(discriminator, names[discriminator])}
            | {"ema": weights(game.ema, names[generator])}
        )
    return iterations


def _draws(draw):
    return Draws(draw["t"], draw["noise_t"], draw["noise_next"], draw["z"], draw["posterior_noise"])
