"""Each candidate in a process of its own: what one sets there, such as malloc's options, meets no other."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers.settings import SAMPLING_STEPS, SETTINGS, Setting, num_parameters
from benchmarks.peers.tables import Row, Table
from benchmarks.peers.timing import Measure, in_turns, timed

START = multiprocessing.get_context("spawn")


class Worker:
    """A candidate in its process; `facts` has what its process says of it."""

    def __init__(self, part: str, name: str, setting: Setting):
        self._connection, theirs = START.Pipe()
        self._process = START.Process(target=_serve, args=(theirs, part, name, SETTINGS.index(setting)), daemon=True)
        self._process.start()
        theirs.close()
        self.facts: dict[str, Any] = self._connection.recv()

    def measure(self, work: str) -> tuple[float, float]:
        """Have a piece of work done; return its seconds of processor and of wall time."""
        self._connection.send(work)
        return self._connection.recv()

    def close(self) -> None:
        self._connection.close()
        self._process.join()


@contextmanager
def workers(part: str, names: Sequence[str], setting: Setting) -> Iterator[dict[str, Worker]]:
    """Start the workers of a part of the bench, and end them afterwards."""
    started: dict[str, Worker] = {}
    try:
        for name in names:
            started[name] = Worker(part, name, setting)
        yield started
    finally:
        for worker in started.values():
            worker.close()


def measures(started: dict[str, Worker], work: str) -> dict[str, Measure]:
    return {name: partial(worker.measure, work) for name, worker in started.items()}


def table_of_networks(
    setting: Setting,
    work: str,
    measures: Mapping[str, Measure],
    *,
    rounds: int,
    reference: str,
    facts: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Table:
    """Let candidates train or sample in turns, and return their times; `facts` are further columns, by name."""
    units = {"training": ("a step", setting.steps), "sampling": ("an evaluation of the network", SAMPLING_STEPS)}
    unit, count = units[work]
    times = in_turns(measures, rounds=rounds, units=dict.fromkeys(measures, float(count)))
    rows = tuple(Row(name, times[name], **facts.get(name, {})) for name in measures)
    return Table(f"{work.capitalize()}, {setting.name}, batch {setting.batch_size}", unit, reference, rows)


def _serve(connection: Connection, part: str, name: str, setting_index: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    setting = SETTINGS[setting_index]
    facts, works = _LOADERS[part](name, setting)
    connection.send(facts)
    while True:
        try:
            work = connection.recv()
        except EOFError:
            return
        connection.send(timed(works[work]))


def _network(name: str, setting: Setting) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return facts of a candidate's network and what can be measured of it."""
    from benchmarks.peers.ours import OURS
    from benchmarks.peers.theirs import THEIRS

    candidate = {**OURS, **THEIRS}[name](setting)
    facts = {"parameters": num_parameters(candidate.network), "gflop": _gflop(candidate.network, name, setting)}

    def training() -> None:
        for _ in range(setting.steps):
            candidate.train()

    return facts, {"training": training, "sampling": partial(candidate.sample, SAMPLING_STEPS)}


def _likelihood(name: str, setting: Setting) -> tuple[dict[str, Any], dict[str, Any]]:
    from benchmarks.peers.ours import LIKELIHOODS

    action, evaluations = LIKELIHOODS[name](setting)
    return {"units": evaluations}, {"nll": action}


_LOADERS = {"networks": _network, "nll": _likelihood}


def _gflop(network: nn.Module, name: str, setting: Setting) -> float:
    """Count a forward pass of one image, attention by its matrix products."""
    x, t = torch.zeros(1, setting.image_channels, setting.image_size, setting.image_size), torch.zeros(1)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(*((t, x) if name == "torchcfm" else (x, t)))
    return counter.get_total_flops() / 1e9
