"""What more devices bring: `python -m benchmarks.devices`; --help has the options.

Measured by processes on this machine: weak scaling (the same batch for each process), where the time goes, what grows
with the global batch, settings of DistributedDataParallel, and the share of data (data.py). With fewer cores than
processes the time on the wall says nothing about efficiency; the processor time still says what is computed twice, or
only because there are several. What many GPUs would do is a projection (projection.py). Nothing here is asserted.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks import data, projection
from benchmarks.peers.ours import CPU, dataset_of, method_of_a_job, spec_of
from benchmarks.peers.settings import SETTINGS, Setting, num_parameters
from benchmarks.peers.tables import replace_section, seconds
from benchmarks.peers.timing import in_turns, timed
from benchmarks.tables import cost, difference, efficiency, head, table, times_as_long
from harness.randomness import Streams
from harness.training.batches import Batches
from harness.training.distributed import ProcessGroup, RankInfo, process_group
from harness.training.loop import Training

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
START = multiprocessing.get_context("spawn")
SIZES = (1, 2, 4)
LARGE = (8, 64)  # processes whose draws are measured in one
PARTS_REPEATED = 20
DDP: dict[str, dict[str, Any]] = {
    "torch's own: buckets of 25 MiB": {},
    "buckets of 1 MiB": {"bucket_cap_mb": 1},
    "one bucket": {"bucket_cap_mb": 1000},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "static_graph": {"static_graph": True},
    "both": {"gradient_as_bucket_view": True, "static_graph": True},
}


# ---------------------------------------------------------------------------------------- processes that train together


class Stepper:
    """Takes the steps of the training loop, but for its records.

    Args:
        ddp: DistributedDataParallel's settings; None: as the harness sets them.
    """

    def __init__(self, setting: Setting, group: ProcessGroup, ddp: Mapping[str, Any] | None = None):
        spec, data = spec_of(setting), dataset_of(setting)
        self.batch_size = setting.batch_size * group.size
        spec = spec.model_copy(update={"train": spec.train.model_copy(update={"batch_size": self.batch_size})})
        self.method, self.group, self.streams = method_of_a_job(spec, data), group, Streams(0, CPU)
        self.training = Training(spec, self.method, CPU)
        self.rows, self.batches = group.share(self.batch_size), Batches(spec, data, self.streams)
        if ddp is None:
            self.method.distribute(group.size)
        else:
            self.method._num_processes = group.size
            self.method._replica = self.method._trained = DistributedDataParallel(self.method.network, **ddp)

    def step(self) -> None:
        step = self.training.step
        self.streams.seed_dropout(step, self.group.rank)
        output = self.method.step(step, self.batches(step, self.rows), self.streams, self.group)
        self.training.window.add(step, output)
        self.training.step = step + 1
        self.group.all_reduce_max(0)

    def weights(self) -> np.ndarray:
        return torch.cat([weight.detach().flatten() for weight in self.method.network.parameters()]).numpy()


def _works(setting: Setting, group: ProcessGroup, ddp: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """Return what a process can be asked to do; all of its group do it at the same time."""
    together, alone = Stepper(setting, group), Stepper(setting, ProcessGroup())
    steppers = {name: Stepper(setting, group, DDP[name]) for name in ddp}
    gradients = torch.zeros(num_parameters(together.method.network))
    shape = (together.batch_size, setting.image_channels, setting.image_size, setting.image_size)
    terms = {name: torch.zeros(setting.batch_size) for name in together.method.terms_logged}
    parts: dict[str, Callable[[], Any]] = {
        "gradients": lambda: dist.all_reduce(gradients),
        "losses": lambda: group.gather(terms, together.rows, together.batch_size),
        "whether to stop": lambda: group.all_reduce_max(0),
        "noise": lambda: together.streams.normal("noise", 0, shape),
        "data": lambda: together.batches(0, together.rows),
    }
    steps = {"together": together.step, "alone": alone.step, **{name: own.step for name, own in steppers.items()}}
    timings = {name: partial(_repeat, action, PARTS_REPEATED) for name, action in parts.items()}
    timings |= {name: partial(_repeat, action, setting.steps) for name, action in steps.items()}
    return {name: partial(timed, action) for name, action in timings.items()} | {
        f"weights of {name}": own.weights for name, own in steppers.items()
    }


def _repeat(action: Callable[[], Any], count: int) -> None:
    for _ in range(count):
        action()


class Crew:
    """Processes that train one network together."""

    def __init__(self, setting: Setting, size: int, folder: Path, ddp: Sequence[str] = ()):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._connections, self._processes = [], []
        for rank in range(size):
            ours, theirs = START.Pipe()
            info = RankInfo(rank, size, rank, "127.0.0.1", port)
            arguments = (theirs, SETTINGS.index(setting), info, folder, tuple(ddp))
            process = START.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)
        for connection in self._connections:
            connection.recv()

    def ask(self, work: str) -> list[Any]:
        """Have all processes do something at the same time; return what each answers."""
        for connection in self._connections:
            connection.send(work)
        return [connection.recv() for connection in self._connections]

    def measure(self, work: str) -> tuple[float, float]:
        """Return the mean seconds of processor time of the processes, and those on the wall of the slowest."""
        answers = self.ask(work)
        return statistics.mean(processor for processor, _ in answers), max(wall for _, wall in answers)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join()


def _serve(connection: Connection, setting: int, info: RankInfo, folder: Path, ddp: Sequence[str]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with process_group(info, cuda=False, command=(), meeting_folder=folder) as group:
        works = _works(SETTINGS[setting], group, ddp)
        connection.send("ready")
        while True:
            try:
                work = connection.recv()
            except EOFError:
                return
            group.all_reduce_max(0)  # they begin together
            connection.send(works[work]())


@contextmanager
def crews(setting: Setting, sizes: Sequence[int], ddp: Sequence[str] = ()) -> Iterator[dict[int, Crew]]:
    """Start a crew of each size, and end them afterwards."""
    started: dict[int, Crew] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for size in sizes:
                started[size] = Crew(setting, size, Path(folder), ddp)
            yield started
        finally:
            for crew in started.values():
                crew.close()


# ----------------------------------------------------------------------------------------------------- what is measured


def scaling(rounds: int) -> str:
    """Weak scaling, and the parts of a step that are there only because there are several processes."""
    sections = []
    for setting in SETTINGS:
        with crews(setting, SIZES) as started:
            candidates = {
                f"{work} {size}": partial(crew.measure, work)
                for size, crew in started.items()
                for work in ("together", "alone")
                if work == "together" or size > 1
            }
            times = in_turns(candidates, rounds=rounds, units=dict.fromkeys(candidates, float(setting.steps)))
            works = ("gradients", "losses", "whether to stop", "noise", "data")
            parts = {
                f"{work} {size}": partial(crew.measure, work)
                for size, crew in started.items()
                for work in works
                if size > 1
            }
            taken = in_turns(parts, rounds=rounds, units=dict.fromkeys(parts, float(PARTS_REPEATED)))
        one = times["together 1"]
        rows = []
        for size in SIZES:
            own, at_once = times[f"together {size}"], times.get(f"alone {size}", one)
            rows.append([
                str(size),
                seconds(own.processor),
                seconds(own.wall),
                efficiency(one.processor, own.processor),
                efficiency(one.wall, own.wall),
                efficiency(at_once.processor, own.processor),
                efficiency(at_once.wall, own.wall),
            ])  # fmt: skip
        header = ["processes", "processor, a process and step", "wall, a step"]
        header += ["processor, to 1 process", "wall, to 1 process"]
        header += ["processor, to as many trainings apart", "wall, to as many trainings apart"]
        of_parts = [
            [work, *(cost(taken[f"{work} {size}"], times[f"together {size}"]) for size in SIZES if size > 1)]
            for work in works
        ]
        sections += [
            f"### Weak scaling, {setting.name}, batch {setting.batch_size} a process",
            table(header, rows),
            f"Parts of a step, {setting.name}: processor time of a process, its share of a step's, and on the wall",
            table(["", *(f"{size} processes" for size in SIZES if size > 1)], of_parts),
        ]
    return "\n\n".join([*head("Several processes", rounds), *sections])


def settings(rounds: int) -> str:
    """Settings of DistributedDataParallel, and whether bits depend on them."""
    sections = []
    for setting in SETTINGS:
        with crews(setting, (2,), list(DDP)) as started:
            crew = started[2]
            candidates = {name: partial(crew.measure, name) for name in DDP}
            times = in_turns(candidates, rounds=rounds, units=dict.fromkeys(DDP, float(setting.steps)))
            weights = {name: crew.ask(f"weights of {name}")[0] for name in DDP}
        with crews(setting, (4,), list(DDP)) as started:
            of_four = {}
            for name in DDP:
                started[4].measure(name)
                of_four[name] = started[4].ask(f"weights of {name}")[0]
        first = next(iter(DDP))
        rows = [
            [
                name,
                seconds(times[name].processor),
                seconds(times[name].wall),
                times_as_long(times[name].processor, times[first].processor),
                times_as_long(times[name].wall, times[first].wall),
                difference(weights[name], weights[first]),
                difference(of_four[name], of_four[first]),
            ]
            for name in DDP
        ]
        header = ["", "processor, a process and step", "wall, a step", "processor", "wall"]
        header += ["weights, 2 processes", "weights, 4 processes"]
        sections += [f"### {setting.name}, batch {setting.batch_size} a process, 2 processes", table(header, rows)]
    return "\n\n".join([
        *head("Settings of DistributedDataParallel", rounds),
        "Ratios are to the first row within each round. Weights: the largest difference to the first row's, after the "
        f"measured steps of 2 processes and after {', '.join(str(setting.steps) for setting in SETTINGS)} steps of 4.",
        "The harness sets gradient_as_bucket_view: bits are equal, and gradients are not kept a second time, which "
        "saves 4 bytes a parameter.",
        *sections,
    ])  # fmt: skip


def draws(rounds: int) -> str:
    """What every process does for the whole global batch, whose size grows with their number."""
    torch.set_num_threads(1)
    rows = []
    for setting in SETTINGS:
        step = Stepper(setting, ProcessGroup())
        candidates: dict[str, Callable[[], Any]] = {"a step": partial(_repeat, step.step, setting.steps)}
        units = {"a step": float(setting.steps)}
        for size in LARGE:
            for name, action in _global_works(setting, size).items():
                candidates[f"{name} {size}"] = partial(_repeat, action, PARTS_REPEATED)
                units[f"{name} {size}"] = float(PARTS_REPEATED)
        times = in_turns({name: partial(timed, work) for name, work in candidates.items()}, rounds=rounds, units=units)
        for name in _global_works(setting, 1):
            rows.append([
                f"{name}, {setting.name}",
                *(cost(times[f"{name} {size}"], times["a step"], wall=False) for size in LARGE),
            ])  # fmt: skip
    return "\n\n".join([
        *head("What grows with the global batch", rounds),
        "Processor time in one process that draws as one of 8 or of 64 would, each with the same batch as above, and "
        "its share of a step.",
        table(["", *(f"one of {size}" for size in LARGE)], rows),
    ])  # fmt: skip


def _global_works(setting: Setting, size: int) -> dict[str, Callable[[], Any]]:
    streams, count = Streams(0, CPU), setting.batch_size * size
    shape = (count, setting.image_channels, setting.image_size, setting.image_size)
    step = Stepper(setting, ProcessGroup())
    output = step.method.step(0, step.batches(0), streams, ProcessGroup())
    t = step.method.timesteps.from_uniform(streams.uniform("timestep", 0, count))[0]
    loss = torch.zeros(count)
    large = type(output)(t, loss, dict.fromkeys(output.terms, loss), output.scalars)

    def rest() -> None:
        step.batches._order.batch(0, count)
        step.method.timesteps.from_uniform(streams.uniform("timestep", 0, count))
        step.training.window.add(0, large)

    return {
        "noise": lambda: streams.normal("noise", 0, shape),
        "order of the data, t and sums": rest,
    }


PARTS: dict[str, Callable[[int], str]] = {
    "scaling": scaling,
    "settings": settings,
    "draws": draws,
    "data": data.measure,
    "projection": lambda rounds: projection.markdown(),
}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.devices", description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="each candidate is measured once a round (default 6)")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part alone; may be repeated")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/RESULTS.md")
    options = parser.parse_args(arguments)
    for name in options.only or PARTS:
        section = PARTS[name](options.rounds)
        print(section, end="\n\n", flush=True)
        if options.write:
            RESULTS.write_text(replace_section(RESULTS.read_text(), f"devices, {name}", section))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
