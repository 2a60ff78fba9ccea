"""The arithmetic of the benchmarks of devices; nothing is timed here."""

import numpy as np
import pytest

from benchmarks.peers.timing import Times
from benchmarks.projection import BUCKET_BYTES, LEAST_STEP_SECONDS, Links, Network, bytes_sent, project
from benchmarks.tables import cost, difference, efficiency
from harness.launch.arithmetic import Arithmetic

BUCKETS = 4
NETWORK = Network("a network", Arithmetic(BUCKETS * BUCKET_BYTES // 4, 1e12, 3e11), 3 * 64 * 64)
FAST, SLOW = Links("fast", (1e12, 1e12), (0.0, 0.0)), Links("slow", (1e12, 1e9), (0.0, 0.0))


def test_each_process_of_a_ring_sends_nearly_twice_the_gradients():
    assert [bytes_sent(64, number) for number in (1, 2, 8, 64)] == [0, 64, 112, 126]


def test_a_step_takes_its_arithmetic_or_the_launch_of_its_kernels():
    assert NETWORK.compute_seconds(128) == pytest.approx(2 * 1e12 * 128 / (0.2 * 989.4e12))
    assert NETWORK.compute_seconds(1) == LEAST_STEP_SECONDS


def test_one_gpu_waits_for_nobody():
    step = project(NETWORK, SLOW, 1, 128)
    assert step.exposed_seconds == step.all_reduce_seconds == 0 and step.seconds == step.compute_seconds


def test_the_last_bucket_is_never_hidden():
    step = project(NETWORK, FAST, 64, 128)
    assert step.all_reduce_seconds == pytest.approx(2 * 63 / 64 * NETWORK.gradient_bytes / 1e12)
    assert step.exposed_seconds == pytest.approx(step.all_reduce_seconds / BUCKETS)


def test_what_takes_longer_than_the_backward_pass_is_waited_for():
    step = project(NETWORK, SLOW, 64, 1)
    assert step.exposed_seconds == pytest.approx(step.all_reduce_seconds - 2 / 3 * LEAST_STEP_SECONDS)
    assert step.exposed_seconds > step.compute_seconds


def test_the_slow_link_counts_from_the_second_node_on():
    assert project(NETWORK, SLOW, 8, 128) == project(NETWORK, FAST, 8, 128)
    assert project(NETWORK, SLOW, 16, 128).seconds > project(NETWORK, FAST, 16, 128).seconds


def test_efficiency_is_taken_within_each_round():
    assert efficiency([1.0, 2.0, 4.0], [2.0, 2.0, 5.0]) == "80% (50% to 100%)"


def test_a_part_has_its_share_of_a_step():
    part, step = Times((0.001, 0.002, 0.003), (0.01, 0.01, 0.01)), Times((0.1, 0.1, 0.1), (0.5, 0.5, 0.5))
    assert cost(part, step) == "2 ms, 2.00%; 10 ms"
    assert cost(part, step, wall=False) == "2 ms, 2.00%"


def test_weights_are_equal_only_to_the_bit():
    weights = np.ones(3, np.float32)
    assert difference(weights, weights.copy()) == "equal"
    assert difference(weights, np.nextafter(weights, np.float32(2))) == "1.2e-07"
