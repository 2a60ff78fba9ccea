"""Measure the harness beside its peers: `python -m benchmarks.peers`; --help has the options."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.peers import environment
from benchmarks.peers.tables import Row, Table, replace_section
from benchmarks.peers.timing import in_turns

RESULTS = environment.ROOT / "benchmarks" / "RESULTS.md"
REFERENCE = "ours, default"
PARTS = ("training", "sampling", "nll", "start")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="each candidate is measured once a round (default 6)")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part alone; may be repeated")
    parser.add_argument("--json", action="store_true", help="print all rounds and the machine as JSON")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/RESULTS.md")
    options = parser.parse_args(arguments)
    if not environment.is_active():
        environment.prepare()
        return environment.enter(list(arguments))
    measured = measure(options.only or PARTS, options.rounds)
    machine = environment.describe_machine()
    if options.json:
        print(json.dumps({"machine": machine, "tables": [table.values() for table in measured]}, indent=2))
    else:
        print(markdown(measured, machine, options.rounds))
    if options.write:
        text = RESULTS.read_text() if RESULTS.is_file() else "# Results of the benchmarks\n"
        RESULTS.write_text(replace_section(text, "peers", markdown(measured, machine, options.rounds)))
    return 0


def measure(parts: Sequence[str], rounds: int) -> list[Table]:
    """Measure parts of the bench, setting by setting."""
    import torch

    from benchmarks.peers.settings import SETTINGS

    torch.set_num_threads(1)
    tables = []
    for setting in SETTINGS:
        if {"training", "sampling"} & set(parts):
            tables += _networks(setting, parts, rounds)
        if "nll" in parts:
            tables.append(_likelihoods(setting, rounds))
    if "start" in parts:
        tables.append(_start(max(3, rounds // 2)))
    return tables


def _networks(setting: Any, parts: Sequence[str], rounds: int) -> list[Table]:
    import torch

    from benchmarks.peers.ours import OURS
    from benchmarks.peers.settings import SAMPLING_STEPS, num_parameters
    from benchmarks.peers.theirs import THEIRS

    built = {}
    for name, build in {**OURS, **THEIRS}.items():
        torch.manual_seed(0)
        built[name] = build(setting)
    sizes = {name: num_parameters(candidate.network) for name, candidate in built.items()}
    work = {name: _gflop(candidate, setting) for name, candidate in built.items()}
    tables = []
    if "training" in parts:
        times = in_turns(
            {name: partial(_repeat, candidate.train, setting.steps) for name, candidate in built.items()},
            rounds=rounds,
            units=dict.fromkeys(built, float(setting.steps)),
        )
        rows = tuple(Row(name, times[name], sizes[name], work[name]) for name in built)
        tables.append(Table(f"Training, {setting.name}, batch {setting.batch_size}", "a step", REFERENCE, rows))
    if "sampling" in parts:
        same_loss = {name: candidate for name, candidate in built.items() if not candidate.objective}
        times = in_turns(
            {name: partial(candidate.sample, SAMPLING_STEPS) for name, candidate in same_loss.items()},
            rounds=rounds,
            units=dict.fromkeys(same_loss, float(SAMPLING_STEPS)),
        )
        rows = tuple(Row(name, times[name], sizes[name], work[name]) for name in same_loss)
        title = f"Sampling, {setting.name}, batch {setting.batch_size}"
        tables.append(Table(title, "an evaluation of the network", REFERENCE, rows))
    return tables


def _repeat(action: Any, count: int) -> None:
    for _ in range(count):
        action()


def _gflop(candidate: Any, setting: Any) -> float:
    """Count a forward pass of one image, attention by its matrix products."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    x, t = torch.zeros(1, setting.image_channels, setting.image_size, setting.image_size), torch.zeros(1)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        candidate.network(*((t, x) if candidate.name == "torchcfm" else (x, t)))
    return counter.get_total_flops() / 1e9


def _likelihoods(setting: Any, rounds: int) -> Table:
    from benchmarks.peers.ours import likelihoods

    ways = likelihoods(setting)
    times = in_turns(
        {name: action for name, (action, _) in ways.items()},
        rounds=rounds,
        units={name: evaluations for name, (_, evaluations) in ways.items()},
    )
    rows = tuple(Row(name, times[name]) for name in ways)
    return Table(f"Full NLL, {setting.name}", "an image at a timestep", rows[0].name, rows)


def _start(rounds: int) -> Table:
    """Time whole processes, with their interpreters."""
    from benchmarks.peers.theirs import THEIRS

    names = ["torch", REFERENCE, *THEIRS]
    command = (sys.executable, "-m", "benchmarks.peers.first_step")
    times = in_turns(
        {name: partial(subprocess.run, [*command, name], check=True, capture_output=True) for name in names},
        rounds=rounds,
        units=dict.fromkeys(names, 1.0),
        clock=_clock_of_children,
    )
    labels = {"torch": "import of torch alone"}
    rows = tuple(Row(labels.get(name, name), times[name]) for name in names)
    return Table("From the start of Python to the first step, digits", "a process", REFERENCE, rows)


def _clock_of_children() -> tuple[float, float]:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime, time.perf_counter()


def markdown(tables: Sequence[Table], machine: dict[str, Any], rounds: int) -> str:
    """Return the section of RESULTS.md."""
    from importlib.metadata import version

    peers = ", ".join(f"{name} {version(name)}" for name in ("diffusers", "denoising-diffusion-pytorch", "torchcfm"))
    lines = [
        "## Beside other libraries",
        f"`make bench-peers`, {time.strftime('%Y-%m-%d')}: {machine['cpu']}, {machine['cores']} cores, one thread, load "
        f"{machine['load']}, {machine['system']}, Python {machine['python']}, torch {machine['torch']}; {peers}. Medians of "
        f"{rounds} interleaved rounds (lowest to highest). The last two columns are ratios to the row in bold within each "
        "round: above 1 is slower than ours.",
    ]
    for table in tables:
        lines += [f"### {table.title}", table.markdown()]
    lines += ["### On a GPU", "Not measured."]
    return "\n\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
