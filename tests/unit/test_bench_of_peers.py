"""The arithmetic of the bench beside other libraries; nothing is timed here."""

from dataclasses import replace

import pytest
import torch

from benchmarks import earlier
from benchmarks.peers.environment import ROOT
from benchmarks.peers.ours import OURS, plain_attention, spec_of
from benchmarks.peers.settings import SETTINGS, num_parameters
from benchmarks.peers.tables import Row, Table, replace_section, seconds
from benchmarks.peers.timing import Ratio, Times, in_turns, ratio
from harness.models import unet
from harness.models.attention import published_attention


def table(*, parameters: int = 1000) -> Table:
    ours = Row("ours", Times((1.0, 2.0, 4.0), (2.0, 2.0, 2.0)), 1000, 0.5)
    theirs = Row("theirs", Times((1.5, 2.0, 8.0), (2.0, 4.0, 1.0)), parameters, 0.25)
    return Table("Training", "a step", "ours", (ours, theirs))


def test_ratios_are_taken_within_each_round():
    assert ratio([1.5, 2.0, 8.0], [1.0, 2.0, 4.0]) == Ratio(1.5, 1.0, 2.0)  # and not 2 / 2, the ratio of the medians


def test_ratios_of_other_numbers_of_rounds_are_refused():
    with pytest.raises(ValueError):
        ratio([1.0, 2.0], [1.0])


def test_a_table_has_medians_spreads_and_ratios_to_its_reference():
    header, _, ours, theirs = table().markdown().splitlines()

    assert header == "|  | parameters | GFLOP | processor, a step | wall, a step | processor | wall |"
    assert ours == "| **ours** | 1,000 | 0.5000 | 2 s (1 to 4) | 2 s (2 to 2) | 1 | 1 |"
    assert (
        theirs
        == "| theirs | 1,000 | 0.2500 | 2 s (1.5 to 8) | 2 s (1 to 4) | 1.50 (1.00 to 2.00) | 1.00 (0.50 to 2.00) |"
    )


def test_columns_without_values_are_left_out():
    rows = (Row("ours", Times((1.0,), (1.0,))), Row("theirs", Times((2.0,), (2.0,))))

    assert "parameters" not in Table("Start", "a process", "ours", rows).markdown()


def test_the_values_of_a_table_hold_every_round():
    row = table().values()["rows"][1]

    assert row["times"] == {"processor": (1.5, 2.0, 8.0), "wall": (2.0, 4.0, 1.0)}
    assert row["processor_ratio"] == {"median": 1.5, "lowest": 1.0, "highest": 2.0}


@pytest.mark.parametrize("parameters", [979, 1021])
def test_networks_of_other_sizes_are_not_compared(parameters):
    with pytest.raises(ValueError, match=f"theirs has {parameters:,} parameters and ours 1,000"):
        table(parameters=parameters)


def test_a_reference_that_was_not_measured_is_refused():
    with pytest.raises(ValueError, match="no row 'ours'; there are theirs"):
        Table("Training", "a step", "ours", (Row("theirs", Times((1.0,), (1.0,))),))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0, 1.05, 1.2], "1.05 s (1 to 1.2)"),
        ([0.05, 0.0612, 0.07], "61.2 ms (50 to 70)"),
        ([2e-5, 2e-5, 3e-5], "20 us (20 to 30)"),
    ],
)
def test_seconds_are_written_in_one_unit_with_their_spread(values, text):
    assert seconds(values) == text


def test_candidates_take_turns_and_the_first_round_does_not_count():
    calls: list[str] = []

    def measure(name: str, processor: float) -> tuple[float, float]:
        calls.append(name)
        return processor * len(calls), 1.0

    measures = {"a": lambda: measure("a", 1.0), "b": lambda: measure("b", 1.0)}
    times = in_turns(measures, rounds=2, units={"a": 1.0, "b": 10.0})

    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert times["a"] == Times((4.0, 5.0), (1.0, 1.0))
    assert times["b"] == Times((0.3, 0.6), (0.1, 0.1))


def test_a_section_is_replaced_where_it_stands_and_appended_where_there_is_none():
    first = replace_section("# Results\n", "peers", "one")
    others = replace_section(first, "kernels", "two")

    assert first == "# Results\n\n<!-- peers: begin -->\none\n<!-- peers: end -->\n"
    assert replace_section(others, "peers", "three") == others.replace("one", "three")


def test_a_section_without_an_end_is_refused():
    with pytest.raises(ValueError, match="has no end"):
        replace_section("<!-- peers: begin -->\nmine", "peers", "one")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours, plain", "ours, default"])
def test_our_candidates_train_and_sample_the_network_of_a_setting(name, monkeypatch):
    monkeypatch.setattr(unet, "published_attention", unet.published_attention)  # the plain one replaces it for good
    setting = replace(SETTINGS[-1], batch_size=2)
    candidate = OURS[name](setting)
    before = [weight.clone() for weight in candidate.network.parameters()]
    candidate.train()
    images = candidate.sample(2)

    assert not all(map(torch.equal, before, candidate.network.parameters()))
    assert images.shape == (setting.batch_size, setting.image_channels, setting.image_size, setting.image_size)
    assert num_parameters(candidate.network) == 755_009


@pytest.mark.slow
@pytest.mark.process  # the bench puts candidates of two checkouts into processes of their own
def test_a_checkouts_candidate_works_in_its_own_process():
    with earlier.candidate(ROOT, "ours, default", SETTINGS[-1]) as process:
        assert all(seconds > 0 for work in ("training", "sampling") for seconds in earlier.measure(process, work))
    assert process.returncode == 0


@pytest.mark.process  # of git
def test_what_is_no_commit_cannot_be_checked_out():
    with pytest.raises(SystemExit, match="name a commit"), earlier.checkout("no-such-commit"):
        pass


def test_plain_attention_is_the_published_one():
    qkv = torch.randn(2, 3 * 32, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    gradients = [
        torch.autograd.grad(attend(qkv, 4).square().sum(), qkv)[0] for attend in (plain_attention, published_attention)
    ]

    assert torch.equal(plain_attention(qkv, 4), published_attention(qkv, 4))
    torch.testing.assert_close(*gradients)


def test_only_the_hybrid_objective_learns_a_variance():
    assert spec_of(SETTINGS[0]).diffusion.var_type == "fixed"
    assert spec_of(SETTINGS[0], hybrid=True).diffusion.var_type == "learned_range"
