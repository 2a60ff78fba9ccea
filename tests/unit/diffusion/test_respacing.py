"""Kept steps against the reference's, IDDPM's and DDIM's; the respaced process against the long one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.diffusion import SCHEDULES, GaussianDiffusion, space_timesteps

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "spacing.npz")


def process_of(schedule, num_timesteps, **kw):
    return GaussianDiffusion(SCHEDULES[schedule](num_timesteps), mean_type="epsilon", var_type="fixed_large", **kw)


@pytest.mark.parametrize("key", GOLDEN.files)
def test_kept_steps_and_their_tables_are_the_references(key):
    num_timesteps, counts, *rest = key.split("/")
    kept = space_timesteps(int(num_timesteps), counts)
    if rest == ["timesteps"]:
        assert kept == GOLDEN[key].tolist()
    else:
        schedule, table = rest
        respaced = process_of(schedule, int(num_timesteps)).respaced(kept)
        np.testing.assert_allclose(getattr(respaced, table), GOLDEN[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "num_timesteps, counts, first, last",
    [
        (4000, "25", [0, 167, 333, 500, 666], [3499, 3666, 3832, 3999]),
        (4000, "50", [0, 82, 163, 245, 326], [3999]),
        (4000, "100", [0, 40, 81, 121, 162], [3878, 3918, 3959, 3999]),
        (1000, "250", [0, 4, 8, 12, 16], [999]),
        (4000, "ddim25", [0, 160], [3840]),
        (4000, "ddim100", [0, 40], [3960]),
    ],
)
def test_published_spacings_keep_their_published_steps(num_timesteps, counts, first, last):
    kept = space_timesteps(num_timesteps, counts)
    assert kept[: len(first)] == first and kept[-len(last) :] == last


def test_a_count_a_list_and_a_string_say_the_same():
    assert space_timesteps(1000, 250) == space_timesteps(1000, [250]) == space_timesteps(1000, "250")
    assert space_timesteps(300, [10, 15, 20]) == space_timesteps(300, "10, 15, 20")


def test_quadratic_steps_are_dense_near_the_data():
    kept = space_timesteps(1000, "quad50")
    assert (kept[0], kept[-1], len(kept)) == (0, 999, 50)
    assert kept[10:13] == [round(999 / 49**2 * i * i) for i in (10, 11, 12)]
    assert (np.diff(np.diff(kept)) >= -1).all()


@given(st.data(), st.integers(1, 400))
def test_every_spacing_keeps_exactly_the_steps_asked_for(data, num_timesteps):
    count = data.draw(st.integers(1, num_timesteps))
    for counts in [str(count), f"quad{count}"]:
        kept = space_timesteps(num_timesteps, counts)
        assert len(kept) == count and kept == sorted(set(kept)) and kept[0] == 0
        assert kept[-1] == (num_timesteps - 1 if count > 1 else 0)


@given(st.data(), st.integers(1, 400))
def test_an_integer_stride_is_found_wherever_there_is_one(data, num_timesteps):
    stride = data.draw(st.integers(1, num_timesteps))
    count = len(range(0, num_timesteps, stride))
    kept = space_timesteps(num_timesteps, f"ddim{count}")
    assert len(kept) == count and len(set(np.diff(kept))) <= 1


@pytest.mark.parametrize(
    "counts, complaint",
    [
        ("ddim30", "exactly 30 of 100 .* nearest possible numbers are 25 and 34"),
        ("ddim101", "exactly 101 of 100 "),
        ("101", "has 100 steps, cannot keep 101"),
        ("10,60", "section 2 of '10,60' has 50 steps, cannot keep 60"),
        ("quad101", "cannot keep 101 of 100"),
        ("fast", "cannot read 'fast'; choose a number"),
        ("ddim", "cannot read 'ddim'"),
        ("10,,5", "cannot read '10,,5'"),
        ("0", "at least one step"),
        ([], "at least one step"),
        ([5, -1], "at least one step"),
    ],
)
def test_impossible_spacings_are_refused_with_the_right_numbers(counts, complaint):
    with pytest.raises(ValueError, match=complaint):
        space_timesteps(100, counts)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("counts", ["25", "ddim50", "quad40", "10,15,20", "1", "4000"])
def test_respacing_keeps_alpha_bar_at_the_kept_steps(schedule, counts):
    full = process_of(schedule, 4000)
    kept = space_timesteps(4000, counts)
    respaced = full.respaced(kept)
    np.testing.assert_allclose(respaced.alphas_cumprod, full.alphas_cumprod[kept], rtol=0, atol=1e-15)
    assert respaced.timestep_map.tolist() == kept


def test_respacing_twice_maps_to_the_first_chain():
    twice = process_of("cosine", 1000).respaced(range(0, 1000, 10)).respaced([3, 50, 99])
    assert twice.timestep_map.tolist() == [30, 500, 990]
    assert twice.original_t(torch.tensor([2, 0])).tolist() == [990, 30]


def test_respacing_keeps_what_the_process_was_told():
    process = process_of("cosine", 100, levels=17, decoder="exact").respaced([0, 50])
    assert (process.mean_type, process.var_type, process.levels, process.decoder) == (
        "epsilon",
        "fixed_large",
        17,
        "exact",
    )


@pytest.mark.parametrize("kept", [[], [-1, 3], [5, 100]])
def test_steps_that_the_chain_has_not_are_refused(kept):
    with pytest.raises(ValueError, match=r"all of them in 0 \.\. 99"):
        process_of("cosine", 100).respaced(kept)
