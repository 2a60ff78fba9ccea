"""SIGKILLs in the midst of an evaluation: it goes on with the batch it was at, and ends in the same numbers."""

import os
import random
import signal
import time

import numpy as np
import pytest

from harness.job.job import run_job
from harness.job.verify import results
from harness.records.directory import RunDirectory

KILLS = 5
BATCHES = 60
EVALUATE = """
evaluate:
  - {batch_size: 16, fidelity: {num_samples: 960, num_steps: 10}, grid: 16}
"""
POINTS = ("data=mog", "model={name: mlp, width: 16}", "diffusion.num_timesteps=10")


def kept(directory: RunDirectory) -> dict:
    """Return the kept batches by name, with what tells a file from one that was written again."""
    return {path.name: path.stat().st_ino for path in directory.kept_folder.glob("*/batch-*.npy")}


@pytest.mark.slow
def test_an_evaluation_that_is_killed_five_times_ends_in_the_numbers_of_an_undisturbed_one(tiny_run):
    unbroken, killed = (RunDirectory(tiny_run(EVALUATE, *POINTS, folder=name)) for name in ("unbroken", "killed"))
    assert run_job(unbroken.path, sync=False, show_progress=False) == "done"
    # Trained here and not in a fork, in which autograd does not work.
    assert run_job(killed.path, sync=False, show_progress=False, stop_after_steps=12) == "interrupted"
    seed = random.randrange(2**32)
    randomly, survivors = random.Random(seed), {}
    for number in range(KILLS):
        begin = number * BATCHES // KILLS
        pid = os.fork()
        if pid == 0:
            os._exit(run_job(killed.path, sync=False, show_progress=False) != "done")
        deadline = time.monotonic() + 240
        while len(kept(killed)) <= begin and os.waitpid(pid, os.WNOHANG) == (0, 0):
            assert time.monotonic() < deadline, f"{len(kept(killed))} batches in four minutes"
        time.sleep(randomly.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, f"ended before (seed {seed})"
        batches = kept(killed)
        assert survivors.items() <= batches.items(), "a batch was drawn again"
        assert killed.status().state == "interrupted" and killed.status().evaluation.startswith("eval")
        survivors = batches
    assert run_job(killed.path, sync=False, show_progress=False) == "done"
    assert results(killed) == results(unbroken)
    pictures = [np.load(run.arrays_folder / "eval_samples.npz")["samples"] for run in (killed, unbroken)]
    assert np.array_equal(*pictures)
    assert kept(killed) == {} and [path.name for path in killed.kept_folder.glob("*/features-*")]
