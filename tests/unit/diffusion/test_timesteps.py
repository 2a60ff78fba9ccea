"""Timestep samplers: the reference's history to the last digit, unbiased weights, and state that survives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.diffusion import TIMESTEP_SAMPLERS, LossSecondMomentSampler, UniformSampler
from harness.errors import CheckpointError

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "loss_second_moment.npz")


def one_by_one(history, updates, uniform_prob=0.001):
    """The algorithm in words, as slow as it is plain: weights after updates to lists that forget their oldest."""
    for t, loss in updates:
        history[t] = [*history[t], loss][-10:]
    if any(len(losses) < 10 for losses in history):
        return np.ones(len(history))
    root = np.array([np.sqrt(np.mean(np.square(losses))) for losses in history])
    return (1 - uniform_prob) * root / root.sum() + uniform_prob / len(history)


def warm_sampler(num_timesteps=8):
    sampler = LossSecondMomentSampler(num_timesteps)
    for _ in range(10):
        sampler.update(torch.arange(num_timesteps), torch.arange(1.0, num_timesteps + 1))
    return sampler


def test_forty_updates_are_the_references():
    sampler = LossSecondMomentSampler(16, history_per_term=10, uniform_prob=0.001)
    for t, loss, weights in zip(GOLDEN["t"], GOLDEN["loss"], GOLDEN["weights"], strict=True):
        sampler.update(torch.tensor(t), torch.tensor(loss))
        np.testing.assert_allclose(sampler.weights(), weights, rtol=1e-12)
    assert sampler.warm and GOLDEN["weights"][0].tolist() == [1.0] * 16


@settings(max_examples=30)
@given(st.lists(st.lists(st.tuples(st.integers(0, 2), st.floats(0.01, 100)), max_size=60), max_size=6))
def test_a_batch_counts_as_its_losses_one_after_another(batches):
    sampler, history = LossSecondMomentSampler(3), [[], [], []]
    for batch in batches:
        sampler.update(
            torch.tensor([t for t, _ in batch], dtype=torch.int64), torch.tensor([loss for _, loss in batch])
        )
        # Losses arrive in float32.
        expected = one_by_one(history, [(t, float(np.float32(loss))) for t, loss in batch])
        np.testing.assert_allclose(sampler.weights(), expected, rtol=1e-12)
        assert sampler.warm == all(len(losses) == 10 for losses in history)


def test_the_sampler_is_uniform_until_every_t_has_a_full_history():
    sampler = LossSecondMomentSampler(4, history_per_term=2)
    sampler.update(torch.tensor([0, 1, 2, 3, 0, 1, 2]), torch.arange(7.0))
    assert not sampler.warm and sampler.weights().tolist() == [1] * 4
    sampler.update(torch.tensor([3]), torch.tensor([9.0]))
    assert sampler.warm and sampler.weights().sum() == pytest.approx(1, abs=1e-15)


def test_losses_that_are_not_finite_are_not_remembered():
    sampler, spoilt = warm_sampler(), warm_sampler()
    t, loss = torch.tensor([1, 2, 1, 3]), torch.tensor([5.0, torch.nan, torch.inf, 7.0])
    spoilt.update(t, loss)
    sampler.update(t[[0, 3]], loss[[0, 3]])
    assert torch.equal(spoilt.weights(), sampler.weights())


def test_losses_of_zero_everywhere_leave_it_uniform():
    sampler = LossSecondMomentSampler(3, history_per_term=1)
    sampler.update(torch.arange(3), torch.zeros(3))
    assert sampler.weights().tolist() == [1, 1, 1]


def test_ranks_that_update_from_one_global_batch_agree():
    ranks = [warm_sampler(), warm_sampler()]
    t, loss = torch.tensor([3, 3, 1, 3]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    for rank in ranks:
        rank.update(t, loss)
    assert torch.equal(ranks[0].weights(), ranks[1].weights())


@pytest.mark.parametrize("name", TIMESTEP_SAMPLERS)
def test_every_sampler_draws_by_its_weights_and_weighs_by_one_over_T_p(name):
    sampler = TIMESTEP_SAMPLERS[name](8) if name == "uniform" else warm_sampler()
    p = sampler.weights() / sampler.weights().sum()
    t, weights = sampler.sample(20_000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(weights.double(), 1 / (8 * p[t]), rtol=1e-6, atol=0)
    share = torch.bincount(t, minlength=8) / len(t)
    assert (share - p).abs().max() < 4 * (0.25 / 20_000) ** 0.5
    assert weights.dtype == torch.float32 and t.dtype == torch.int64
    # Sum over t of p_t (1 / (T p_t)) f(t) is the plain mean of f: the estimate is unbiased.
    f = torch.arange(8.0)
    assert (weights * f[t]).mean().item() == pytest.approx(f.mean().item(), abs=0.1)


def test_timesteps_are_the_inverse_distribution_function_of_the_callers_numbers():
    t, weights = UniformSampler(4).from_uniform(
        torch.tensor([0.0, 0.249, 0.25, 0.5, 0.9999999999], dtype=torch.float64)
    )
    assert t.tolist() == [0, 0, 1, 2, 3] and weights.tolist() == [1.0] * 5
    assert UniformSampler(3).from_uniform(torch.ones(1, dtype=torch.float64))[0].tolist() == [2]


def test_a_draw_depends_on_the_generator_alone():
    sampler = warm_sampler()
    first, second = (sampler.sample(16, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first[0], second[0])


def test_a_restored_history_goes_on_as_if_never_interrupted():
    unbroken, before = warm_sampler(), warm_sampler()
    restored = LossSecondMomentSampler(8)
    t, loss = torch.tensor([0, 5, 5]), torch.tensor([9.0, 8.0, 7.0])
    unbroken.update(t, loss)
    before.update(t, loss)
    state = before.state_dict()
    before.update(t, 100 * loss)  # what happens after saving stays out of the state
    restored.load_state_dict(state)
    for sampler in (unbroken, restored):
        sampler.update(torch.tensor([5, 1]), torch.tensor([3.0, 4.0]))
    assert torch.equal(restored.weights(), unbroken.weights()) and restored.warm


@pytest.mark.parametrize("other", [LossSecondMomentSampler(9), LossSecondMomentSampler(8, history_per_term=5)])
def test_a_history_of_another_shape_is_refused(other):
    with pytest.raises(CheckpointError, match=r"history must be \[8, 10\], found"):
        LossSecondMomentSampler(8).load_state_dict(other.state_dict())


def test_a_uniform_sampler_refuses_a_history_and_the_other_refuses_none():
    with pytest.raises(CheckpointError, match="has no state, the checkpoint has"):
        UniformSampler(8).load_state_dict(warm_sampler().state_dict())
    with pytest.raises(CheckpointError, match="found none"):
        LossSecondMomentSampler(8).load_state_dict(UniformSampler(8).state_dict())


@pytest.mark.parametrize(
    "call, complaint",
    [
        (lambda: UniformSampler(0), "num_timesteps must be at least 1"),
        (lambda: LossSecondMomentSampler(4, history_per_term=0), "history_per_term"),
        (lambda: LossSecondMomentSampler(4, uniform_prob=1.5), "uniform_prob"),
        (lambda: LossSecondMomentSampler(4).update(torch.tensor([4]), torch.ones(1)), r"0 \.\. 3, got 4"),
        (lambda: LossSecondMomentSampler(4).update(torch.tensor([-1]), torch.ones(1)), r"0 \.\. 3, got -1"),
        (lambda: LossSecondMomentSampler(4).update(torch.tensor([1]), torch.ones(2)), r"must both be \[B\]"),
    ],
)
def test_impossible_arguments_are_refused(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_updates_and_draws_do_not_make_the_host_wait():
    sampler, generator = LossSecondMomentSampler(8, device="cuda"), torch.Generator("cuda")
    t, loss = torch.tensor([0, 5, 5], device="cuda"), torch.ones(3, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampler.update(t, loss)
        sampler.sample(16, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
