"""DDPM and Improved DDPM: schedules, the Gaussian process, objectives, timesteps, samplers.

Names load on first use (PEP 562): `schedules` and `respacing` need only NumPy, so that plans and figures never load
torch. An invalid value raises ValueError here; `plan` turns it into a SpecError with file and line.
NaN in a tensor is propagated, never hidden: the loop that owns the tensor decides what to do with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.diffusion.objectives import OBJECTIVES, training_terms
    from harness.diffusion.pairs import posterior_sample, q_sample_pair, sample_pairs
    from harness.diffusion.process import MEAN_TYPES, VAR_TYPES, Denoised, GaussianDiffusion
    from harness.diffusion.respacing import space_timesteps
    from harness.diffusion.samplers import (
        SAMPLERS,
        ancestral_step,
        ddim_reverse_step,
        ddim_step,
        denoiser,
        encode,
        ensemble,
        guided,
        interpolate,
        skip_fraction,
    )
    from harness.diffusion.schedules import SCHEDULES, Tables, tables
    from harness.diffusion.timesteps import TIMESTEP_SAMPLERS, LossSecondMomentSampler, UniformSampler

_HOME = {
    "schedules": ["SCHEDULES", "Tables", "tables"],
    "respacing": ["space_timesteps"],
    "process": ["Denoised", "GaussianDiffusion", "MEAN_TYPES", "VAR_TYPES"],
    "objectives": ["OBJECTIVES", "training_terms"],
    "pairs": ["posterior_sample", "q_sample_pair", "sample_pairs"],
    "timesteps": ["TIMESTEP_SAMPLERS", "LossSecondMomentSampler", "UniformSampler"],
    "samplers": [
        "SAMPLERS",
        "ancestral_step",
        "ddim_reverse_step",
        "ddim_step",
        "denoiser",
        "encode",
        "ensemble",
        "guided",
        "interpolate",
        "skip_fraction",
    ],
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
