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
from typing import TYPE_CHECKING, Any

from benchmarks.peers import environment
from benchmarks.peers.tables import Row, Table, replace_section
from benchmarks.peers.timing import in_turns, timed

if TYPE_CHECKING:
    from benchmarks.peers.settings import Setting

RESULTS = environment.ROOT / "benchmarks" / "RESULTS.md"
REFERENCE = "ours, default"
PARTS = ("training", "sampling", "nll", "start")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="each candidate is measured once a round (default 6)")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part alone; may be repeated")
    parser.add_argument("--compiled", action="store_true", help="also measure ours compiled, which takes minutes")
    parser.add_argument("--json", action="store_true", help="print all rounds and the machine as JSON")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/RESULTS.md")
    options = parser.parse_args(arguments)
    if not environment.is_active():
        environment.prepare()
        return environment.enter(list(arguments))
    measured = measure(options.only or PARTS, options.rounds, compiled=options.compiled)
    machine = environment.describe_machine()
    if options.json:
        print(json.dumps({"machine": machine, "tables": [table.values() for table in measured]}, indent=2))
    else:
        print(markdown(measured, machine, options.rounds))
    if options.write:
        text = RESULTS.read_text() if RESULTS.is_file() else "# Results of the benchmarks\n"
        RESULTS.write_text(replace_section(text, "peers", markdown(measured, machine, options.rounds)))
    return 0


def measure(parts: Sequence[str], rounds: int, *, compiled: bool = False) -> list[Table]:
    """Measure parts of the bench, setting by setting; tables go to stderr as they come."""
    from benchmarks.peers.ours import OURS
    from benchmarks.peers.settings import SETTINGS
    from benchmarks.peers.theirs import THEIRS

    tables: list[Table] = []

    def add(measured: Sequence[Table]) -> None:
        tables.extend(measured)
        print(*(table.markdown() for table in measured), sep="\n\n", file=sys.stderr, flush=True)

    for setting in SETTINGS:
        if {"training", "sampling"} & set(parts):
            names = [name for name in [*OURS, *THEIRS] if compiled or name != "ours, compiled"]
            add(_networks(setting, names, parts, rounds))
        if "nll" in parts:
            add([_likelihoods(setting, rounds)])
    if "start" in parts:
        add([_start(max(3, rounds // 2))])
    return tables


def _networks(setting: Setting, names: Sequence[str], parts: Sequence[str], rounds: int) -> list[Table]:
    from benchmarks.peers.worker import measures, table_of_networks, workers

    with workers("networks", names, setting) as started:
        facts = {name: worker.facts for name, worker in started.items()}
        return [
            table_of_networks(setting, work, measures(started, work), rounds=rounds, reference=REFERENCE, facts=facts)
            for work in ("training", "sampling")
            if work in parts
        ]


def _likelihoods(setting: Setting, rounds: int) -> Table:
    from benchmarks.peers.ours import LIKELIHOODS
    from benchmarks.peers.worker import measures, workers

    with workers("nll", list(LIKELIHOODS), setting) as started:
        units = {name: float(worker.facts["units"]) for name, worker in started.items()}
        times = in_turns(measures(started, "nll"), rounds=rounds, units=units)
    rows = tuple(Row(name, times[name]) for name in times)
    return Table(f"Full NLL, {setting.name}", "an image at a timestep", rows[0].name, rows)


def _start(rounds: int) -> Table:
    """Time whole processes, with their interpreters."""
    from benchmarks.peers.theirs import THEIRS

    names = ["torch", REFERENCE, *THEIRS]
    processes = {name: (sys.executable, "-m", "benchmarks.peers.first_step", name) for name in names}
    measures = {
        name: partial(timed, partial(subprocess.run, command, check=True, capture_output=True), clock_of_children)
        for name, command in processes.items()
    }
    times = in_turns(measures, rounds=rounds, units=dict.fromkeys(names, 1.0))
    labels = {"torch": "import of torch alone"}
    rows = tuple(Row(labels.get(name, name), times[name]) for name in names)
    return Table("From the start of Python to the first step, digits", "a process", REFERENCE, rows)


def clock_of_children() -> tuple[float, float]:
    """Return the processor time of the processes that have ended, and the time on the wall."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime, time.perf_counter()


def markdown(tables: Sequence[Table], machine: dict[str, Any], rounds: int) -> str:
    """Return the section of RESULTS.md."""
    from importlib.metadata import version

    peers = ", ".join(f"{name} {version(name)}" for name in ("diffusers", "denoising-diffusion-pytorch", "torchcfm"))
    lines = [
        "## Beside other libraries",
        f"`make bench-peers`, {time.strftime('%Y-%m-%d')}: {machine['cpu']}, {machine['cores']} cores, one thread "
        f"each, load {machine['load']}, {machine['system']}, Python {machine['python']}, torch {machine['torch']}; "
        f"{peers}.",
        f"Medians of {rounds} interleaved rounds (lowest to highest); GFLOP are of a forward pass of one image. The "
        "last two columns are ratios to the row in bold within each round: above 1 is slower than that.",
    ]
    for table in tables:
        lines += [f"### {table.title}", table.markdown()]
    lines += ["### On a GPU", "Not measured."]
    return "\n\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
