"""A run that goes on from another: the same bits as one training, and a refusal of all that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.errors import SpecError
from harness.job import job
from harness.launch.planning import plan
from harness.records.directory import RunDirectory
from harness.records.status import Status
from harness.study.expand import load_study
from harness.training.checkpoints import Checkpoints

STEPS = 10  # a multiple of log_every, so that windows of the log end alike
HARD = """objective: hybrid
timestep_sampler: {name: loss_second_moment, history_per_term: 1}
evaluate: [{nll: {estimator: full, num_images: 4}, every: 5}]
"""
SETS = ("diffusion.var_type=learned_range", "diffusion.num_timesteps=5", "model.dropout=0.2")


def run_job(folder: Path) -> str:
    return job.run_job(folder, sync=False, show_progress=False)


def results(folder: Path, after: int = 0) -> list:
    rows = RunDirectory(folder).rows()
    left_out = ("perf/", "system/", "compute/")
    return [(row.key, row.x, row.value) for row in rows if row.train_step > after and not row.key.startswith(left_out)]


def state_of(folder: Path) -> dict:
    state = Checkpoints(folder / "checkpoints").load(2 * STEPS)
    return {name: state[name] for name in ("method", "timesteps", "window", "was_warm", "step")}


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.slow
def test_a_run_continued_to_twice_its_length_ends_in_the_bits_of_one_training(tiny_run):
    straight = tiny_run(HARD, *SETS, f"train.steps={2 * STEPS}")
    parent = tiny_run(HARD, *SETS, f"train.steps={STEPS}")
    assert run_job(straight) == run_job(parent) == "done"
    child = tiny_run(f"continue_from: '{parent.name}'\n{HARD}", *SETS, f"train.steps={2 * STEPS}")
    assert len({straight, parent, child}) == 3
    before = sorted(path.name for path in parent.rglob("*") if path.is_file())
    assert run_job(child) == "done"
    assert same(state_of(straight), state_of(child))
    assert results(child) == results(straight, after=STEPS)
    [lineage] = RunDirectory(child).events("continued")
    assert lineage.fields == {"run_key": parent.name, "step": STEPS}
    assert RunDirectory(child).events("started")[0].fields["resumed_from_step"] == STEPS
    assert sorted(path.name for path in parent.rglob("*") if path.is_file()) == before


def test_a_continued_run_needs_its_parent_only_once(tiny_run):
    parent = tiny_run()
    run_job(parent)
    child = tiny_run(f"continue_from: '{parent.name}'\n", "train.steps=14", "optim.lr=1.0e30")
    assert run_job(child) == "failed"
    assert Checkpoints(child / "checkpoints").steps() == [12]
    parent.rename(parent.with_name(".gone"))
    assert run_job(child) == "failed"
    assert "not a number at step" in RunDirectory(child).status().reason  # it got as far as that again


@pytest.fixture
def parent(tiny_run) -> RunDirectory:
    """A run that says that it is done."""
    directory = RunDirectory(tiny_run())
    directory.set_status(Status("done", 12, 12, 1))
    return directory


def refusal(parent: RunDirectory, key: str, *sets: str, extra: str = "") -> str:
    path = parent.path.parents[1] / "tiny.yaml"
    path.write_text(path.read_text() + f"continue_from: '{key}'\n{extra}")
    with pytest.raises(SpecError) as caught:
        plan(load_study(path, sets=sets), parent.path.parent)
    return str(caught.value)


def test_a_parent_that_is_not_there_is_refused_with_the_choices(parent):
    said = refusal(parent, "0123456789abcdef", "train.steps=20")
    assert said == f"continue_from: no run 0123456789abcdef in {parent.path.parent}; choices: {parent.key}"


def test_a_name_that_is_no_key_is_refused_where_it_is_written(parent):
    assert "tiny.yaml:10: continue_from: " in refusal(parent, "../etc")


def test_a_parent_that_is_not_done_is_refused(parent):
    parent.set_status(Status("interrupted", 7, 12, 1))
    said = refusal(parent, parent.key, "train.steps=20")
    assert f"run {parent.key} is interrupted; only a done run can be trained further" in said


@pytest.mark.parametrize("steps", [11, 12])
def test_a_continued_run_must_train_longer_than_its_parent(parent, steps):
    assert f"has trained for 12 steps, so train.steps must be more than that, not {steps}" in refusal(
        parent, parent.key, f"train.steps={steps}"
    )


def test_what_a_continued_run_must_share_is_refused_with_the_difference(parent):
    sets = (
        "train.steps=20",
        "model.channels=16",
        "data.horizontal_flip=true",
        "optim.lr=1.0",
        "optim.betas=[0.5, 0.9]",
    )
    assert refusal(parent, parent.key, *sets).splitlines() == [
        f"continue_from: run {parent.key} is of another kind:",
        "  data.horizontal_flip: stored False, now True",
        "  model.channels: stored 8, now 16",
        "  optim.betas: stored [0.9, 0.999], now [0.5, 0.9]",
    ]


def test_replicates_do_not_continue_one_run(parent):
    assert "seed: stored 0, now 1" in refusal(parent, parent.key, "train.steps=20", extra="replicates: 2\n")
