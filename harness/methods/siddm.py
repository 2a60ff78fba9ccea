"""Semi-Implicit Denoising Diffusion Models (Xu et al. 2023): a game on the marginal of x_t, and a term for x_{t+1}.

The discriminator sees x_t alone, and so nothing of the x_{t+1} that the generator was given. That is left to the
auxiliary forward diffusion (AFD) term, whose entropy a regression head of the discriminator, C_psi, bounds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.diffusion.adversarial import (
    CPsiTarget,
    CrossEntropy,
    Verdict,
    afd_cross_entropy,
    afd_regression,
    generator_loss,
)
from harness.methods.adversarial import AdversarialMethod, Draws, Losses


class SemiImplicit(AdversarialMethod):
    """The non-saturating game on q(x_t), and lambda times the AFD term with its game over C_psi.

        min_D,C  E softplus(-D(x_t, t)) + E softplus(D(x'_t, t)) + lambda |C(x'_t) - target|^2 / beta
        min_G    E softplus(-D(x'_t, t)) + lambda (cross-entropy - |C(x'_t) - target|^2 / beta)

    `harness.diffusion.adversarial.afd` has the forms of the cross-entropy and the target. Squares are means over
    dimensions, as in the authors' code, so that lambda means the same at every size of image.

    Args:
        lambda_afd: weight of the AFD term; 0 leaves the game on the marginal alone.
        adversarial: False leaves the AFD term alone, lambda infinite.
        cross_entropy: "exact" or "printed".
        c_psi_target: "x_t" (here x_{t+1}) or "renoised"; None leaves C_psi and the entropy out, as the authors' code.
        others: as for `AdversarialMethod`.
    """

    sees_pair = False

    def __init__(
        self,
        *networks: Any,
        lambda_afd: float = 1.0,
        adversarial: bool = True,
        cross_entropy: CrossEntropy = "exact",
        c_psi_target: CPsiTarget | None = "x_t",
        **options: Any,
    ):
        super().__init__(*networks, **options)
        self._lambda_afd, self._adversarial = lambda_afd, adversarial
        self._cross_entropy, self._target = cross_entropy, c_psi_target if lambda_afd else None
        self.renoises = self._target == "renoised"
        if lambda_afd:
            self.terms_logged += ("afd_cross_entropy",)
        if self._target:
            self.terms_logged += ("afd", "afd_entropy")
            self.scalars_logged += ("regression_loss",)

    def further_discriminator_losses(
        self, verdict: Verdict, fake: Tensor, draws: Draws, x_next: Tensor
    ) -> tuple[Losses, Tensor | None]:
        """Return C_psi's regression."""
        if self._target is None:
            return {}, None
        loss = self._regression(verdict, fake, draws, x_next)
        return {"regression_loss": loss}, self._lambda_afd * loss

    def generator_losses(
        self, verdict: Verdict, fake: Tensor, draws: Draws, x_t: Tensor, x_next: Tensor
    ) -> tuple[Losses, Tensor]:
        """Return the loss of the game and the AFD term with its two parts."""
        losses = {"generator_loss": generator_loss(verdict.logits).flatten()}
        total = losses["generator_loss"] if self._adversarial else torch.zeros_like(losses["generator_loss"])
        if not self._lambda_afd:
            return losses, total
        beta = self._beta(draws, fake)
        dimensions = fake[0].numel()
        losses["afd_cross_entropy"] = afd_cross_entropy(fake, x_t, x_next, beta, form=self._cross_entropy) / dimensions
        term = losses["afd_cross_entropy"]
        if self._target is not None:
            losses["afd_entropy"] = self._regression(verdict, fake, draws, x_next)
            term = losses["afd"] = losses["afd_cross_entropy"] - losses["afd_entropy"]
        return losses, total + self._lambda_afd * term

    def _regression(self, verdict: Verdict, fake: Tensor, draws: Draws, x_next: Tensor) -> Tensor:
        """Return |C_psi(x'_t) - target|^2 / beta, the mean over dimensions, [B].

        C_psi = sqrt(1 - beta) x'_t + sqrt(beta) head(x'_t): at the true generator the head is 0 at every t.
        """
        assert verdict.x_next is not None, "the spec's validation asks for a discriminator with heads"
        beta = self._beta(draws, fake)
        column = beta.view(-1, *[1] * (fake.ndim - 1))
        prediction = (1 - column).sqrt() * fake + column.sqrt() * verdict.x_next
        assert self._target is not None
        loss = afd_regression(prediction, fake, x_next, beta, target=self._target, renoise=draws.renoise)
        return loss / fake[0].numel()

    def _beta(self, draws: Draws, like: Tensor) -> Tensor:
        return self.process.extract("betas", draws.t, like.new_empty(len(like)))
