"""Several averages of the weights in a run: measured by choice, and the same bits after kills."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.errors import SpecError
from harness.evaluation.sampling import SampleSettings, sample_run
from harness.job.job import run_job
from harness.job.verify import first_state_difference
from harness.records.directory import RunDirectory
from harness.records.disk import snapshot_files
from harness.spec.evaluation import Ddim
from harness.training.checkpoints import Checkpoints

NLL = "nll: {estimator: full, num_images: 2}"


def run(folder: Path, **options) -> str:
    return run_job(folder, sync=False, show_progress=False, **options)


def final(folder: Path) -> dict:
    latest = Checkpoints(folder / "checkpoints").latest()
    assert latest is not None and latest[0] == 12
    return latest[1]


def sampled_names(folder: Path) -> list[str]:
    return [path.name for path in RunDirectory(folder).samples_folder.glob("*.npz")]


def values(folder: Path) -> dict[str, float]:
    return {row.key: row.value for row in RunDirectory(folder).rows() if row.key.endswith("/nll_bpd")}


def sampled(folder: Path, **settings) -> np.ndarray:
    path = sample_run(folder, SampleSettings(Ddim(), 2, 4, **settings))
    return np.load(path.with_suffix(".npz"))["samples"]


@pytest.mark.slow
def test_a_run_with_snapshots_that_is_killed_after_one_ends_in_the_same_bits(tiny_run):
    extra = f"evaluate: [{{name: first, {NLL}}}, {{name: wide, ema: {{width: 0.07}}, {NLL}}}]\n"
    sets = (extra, "train.ema_rate=null", "train.ema={every: 3}")
    straight, killed = tiny_run(*sets, folder="straight"), tiny_run(*sets, folder="killed")
    assert run(straight) == "done"
    assert run(killed, stop_after_steps=4) == "interrupted"
    stored = killed / "checkpoints"
    before = {path.name for path in stored.glob("step-*")}
    run(killed, stop_after_steps=4)
    for path in stored.glob("step-*"):  # as if it had been killed between the snapshot of step 6 and a checkpoint
        if path.name not in before:
            path.unlink()
    assert [step for step, _ in snapshot_files(stored)] == [3, 6]
    shutil.copy(snapshot_files(stored)[0][1], stored / f"averages-00000006-{'0' * 64}.pt")  # other bits of that step
    assert run(killed) == "done"
    names = [[path.name for _, path in snapshot_files(folder / "checkpoints")] for folder in (straight, killed)]
    assert len(names[0]) == 4 and names[0] == names[1]
    assert first_state_difference(final(straight), final(killed), 12) is None
    assert values(straight) == values(killed)
    assert values(straight)["first/nll_bpd"] != values(straight)["wide/nll_bpd"]
    first, wide, second = (sampled(straight, ema=width) for width in (None, 0.07, 0.1))
    assert len({images.tobytes() for images in (first, wide, second)}) == 3
    assert np.array_equal(sampled(straight, ema=0.05), first)
    with pytest.raises(SpecError, match=r"--ema 0.999: ema: this run keeps averages by width"):
        sampled(straight, ema=0.999)
    with pytest.raises(SpecError, match="but --weights raw are sampled"):
        sampled(straight, ema=0.07, weights="raw")


@pytest.mark.slow
def test_each_of_several_rates_is_kept_through_kills_and_measured_by_choice(tiny_run):
    extra = f"evaluate: [{{name: first, {NLL}}}, {{name: second, ema: 0.8, {NLL}}}]\n"
    several = tiny_run(extra, "train.ema_rate=null", "train.ema=[0.5, 0.8]", folder="several")
    assert run(several, stop_after_steps=5) == "interrupted"
    assert run(several) == "done"
    alone = tiny_run(f"evaluate: [{{name: second, {NLL}}}]\n", "train.ema_rate=0.8", folder="alone")
    assert run(alone) == "done"
    averages, single = final(several)["method"]["averages"], final(alone)["method"]
    assert "averages" not in single and list(averages) == ["0.8"]
    assert all(torch.equal(value, averages["0.8"][name]) for name, value in single["ema"].items())
    assert values(several)["second/nll_bpd"] == values(alone)["second/nll_bpd"] != values(several)["first/nll_bpd"]
    assert np.array_equal(sampled(several, ema=0.8), sampled(alone)) and "_ema0.8" in str(sampled_names(several))
    assert not np.array_equal(sampled(several, ema=0.8), sampled(several))
    with pytest.raises(SpecError, match=r"--ema 0.9: .*choices: 0.5, 0.8"):
        sampled(several, ema=0.9)
