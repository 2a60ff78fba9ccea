import numpy as np
import pytest
import torch

from harness.errors import CheckpointError
from harness.training.checkpoints import Checkpoints


def state(step):
    """A state like the trainer's: nested, with an optimizer's integer keys and the spec inside."""
    weights = torch.arange(6, dtype=torch.float32).reshape(2, 3) * step
    return {
        "step": step,
        "spec": {"schema_version": 1, "spec": {"optim": {"lr": 1e-4}, "name": "digits", "none": None}},
        "model": {"weight": weights},
        "optimizer": {"state": {0: {"exp_avg": weights / 3}}, "param_groups": [{"betas": (0.9, 0.999), "params": [0]}]},
    }


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints")


def test_a_state_comes_back_bit_for_bit(checkpoints):
    checkpoints.save(3, state(3))
    step, loaded = checkpoints.latest()
    assert step == 3
    assert torch.equal(loaded["model"]["weight"], state(3)["model"]["weight"])
    assert loaded["optimizer"]["param_groups"] == state(3)["optimizer"]["param_groups"]
    assert loaded["spec"] == state(3)["spec"]


def test_no_checkpoint_is_none(checkpoints):
    assert checkpoints.latest() is None


def test_the_last_two_the_best_and_every_nth_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_every=4)
    for step, score in enumerate([5.0, 3.0, 1.0, 2.0, 2.5, 2.0, 2.0, 1.0, 1.5], start=1):
        checkpoints.save(step, state(step), score=score)
    assert checkpoints.best_step() == 3
    assert checkpoints.steps() == [3, 4, 8, 9]


def test_a_score_belongs_to_its_step_and_counts_only_with_its_checkpoint(checkpoints):
    checkpoints.save(1, state(1), score=3.0)
    checkpoints.record_score(2, 1.0)  # as if the process had died before the checkpoint was renamed
    assert checkpoints.best_step() == 1
    checkpoints.save(2, state(2), score=2.0)
    checkpoints.save(3, state(3), score=float("nan"))
    assert checkpoints.best_step() == 2
    checkpoints.record_score(3, 0.5)  # measured once the training had ended
    assert checkpoints.best_step() == 3


def test_of_equal_scores_the_earliest_is_best(checkpoints):
    for step in (1, 2):
        checkpoints.save(step, state(step), score=2.0)
    assert checkpoints.best_step() == 1


def test_scores_of_another_metric_do_not_count(tmp_path):
    Checkpoints(tmp_path, metric="eval/nll_bpd of one protocol").save(1, state(1), score=1.0)
    other = Checkpoints(tmp_path, metric="eval/nll_bpd of another")
    assert other.best_step() is None
    other.save(2, state(2), score=5.0)
    assert other.best_step() == 2


def test_a_best_checkpoint_of_a_damaged_future_goes_with_it(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, state(10), score=2.0)
    checkpoints.save(20, state(20), score=1.0)
    checkpoints.save(15, state(15), score=3.0)
    assert checkpoints.steps() == [10, 15]
    assert checkpoints.best_step() == 10


def test_a_step_that_has_no_checkpoint_is_refused_with_those_that_have(checkpoints):
    checkpoints.save(10, state(10))
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7; it has \[10\]"):
        checkpoints.load(7)


def test_saving_a_step_again_leaves_one_file(checkpoints):
    checkpoints.save(5, state(5))
    checkpoints.save(5, state(6))
    assert checkpoints.steps() == [5]
    assert torch.equal(checkpoints.load(5)["model"]["weight"], state(6)["model"]["weight"])


def test_a_later_step_left_by_a_damaged_future_is_removed_and_does_not_count_as_newest(checkpoints):
    for step in (10, 20):
        checkpoints.save(step, state(step))
    checkpoints.save(15, state(15))
    assert checkpoints.steps() == [10, 15]


def test_what_a_killed_save_left_behind_is_removed_by_the_next(checkpoints):
    checkpoints.save(1, state(1))
    (checkpoints.folder / "step-00000002.tmp").write_bytes(b"half a checkpoint")
    assert checkpoints.latest()[0] == 1
    checkpoints.save(2, state(2))
    assert not list(checkpoints.folder.glob("*.tmp"))


@pytest.mark.parametrize("value", [np.float64(1.0), np.zeros(2), {1, 2}, object()])
def test_a_state_that_could_not_be_loaded_without_code_is_refused_by_path(checkpoints, value):
    with pytest.raises(CheckpointError, match=r"state\.trainer\[1\] is a "):
        checkpoints.save(1, {"trainer": [0, value]})
    assert checkpoints.steps() == []


def test_a_checkpoint_that_holds_code_is_not_run(checkpoints, tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("code was run",))

    import hashlib

    torch.save({"x": Evil()}, tmp_path / "evil")
    digest = hashlib.sha256((tmp_path / "evil").read_bytes()).hexdigest()
    checkpoints.folder.mkdir()
    (tmp_path / "evil").rename(checkpoints.folder / f"step-00000001-{digest}.pt")
    with pytest.raises(CheckpointError, match="code is never executed"):
        checkpoints.load(1)
