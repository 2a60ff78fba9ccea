"""Do `resources.kernels` change what is learned, and what does a step of each cost?

    python -m benchmarks.kernels curves [--kernels fused compiled] [--seeds 4] [--steps 200] [--set model.channels=16]
    python -m benchmarks.kernels steps  [--kernels reference fused compiled] [--study STUDY.yaml]

`curves` trains the same seeds with the reference kernels and with others, on the same batches, timesteps and noise, and
prints both losses by windows of steps beside the standard deviation between seeds. `steps` interleaves steps of each in
several rounds and prints processor milliseconds, the median and the quartiles. One thread, on the CPU. Nothing here is
asserted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from harness.datasets import make_dataset
from harness.job.kernels import keep_freed_memory, prepare_compiler
from harness.randomness import Streams
from harness.registry import make_method
from harness.spec.resources import Resources
from harness.spec.run import RunSpec
from harness.study.expand import load_study
from harness.training.batches import Batches
from harness.training.distributed import ProcessGroup

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
ROUNDS = 6


class Stepper:
    """Takes steps of one run with some kernels."""

    def __init__(self, spec: RunSpec, kernels: str):
        data, self._streams = make_dataset(spec.data), Streams(spec.seed, CPU)
        self._method = make_method(spec, data, Resources(kernels=kernels), CPU)
        self._batches, self._next = Batches(spec, data, self._streams), 0

    def __call__(self) -> float:
        """Take the next step and return its loss."""
        step, self._next = self._next, self._next + 1
        self._streams.seed_dropout(step)
        return float(self._method.step(step, self._batches(step), self._streams, ProcessGroup()).loss.mean())


def specs(arguments: argparse.Namespace) -> list[RunSpec]:
    """Return the spec of the study's first run, once a seed."""
    spec = load_study(arguments.study, sets=arguments.set).runs[0].spec
    return [spec.model_copy(update={"seed": seed}) for seed in range(arguments.seeds)]


def curves(arguments: argparse.Namespace) -> None:
    """Print the losses of both, and how far they are apart, in standard deviations between seeds."""
    losses = {}
    for kernels in ("reference", *arguments.kernels):
        steppers = [Stepper(spec, kernels) for spec in specs(arguments)]
        by_seed = [[take_step() for _ in range(arguments.steps)] for take_step in steppers]
        losses[kernels] = np.reshape(by_seed, (len(by_seed), 10, -1)).mean(axis=2)  # [seeds, windows]
    reference = losses.pop("reference")
    deviation = reference.std(axis=0, ddof=1)
    for kernels, values in losses.items():
        print(f"{len(values)} seeds, {kernels} beside reference: mean losses, and the largest difference of one seed")
        print(f"{'steps':>10s} {'reference':>10s} {kernels:>10s} {'std of seeds':>13s} {'largest of a seed':>18s}")
        for window, spread in enumerate(deviation):
            end, difference = (window + 1) * arguments.steps // 10, np.abs(values - reference)[:, window].max()
            means = f"{reference[:, window].mean():10.5f} {values[:, window].mean():10.5f}"
            print(f"{end:10d} {means} {spread:13.5f} {difference:18.2e}")
        apart = np.abs(values.mean(axis=0) - reference.mean(axis=0)) / deviation
        print(f"the means are at most {apart.max():.3f} standard deviations apart")


def steps(arguments: argparse.Namespace) -> None:
    """Print processor milliseconds a step of each."""
    steppers: dict[str, Stepper] = {}
    taken: dict[str, list[float]] = {kernels: [] for kernels in arguments.kernels}
    for kernels in arguments.kernels:
        began, steppers[kernels] = time.perf_counter(), Stepper(specs(arguments)[0], kernels)
        for _ in range(3):
            steppers[kernels]()
        print(f"{kernels}: 3 steps to warm up, {time.perf_counter() - began:.1f} s on the clock")
    for _ in range(ROUNDS):
        for kernels, take_step in steppers.items():
            began = time.process_time()
            for _ in range(arguments.steps):
                take_step()
            taken[kernels].append(1e3 * (time.process_time() - began) / arguments.steps)
    first = statistics.median(taken[arguments.kernels[0]])
    for kernels, values in taken.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{kernels:12s} {middle:9.2f} ms ({low:.2f} to {high:.2f})   {first / middle:.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("curves", "steps"))
    parser.add_argument("--kernels", nargs="+", default=["fused"])
    parser.add_argument("--study", type=Path, default=ROOT / "experiments/base/digits.yaml")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--set", nargs="*", default=[], help="as for `harness plan`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    prepare_compiler("compiled" if "compiled" in arguments.kernels else "fused", CPU)
    {"curves": curves, "steps": steps}[arguments.what](arguments)


if __name__ == "__main__":
    main()
