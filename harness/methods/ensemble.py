"""Two trained networks that share a chain by t, as one method that can be measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.diffusion.process import GaussianDiffusion
from harness.diffusion.samplers import Denoise, ensemble
from harness.methods.base import Predict
from harness.methods.gaussian import GaussianMethod, guided_denoiser


@dataclass(frozen=True)
class Ensemble:
    """One method's network near both ends of the chain, another's for low <= t < high (IDDPM, appendix)."""

    ends: GaussianMethod
    middle: GaussianMethod
    low: int
    high: int

    def sampling_network(self, weights: str = "ema") -> nn.Module:
        """Return both networks with the chosen weights."""
        return nn.ModuleList([method.sampling_network(weights) for method in (self.ends, self.middle)])

    def predict(self, weights: str = "ema") -> Predict:
        """Return both networks as one, in eval mode, on the original chain's t."""
        ends, middle = self.ends.predict(weights), self.middle.predict(weights)

        def network(x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            by_t = ensemble(
                lambda x_t, t: ends(x_t, t, y), lambda x_t, t: middle(x_t, t, y), low=self.low, high=self.high
            )
            return by_t(x_t, t)

        return network

    def denoiser(
        self,
        weights: str,
        process: GaussianDiffusion,
        *,
        y: Tensor | None,
        generator: torch.Generator,
        clip: bool,
        guidance: float = 1.0,
        low_res: Tensor | None = None,
    ) -> Denoise:
        """Return the `denoise` function of both, with classifier-free guidance; draws nothing."""
        predict, num_classes = self.predict(weights), self.ends.num_classes
        return guided_denoiser(predict, process, y, clip=clip, guidance=guidance, num_classes=num_classes)
