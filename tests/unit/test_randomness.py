import torch

from harness.randomness import Permutations, Streams, derive_seed


def test_every_epoch_shows_every_example_once_and_batches_go_on_across_its_end():
    order = Permutations(10, seed=3)
    seen = torch.cat([order.batch(step, 4) for step in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10))
    assert sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_a_batch_larger_than_the_data_spans_several_epochs():
    batch = Permutations(3, seed=0).batch(1, 7)
    assert len(batch) == 7
    assert sorted(batch[2:5].tolist()) == [0, 1, 2]  # places 9, 10, 11 are epoch 3


def test_the_order_at_a_step_does_not_depend_on_the_steps_before():
    walked = Permutations(50, seed=1)
    for step in range(20):
        last = walked.batch(step, 8)
    assert torch.equal(Permutations(50, seed=1).batch(19, 8), last)


def test_a_draw_depends_on_seed_stream_and_step_alone():
    streams = Streams(5)
    first = streams.normal("noise", 7, (4, 2))
    streams.normal("noise", 8, (4, 2))
    torch.manual_seed(0)
    assert torch.equal(streams.normal("noise", 7, (4, 2)), first)
    for other in (
        Streams(6).normal("noise", 7, (4, 2)),
        streams.normal("x_T", 7, (4, 2)),
        streams.normal("noise", 6, (4, 2)),
    ):
        assert not torch.equal(other, first)


def test_steps_of_one_stream_never_share_a_seed_of_torchs_cpu_generator():
    base = derive_seed(0, "noise")
    assert len({(base + step) & 0xFFFFFFFF for step in range(100_000)}) == 100_000


def test_noise_is_standard_normal_and_unrelated_between_steps():
    draws = torch.stack([Streams(0).normal("noise", step, (64, 64)) for step in range(32)]).flatten(1)
    assert abs(draws.mean()) < 0.01 and abs(draws.std() - 1) < 0.01
    assert torch.corrcoef(draws).triu(1).abs().max() < 0.1


def test_dropout_draws_what_torchs_own_seeding_would_give_it():
    torch.manual_seed(derive_seed(0, "dropout/3") + 7)
    expected = torch.rand(4)
    Streams(0).seed_dropout(7, 3)
    assert torch.equal(torch.rand(4), expected)


def test_dropout_is_seeded_by_step_and_rank():
    streams, masks = Streams(0), []
    for step, rank in [(1, 0), (1, 0), (2, 0), (1, 1)]:
        streams.seed_dropout(step, rank)
        masks.append(torch.nn.functional.dropout(torch.ones(100)))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2]) and not torch.equal(masks[0], masks[3])
