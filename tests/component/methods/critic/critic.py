"""A second method for the tests, as a plugin: its parameters, and the function that builds it."""

from typing import Literal

from harness.plugins import Field, MethodSpec


class Critic(MethodSpec):
    """Denoise, and be told from the data by a critic."""

    name: Literal["critic"] = "critic"
    weight: float = Field(0.1, ge=0)  # of the critic's verdict in the denoiser's loss
    critic_lr: float = Field(1e-3, gt=0)


METHODS = {"critic": (Critic, "critic_method.py:make_critic")}
