"""Count the FLOPs of a network, for the compute axes of figures.

Counted, by torch.utils.flop_counter on the meta device (shapes only, so in an instant): convolutions, linear layers and
the two matrix products of attention. These three together give the multiply-adds of IDDPM's networks to the digit (its
"39 billion FLOPs" of the ImageNet-64 U-Net are multiply-adds); convolutions alone would give 39.34. Not counted:
normalisation, activations, the softmax, the optimizer and the EMA.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.errors import TrainingError


@dataclass(frozen=True)
class Compute:
    """An amount of compute in both conventions: the papers' multiply-adds, and FLOPs (two per multiply-add)."""

    multiply_adds: int

    @property
    def flops(self) -> int:
        return 2 * self.multiply_adds


def forward_compute(network: nn.Module, *inputs: Tensor | None, **named_inputs: Tensor | None) -> Compute:
    """Count one forward pass over a batch. Proportional to the batch: one example is enough.

    Args:
        network: on any device; it is neither run nor changed.
        inputs, named_inputs: its arguments, of which only shapes and types are used (meta tensors suffice).
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        _on_meta(network)(*map(_meta, inputs), **{name: _meta(value) for name, value in named_inputs.items()})
    return Compute(counter.get_total_flops() // 2)


def training_step_compute(network: nn.Module, *inputs: Tensor | None, **named_inputs: Tensor | None) -> Compute:
    """Count one forward and backward pass over a batch, to the gradients of the parameters that require them.

    It is a little less than three forward passes, the usual rule, since the data need no gradient. With activation
    checkpointing the recomputed forward pass is counted too. A network may return a tensor, or a tuple of tensors and
    None, all of which count.

    Args:
        network: on any device, in the mode in which it trains; it is not run, and not changed.
        inputs, named_inputs: what it is called with, of which only shapes and types are used (meta tensors will do).

    Raises:
        TrainingError: the network needs values, too: it keeps tensors that are no buffers, or asks for one's value.
    """
    with FlopCounterMode(display=False) as counter:
        try:
            output = _on_meta(network)(
                *map(_meta, inputs), **{name: _meta(value) for name, value in named_inputs.items()}
            )
            outputs = output if isinstance(output, tuple) else (output,)
            torch.stack([tensor.sum() for tensor in outputs if tensor is not None]).sum().backward()
        except Exception as error:  # a user's own network may do anything there
            raise TrainingError(f"cannot be counted by shapes alone: {type(error).__name__}: {error}") from error
    return Compute(counter.get_total_flops() // 2)


def _meta(value: Tensor | None) -> Tensor | None:
    return None if value is None else _shape(value)


def _shape(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape and type on the meta device."""
    return torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)


def _on_meta(network: nn.Module) -> nn.Module:
    """Copy a network to the meta device, without copying its values."""
    stand_ins = {id(p): nn.Parameter(_shape(p), requires_grad=p.requires_grad) for p in network.parameters()}
    return copy.deepcopy(network, stand_ins | {id(buffer): _shape(buffer) for buffer in network.buffers()})
