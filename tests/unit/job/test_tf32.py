"""What `train.precision` allows a GPU to round, and what it meant before it said so."""

import pytest
import torch

from harness.job.environment import set_tf32, tf32


@pytest.fixture(autouse=True)
def restored():
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    yield
    for switch, allowed in zip(switches, before, strict=True):
        switch.allow_tf32 = allowed


@pytest.mark.parametrize(
    ("precision", "environments", "where"),
    [
        ("fp32", [], "nowhere"),
        ("tf32", [], "matmul, convolutions"),
        ("bf16", [], "matmul, convolutions"),
        ("fp32", [{"tf32": "nowhere"}], "nowhere"),
        ("fp32", [{"torch": "2.9"}], "convolutions"),  # begun by an earlier version
        ("bf16", [{"torch": "2.9"}, {"tf32": "convolutions"}], "convolutions"),
    ],
)
def test_a_precision_allows_tf32_and_an_older_run_goes_on_as_it_was(precision, environments, where):
    set_tf32(precision, environments)
    assert tf32() == where
