"""Do `resources.kernels` change what is learned, what does a step of each cost, and how much faster could it be?

    python -m benchmarks.kernels curves [--kernels fused compiled] [--seeds 4] [--steps 200] [--set model.channels=16]
    python -m benchmarks.kernels steps  [--kernels reference fused compiled] [--study STUDY.yaml]
    python -m benchmarks.kernels convolutions [--kernels fused] [--study STUDY.yaml]

`curves` trains the same seeds with the reference kernels and with others, on the same batches, timesteps and noise, and
prints both losses by windows of steps beside the standard deviation between seeds. `steps` interleaves steps of each in
several rounds and prints processor milliseconds: median and quartiles. `convolutions` times those of a step alone,
forward and backward: what no kernel around them can save. One thread, on the CPU. Nothing here is asserted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness.datasets import make_dataset
from harness.job.kernels import keep_freed_memory, prepare_compiler
from harness.models.resampling import Upsample
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
        self.method = make_method(spec, data, Resources(kernels=kernels), CPU)
        self._batches, self._next = Batches(spec, data, self._streams), 0

    def __call__(self) -> float:
        """Take the next step and return its loss."""
        step, self._next = self._next, self._next + 1
        self._streams.seed_dropout(step)
        return float(self.method.step(step, self._batches(step), self._streams, ProcessGroup()).loss.mean())


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


@dataclass(frozen=True)
class Convolution:
    """A convolution as a step calls it: its layer, upsampling too, and the shape of its input, [B, C, H, W]."""

    layer: nn.Module
    shape: torch.Size
    differentiates_input: bool

    def run(self) -> Callable[[], object]:
        """Return what runs it forward and backward, on numbers drawn once."""
        x = torch.randn(self.shape, requires_grad=self.differentiates_input)
        convolve = self.layer.forward  # without the module's hooks, since FlopCounterMode's want a whole backward pass
        upstream = torch.randn_like(convolve(x))
        inputs = [tensor for tensor in (x, *self.layer.parameters()) if tensor.requires_grad]
        return lambda: torch.autograd.grad(convolve(x), inputs, upstream)

    def flops(self) -> int:
        """Count the operations of both as they are computed, a multiplication and an addition as two."""
        run = self.run()
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()


def convolutions_of(take_step: Stepper) -> list[Convolution]:
    """Return the convolutions of a step's forward pass, in their order."""
    found: list[Convolution] = []

    def remember(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        found.append(Convolution(layer, inputs[0].shape, inputs[0].requires_grad))

    networks = [trained.module for trained in take_step.method.networks().values()]
    modules = [module for network in networks for module in network.modules()]
    inside = {module.conv for module in modules if isinstance(module, Upsample)}
    layers = [module for module in modules if isinstance(module, nn.Conv2d | Upsample) and module not in inside]
    handles = [layer.register_forward_pre_hook(remember) for layer in layers]
    take_step()
    for handle in handles:
        handle.remove()
    return found


def convolutions(arguments: argparse.Namespace) -> None:
    """Print how much of a step its convolutions take when they run alone, and how much faster it could be at most."""
    for kernels in arguments.kernels:
        take_step = Stepper(specs(arguments)[0], kernels)
        found = convolutions_of(take_step)
        alone = [convolution.run() for convolution in found]
        flops, steps_ms, alone_ms = sum(convolution.flops() for convolution in found), [], []
        calls: list[Callable[[], object]] = [take_step, *alone]
        for call in calls * 2:  # to warm up
            call()
        for _ in range(ROUNDS):
            began = time.process_time()
            for _ in range(arguments.steps):
                take_step()
            between = time.process_time()
            for call in alone * arguments.steps:
                call()
            steps_ms.append(1e3 * (between - began) / arguments.steps)
            alone_ms.append(1e3 * (time.process_time() - between) / arguments.steps)
        bounds = [step / convolution for step, convolution in zip(steps_ms, alone_ms, strict=True)]
        step, convolution = statistics.median(steps_ms), statistics.median(alone_ms)
        print(f"{kernels}: {len(found)} convolutions, {flops / 1e9:.1f} GFLOP, of a step")
        rate = f"{flops / 1e6 / convolution:.0f} GFLOP/s"
        print(f"  a step {step:.1f} ms; its convolutions alone {convolution:.1f} ms, {rate}")
        print(f"  a step of nothing else: {step / convolution:.2f} x ({min(bounds):.2f} to {max(bounds):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("curves", "steps", "convolutions"))
    parser.add_argument("--kernels", nargs="+", default=["fused"])
    parser.add_argument("--study", type=Path, default=ROOT / "experiments/base/digits.yaml")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--set", nargs="*", default=[], help="as for `harness plan`")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    prepare_compiler("compiled" if "compiled" in arguments.kernels else "fused", CPU)
    {"curves": curves, "steps": steps, "convolutions": convolutions}[arguments.what](arguments)


if __name__ == "__main__":
    main()
