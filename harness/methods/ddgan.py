"""Denoising Diffusion GANs (Xiao et al. 2021): the discriminator judges pairs (x_t, x_{t+1}), real or generated."""

from __future__ import annotations

from harness.methods.adversarial import AdversarialMethod


class DenoisingGan(AdversarialMethod):
    """The non-saturating game on q(x_t, x_{t+1}), with R1 on x_t of the real pair (DDGAN, section 3 and appendix C).

        min_D  E softplus(-D(x_t, x_{t+1}, t)) + E softplus(D(x'_t, x_{t+1}, t)) + gamma / 2 E |grad_{x_t} D|^2
        min_G  E softplus(-D(x'_t, x_{t+1}, t)),   x'_t ~ q(x_t | x_{t+1}, x_0 = G(x_{t+1}, t, z))

    Arguments as for `AdversarialMethod`.
    """

    sees_pair = True
