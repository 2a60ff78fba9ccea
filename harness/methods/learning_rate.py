"""The learning rate of a step."""

import math
from typing import Literal

Decay = Literal["none", "linear", "cosine"]


def learning_rate(
    step: int, num_steps: int, peak: float, *, warmup_steps: int = 0, decay: Decay = "none", final: float = 0.0
) -> float:
    """Return the learning rate of a step: linear warm-up from 0, times what is left of the way from `final` to `peak`.

        linear: 1 - step / num_steps        cosine: (1 + cos(pi step / num_steps)) / 2               (DDGAN's code)

    Args:
        step: counted from 0.
        final: reached after the last step, if there is a decay.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    left = 1.0
    if decay == "linear":
        left = 1 - step / num_steps
    elif decay == "cosine":
        left = (1 + math.cos(math.pi * step / num_steps)) / 2
    return peak * warmup * left + final * warmup * (1 - left)
