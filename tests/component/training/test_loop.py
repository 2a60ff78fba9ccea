import math

import pytest
import torch

from harness.datasets import make_dataset
from harness.errors import TrainingError
from harness.randomness import Streams
from harness.records.directory import RunDirectory
from harness.records.journal import Journal
from harness.registry import make_learning_rate, make_method
from harness.spec.resources import Records, Resources
from harness.training.batches import Batches
from harness.training.checkpoints import Checkpoints
from harness.training.loop import Interrupted, Training, train

CPU = torch.device("cpu")


class Trial:
    """Train a planned run in a folder, with nothing around it but journal and checkpoints."""

    def __init__(self, run, folder, **records):
        self.run, self.directory = run, RunDirectory(folder / run.run_key)
        self.directory.create(run.resolved, 1)
        self.checkpoints = Checkpoints(self.directory.path / "checkpoints", keep_every=records.get("keep_every", 0))
        self.records = Records(**{"log_every": 5, "checkpoint_every_seconds": 1e9} | records)
        self.data = make_dataset(run.spec.data)

    def go(self, stop_after: int | None = None, measure=lambda step: None) -> Training:
        spec = self.run.spec
        training = Training(spec, make_method(spec, self.data, Resources(), CPU), CPU)
        found = self.checkpoints.latest()
        if found:
            training.load_state_dict(found[1])
        with self.directory.lock(), self.directory.open_journal(resumed_from_step=training.step) as journal:
            self.journal: Journal = journal
            train(
                training,
                self.data,
                journal=journal,
                checkpoints=self.checkpoints,
                records=self.records,
                measure=measure,
                on_log=lambda step, values: None,
                stop_requested=lambda: training.step == stop_after,
            )
        return training

    def weights(self) -> dict:
        return self.checkpoints.latest()[1]["method"]

    def results(self) -> list:
        return [(row.key, row.x, row.value) for row in self.directory.rows() if not row.key.startswith("perf/")]


def hard(tiny_study, *sets):
    return tiny_study(
        "objective: hybrid\ntimestep_sampler: {name: loss_second_moment, history_per_term: 1}\n",
        "diffusion.var_type=learned_range",
        "model.dropout=0.2",
        "diffusion.num_timesteps=5",
        "data.horizontal_flip=true",
        *sets,
    )[0]


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("stop_after", [1, 5, 7])
def test_a_stopped_and_resumed_training_ends_in_the_bits_of_an_unbroken_one(tiny_study, tmp_path, stop_after):
    unbroken, broken = Trial(hard(tiny_study), tmp_path / "a"), Trial(hard(tiny_study), tmp_path / "b")
    unbroken.go()
    with pytest.raises(Interrupted):
        broken.go(stop_after)
    broken.go()
    assert same(unbroken.weights(), broken.weights())
    assert same(unbroken.checkpoints.latest()[1], broken.checkpoints.latest()[1])
    assert unbroken.results() == broken.results()


def test_arms_of_one_replicate_share_data_order_noise_and_timesteps(tiny_study):
    one, other = tiny_study("", "objective=simple")[0], tiny_study("", "objective={name: min_snr}")[0]
    data = make_dataset(one.spec.data)
    first, second = (Batches(run.spec, data, Streams(run.spec.seed)) for run in (one, other))
    assert torch.equal(first(3).x_0, second(3).x_0)


def test_checkpoints_come_by_step_and_the_last_two_stay(tiny_study, tmp_path):
    trial = Trial(tiny_study()[0], tmp_path, keep_every=4)
    trial.go()
    assert trial.checkpoints.steps() == [4, 8, 12]
    assert [event.fields["step"] for event in trial.directory.events("checkpoint")] == [4, 8, 12]


def test_checkpoints_come_by_time(tiny_study, tmp_path):
    trial = Trial(tiny_study()[0], tmp_path, checkpoint_every_seconds=0.0)
    trial.go()
    assert [event.fields["step"] for event in trial.directory.events("checkpoint")] == list(range(1, 13))


def test_a_loss_that_is_not_a_number_stops_the_run_with_its_step_and_keeps_the_last_good_checkpoint(
    tiny_study, tmp_path
):
    trial = Trial(tiny_study("", "optim.lr=1e30", "train.steps=40")[0], tmp_path, log_every=3)
    with pytest.raises(TrainingError, match=r"not a number at step \d+ \(training images \d+, .*optim\.lr"):
        trial.go()
    for step in trial.checkpoints.steps():
        assert all(torch.isfinite(w).all() for w in trial.checkpoints.load(step)["method"]["network"].values())


def test_log_lines_are_means_over_their_window_and_the_last_one_is_short(tiny_study, tmp_path):
    trial = Trial(tiny_study()[0], tmp_path)
    trial.go()
    steps, values = trial.directory.history("train/loss")
    assert steps == [5, 10, 12]
    assert all(map(math.isfinite, values))
    every = Trial(tiny_study()[0], tmp_path / "every", log_every=1)
    every.go()
    singles = every.directory.history("train/loss")[1]
    assert values[0] == pytest.approx(sum(singles[:5]) / 5)
    assert values[2] == pytest.approx(sum(singles[10:]) / 2)


def test_the_sampler_of_timesteps_says_when_it_is_warm(tiny_study, tmp_path):
    trial = Trial(hard(tiny_study), tmp_path)
    trial.go()
    assert len(trial.directory.events("timestep_sampler_warm")) == 1


def test_measuring_comes_before_the_checkpoint_of_its_step(tiny_study, tmp_path):
    trial, order = Trial(tiny_study()[0], tmp_path, keep_every=4), []
    trial.go(measure=lambda step: order.append((step, list(trial.checkpoints.steps()))))
    assert order[3] == (4, [])
    assert order[4] == (5, [4])


def test_warmup_and_linear_decay_shape_the_learning_rate(tiny_study):
    spec = tiny_study("", "optim.warmup_steps=4", "optim.decay=linear")[0].spec
    rate = make_learning_rate(spec)
    assert rate(0) == pytest.approx(1e-3 / 4)
    assert rate(6) == pytest.approx(1e-3 / 2)


def test_flips_mirror_about_half_of_the_images(tiny_study):
    spec = tiny_study("", "data.horizontal_flip=true", "train.batch_size=256")[0].spec
    data = make_dataset(spec.data)
    batches = Batches(spec, data, Streams(0))
    plain = data.to_unit(data.train.images[batches.indices(2).numpy()])
    flipped = batches(2).x_0
    same_way = (flipped == plain).flatten(1).all(1)
    assert ((flipped == plain.flip(-1)).flatten(1).all(1) | same_way).all()
    assert 0.35 < same_way.float().mean() < 0.65
