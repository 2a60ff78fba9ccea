"""AdamW as torch has it, without what only a compiled optimizer needs.

Torch guards the methods of its optimizers against being compiled, and the guards import torch._dynamo at their first
call: a second at the start of each process that trains. The methods behind the guards are the same.
"""

from __future__ import annotations

import inspect

import torch


class AdamW(torch.optim.AdamW):
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
