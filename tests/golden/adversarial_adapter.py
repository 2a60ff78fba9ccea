"""The project's own functions under the names that the reference's checker asks for: thin maps, nothing is computed."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from harness.diffusion import adversarial
from harness.diffusion.adversarial import Verdict
from harness.diffusion.pairs import posterior_sample as draw_posterior
from harness.diffusion.pairs import q_sample_pair as draw_pair
from harness.diffusion.pairs import sample_pairs
from harness.diffusion.process import GaussianDiffusion
from harness.diffusion.schedules import cosine_alpha_bar, geometric, tables, vp
from harness.methods.adversarial import Draws, Examples
from harness.methods.averages import exponential
from harness.methods.ddgan import DenoisingGan
from harness.methods.learning_rate import learning_rate
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


def d_loss_real(logits):
    return adversarial.discriminator_loss_real(logits).mean()


def d_loss_fake(logits):
    return adversarial.discriminator_loss_fake(logits).mean()


def g_loss(logits):
    return adversarial.generator_loss(logits).mean()


def r1_penalty(discriminator, x_t, t, x_next, gamma):
    x_t = x_t.detach().requires_grad_()
    return adversarial.r1_penalty(discriminator(x_t, t, x_next), x_t, gamma).mean()


def afd(x_prev_fake, x_prev, x_t, beta, c_psi, target, renoise):
    options = {"cross_entropy": "printed", "target": target, "renoise": renoise}
    return adversarial.afd(c_psi(x_prev_fake), x_prev_fake, x_prev, x_t, beta, **options)


def afd_exact(x_prev_fake, x_prev, x_t, beta, c_psi, target, renoise):
    options = {"cross_entropy": "exact", "target": target, "renoise": renoise}
    return adversarial.afd(c_psi(x_prev_fake), x_prev_fake, x_prev, x_t, beta, **options)


def regression_loss(x_prev_fake, x_t, beta, c_psi, target, renoise):
    return adversarial.afd_regression(c_psi(x_prev_fake), x_prev_fake, x_t, beta, target=target, renoise=renoise)


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


LOSSES = {
    "d_loss_real": "discriminator_loss_real",
    "d_loss_fake": "discriminator_loss_fake",
    "r1_penalty": "r1_penalty",
    "g_loss": "generator_loss",
}


class Published(torch.nn.Module):
    """A module that is called in the reference's order, for a method that calls it in ours."""

    def __init__(self, network, call):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *inputs):
        return self.call(self.network, *inputs)


def _train(args, generator, discriminator, draws, names):
    def adam(module, lr):
        return torch.optim.Adam(module.parameters(), lr=lr, betas=tuple(args["adam_betas"]), eps=args["adam_eps"])

    def decayed(lr):
        return partial(learning_rate, num_steps=args["num_epoch"], peak=lr, decay="cosine", final=args["lr_eta_min"])

    game = DenoisingGan(
        Published(generator, lambda network, x_next, t, y, z: network(x_next, t, z)),
        Published(discriminator, lambda network, x_t, t, x_next, y: Verdict(network(x_t, t, x_next))),
        process(args["num_timesteps"]),
        adam(generator, args["lr_g"]),
        adam(discriminator, args["lr_d"]),
        latent_dim=args["nz"],
        learning_rates=(decayed(args["lr_g"]), decayed(args["lr_d"])),
        r1_gamma=args["r1_gamma"],
        r1_every=args["lazy_reg"],
        averages={"ema": exponential(args["ema_decay"])},
    )

    def weights(module, theirs):
        return {theirs[name]: value.detach().clone() for name, value in module.named_parameters()}

    iterations = []
    for step, draw in enumerate(draws):
        terms, _ = game.update(step, Examples(draw["x_0"]), _draws(draw["d"]), _draws(draw["g"]))
        losses = {name: terms[ours].mean().item() if ours in terms else 0.0 for name, ours in LOSSES.items()}
        iterations.append(
            losses
            | {f"{name[0]}_lr": optimizer.param_groups[0]["lr"] for name, optimizer in game.optimizers.items()}
            | {"g": weights(generator, names[generator]), "d": weights(discriminator, names[discriminator])}
            | {"ema": weights(game.ema.network, names[generator])}
        )
    return iterations


def toy_process(*betas):
    return GaussianDiffusion(np.array(betas), mean_type="x_0", var_type="fixed_small", levels=None)


def toy_step(num_timesteps, x_0, x_0_pred, t_next, noise_t, noise_next, posterior_noise, renoise):
    """Take a step of the authors' toy, whose t is continuous: for each example it is the second of two of our steps."""
    values = []
    for i, u_next in enumerate(t_next.double().tolist()):
        alphas = [cosine_alpha_bar(u) for u in (max(u_next - 1 / num_timesteps, 0.0), u_next)]
        kept = alphas[1] / alphas[0]  # 1 - beta
        beta = torch.tensor([1 - kept], dtype=torch.float64).to(x_0)
        x, prediction, *noises = (
            value[i : i + 1] for value in (x_0, x_0_pred, noise_t, noise_next, posterior_noise, renoise)
        )
        if beta < 1:
            chain = toy_process(1 - alphas[0], 1 - kept)
            x_t, x_next = draw_pair(chain, x, torch.tensor([1]), *noises[:2])
            fake = draw_posterior(chain, prediction, x_next, torch.tensor([1]), noises[2])
        else:  # nothing is left of x_0 at u = 1, which no process of ours allows: x_{t+1} is its noise
            chain, first = toy_process(1 - alphas[0]), torch.tensor([0])
            x_t, x_next = chain.q_sample(x, first, noises[0]), noises[1]
            fake = chain.q_sample(prediction, first, noises[2])
        renoised = (1 - beta).sqrt() * fake + beta.sqrt() * noises[3]
        values.append((torch.tensor(alphas, dtype=torch.float64), torch.cat([x_t, x_next, fake, renoised])))
    alphas, drawn = torch.stack([value[0] for value in values]), torch.stack([value[1] for value in values], 1)
    names = ("x_t", "x_next", "posterior_sample", "renoised")
    # Without C_psi, renoised: the authors' loss is a cross-entropy with another weight and one more draw of noise.
    error = (drawn[3] - drawn[1]).square().mean()
    tables = {"alphas_cumprod_t": alphas[:, 0], "alphas_cumprod_next": alphas[:, 1]}
    return tables | dict(zip(names, drawn, strict=True)) | {"error_condition": error}


def _draws(draw):
    return Draws(draw["t"], draw["noise_t"], draw["noise_next"], draw["z"], draw["posterior_noise"])
