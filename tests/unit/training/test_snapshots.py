"""Snapshots of power-function averages, and the averages of other widths that are made of them."""

import pytest
import torch
from torch import nn

from harness.errors import CheckpointError
from harness.methods.averages import Averages, power_function
from harness.records.disk import checkpoint_files, snapshot_files
from harness.spec.run import Train
from harness.training.checkpoints import load_file
from harness.training.snapshots import save_snapshot, synthesise

EVERY = 20
TRAIN = Train.model_validate({"steps": 400, "ema": {"power": [0.05, 0.1], "every": EVERY}})


class Walk:
    """Weights that walk at random, and their averages: what a snapshot needs of a method."""

    def __init__(self):
        self.network = nn.Linear(8, 4)
        self.averages = Averages(self.network, {"ema": power_function(0.05), "0.1": power_function(0.1)})
        self.directly = Averages(self.network, {"ema": power_function(0.07)})
        self.generator = torch.Generator().manual_seed(0)

    def sampling_network(self, weights: str) -> nn.Module:
        return self.averages.networks[weights]

    def train(self, folder, steps: int) -> None:
        for step in range(steps):
            with torch.no_grad():
                for weight in self.network.parameters():
                    weight.add_(0.1 * torch.randn(weight.shape, generator=self.generator))
            self.averages.update(step)
            self.directly.update(step)
            if (step + 1) % EVERY == 0:
                save_snapshot(folder, step + 1, self.sampling_network, TRAIN)


def distance(state, network: nn.Module) -> float:
    return max(float((state[name] - value).abs().max()) for name, value in network.state_dict().items())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, walk = tmp_path_factory.mktemp("run") / "checkpoints", Walk()
    walk.train(folder, TRAIN.steps)
    return folder, walk


def test_a_snapshot_holds_both_averages_in_half_precision_under_its_digest(trained):
    folder, walk = trained
    assert [step for step, _ in snapshot_files(folder)] == list(range(20, 401, 20))
    assert checkpoint_files(folder) == []  # one is not taken for the other
    state = load_file(snapshot_files(folder)[-1][1])
    assert (state["step"], list(state["averages"])) == (400, ["ema", "0.1"])
    assert state["averages"]["0.1"]["weight"].dtype == torch.float16
    assert torch.equal(state["averages"]["0.1"]["weight"], walk.sampling_network("0.1").weight.half())


@pytest.mark.parametrize(("width", "name"), [(0.05, "ema"), (0.1, "0.1")])
def test_a_width_that_is_stored_is_the_average_itself(trained, width, name):
    folder, walk = trained
    assert distance(synthesise(folder, 400, walk.sampling_network, TRAIN, width), walk.sampling_network(name)) < 1e-6


def test_another_width_is_what_tracking_it_would_have_given(trained):
    folder, walk = trained
    state, expected = synthesise(folder, 400, walk.sampling_network, TRAIN, 0.07), walk.directly.networks["ema"]
    apart = distance(walk.sampling_network("ema").state_dict(), walk.sampling_network("0.1"))
    assert distance(state, expected) < 0.01 * apart
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_a_snapshot_that_is_written_again_replaces_the_one_of_its_step(tmp_path):
    walk = Walk()
    walk.train(tmp_path, 20)
    ((_, first),) = snapshot_files(tmp_path)
    assert save_snapshot(tmp_path, 20, walk.sampling_network, TRAIN) == first
    walk.network.load_state_dict(nn.Linear(8, 4).state_dict())
    walk.averages.update(20)
    other = save_snapshot(tmp_path, 20, walk.sampling_network, TRAIN)
    assert snapshot_files(tmp_path) == [(20, other)] and other != first


def test_a_missing_or_damaged_snapshot_is_refused(tmp_path):
    walk = Walk()
    walk.train(tmp_path, 60)
    (_, first), (_, second), _ = snapshot_files(tmp_path)
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        synthesise(tmp_path, 60, walk.sampling_network, TRAIN, 0.07)
    second.unlink()
    with pytest.raises(CheckpointError, match="snapshot of step 40 is missing"):
        synthesise(tmp_path, 60, walk.sampling_network, TRAIN, 0.07)
    assert first.exists()
