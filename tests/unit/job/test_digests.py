"""Two states of a training are compared bit by bit."""

import torch

from harness.job.verify import digests, first_state_difference


def test_a_digest_tells_dtype_shape_and_bits_apart():
    zero = torch.zeros(2)
    states = [zero, -zero, zero.double(), zero.reshape(1, 2), 0, 0.0, False, None, "0"]
    found = [digests({"a": [state]})["a.0"] for state in states]
    assert len(set(found)) == len(states)
    assert digests({"a": zero}) == digests({"a": torch.zeros(4)[::2]})


def test_the_first_difference_of_two_states_is_named_by_its_key():
    one = {"method": {"ema": {"w": torch.zeros(3)}}, "step": 5}
    other = {"method": {"ema": {"w": torch.tensor([0, 0, 0.5])}}, "step": 5}
    assert first_state_difference(one, one, 5) is None
    assert first_state_difference(one, other, 5) == "method.ema.w at step 5: 1 of 3 values, by up to 0.5"
