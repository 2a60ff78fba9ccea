import subprocess
import sys

import pytest
import torch

from harness.methods.optimizer import AdamW


def weights_and_state(kind):
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    optimizer = kind(network.parameters(), lr=1e-2, betas=(0.5, 0.9), weight_decay=0.1)
    for step in range(5):
        if step == 3:
            optimizer.load_state_dict(optimizer.state_dict())
        optimizer.zero_grad()
        network(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    state = optimizer.state_dict()["state"]
    return [*network.parameters(), *(value for entry in state.values() for value in entry.values())]


def test_the_optimizer_steps_as_torchs_does_bit_for_bit():
    ours, theirs = weights_and_state(AdamW), weights_and_state(torch.optim.AdamW)
    assert len(ours) == len(theirs) == 2 + 2 * 3
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.process
@pytest.mark.slow
def test_a_training_step_imports_no_compiler():
    script = """
import sys, torch
from harness.methods.optimizer import AdamW
weights = torch.nn.Parameter(torch.ones(3))
optimizer = AdamW([weights])
optimizer.zero_grad()
weights.sum().backward()
optimizer.step()
assert optimizer.state_dict()["state"]
print(*(name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules))
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == ""
