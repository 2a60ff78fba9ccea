"""Several averages of one network's weights, beside one another."""

import pytest
import torch
from torch import nn

from harness.diffusion.power_averages import exponent_of
from harness.methods.averages import Averages, exponential, power_function


def network(value: float = 0.0) -> nn.Linear:
    layer = nn.Linear(2, 3)
    for weight in layer.parameters():
        nn.init.constant_(weight, value)
    return layer


def walk(averages: Averages, layer: nn.Linear, steps: int) -> None:
    """Let every weight grow by 1 at each step."""
    for step in range(steps):
        with torch.no_grad():
            for weight in layer.parameters():
                weight.add_(1)
        averages.update(step)


def value_of(averages: Averages, name: str) -> float:
    values = torch.cat([weight.flatten() for weight in averages.networks[name].parameters()])
    assert torch.equal(values, values[:1].expand_as(values))
    return float(values[0])


def test_the_ema_of_weights_that_grow_by_one_is_the_geometric_sum():
    layer, steps = network(), 20
    averages = Averages(layer, {"ema": exponential(0.5), "0.9": exponential(0.9)})
    walk(averages, layer, steps)
    for name, rate in (("ema", 0.5), ("0.9", 0.9)):
        # from 0, sum of (1 - r) r^(n - k) k = n - r (1 - r^n) / (1 - r)
        assert value_of(averages, name) == pytest.approx(steps - rate * (1 - rate**steps) / (1 - rate), rel=1e-5)


def test_a_power_function_average_begins_at_the_weights_after_the_first_step():
    layer = network(100.0)
    averages = Averages(layer, {"ema": power_function(0.05), "0.1": power_function(0.1)})
    walk(averages, layer, 1)
    assert value_of(averages, "ema") == value_of(averages, "0.1") == 101


def test_of_weights_that_grow_by_one_it_is_the_same_share_of_the_last_at_any_time():
    layer, exponent = network(), exponent_of(0.1)
    averages = Averages(layer, {"ema": power_function(0.1)})
    walk(averages, layer, 2000)
    assert value_of(averages, "ema") / 2000 == pytest.approx((exponent + 1) / (exponent + 2), rel=1e-3)


def test_from_the_first_step_all_start_at_its_weights():
    layer = network(5.0)
    averages = Averages(layer, {"ema": exponential(0.99), "0.9": exponential(0.9)}, from_first_step=True)
    walk(averages, layer, 1)
    assert value_of(averages, "ema") == value_of(averages, "0.9") == 6


def test_an_only_average_is_stored_as_ever_and_others_beside_it():
    layer = network()
    assert list(Averages(layer, {"ema": exponential(0.9)}).state_dict()) == ["ema"]
    averages = Averages(layer, {"ema": exponential(0.5), "0.9": exponential(0.9)})
    walk(averages, layer, 3)
    state = averages.state_dict()
    assert (list(state), list(state["averages"])) == (["ema", "averages"], ["0.9"])
    other = Averages(network(7.0), {"ema": exponential(0.5), "0.9": exponential(0.9)})
    other.load_state_dict(state)
    assert [value_of(other, name) for name in ("ema", "0.9")] == [value_of(averages, name) for name in ("ema", "0.9")]
