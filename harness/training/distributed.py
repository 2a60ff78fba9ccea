"""Several processes that train one run: their ranks, rendezvous, and communication.

Every process has the whole network and works on its rows of the global batch. All of them draw the random numbers of a
step for the whole global batch (randomness.py), gradients are summed (DistributedDataParallel) and losses gathered, so
that all have the same weights, timestep sampler and means. Only the first process has the lock, the journal and the
checkpoints. It evaluates at the end, when the others have exited.

Tensors on the CPU use gloo, those on a GPU NCCL. The decision to stop is exchanged on the CPU at each step: this does
not synchronise with the device, and a dead process is noticed at once, as its connections close.

When communication fails, the first process finds out why: a process that fails by itself says so in the store before
it leaves, one that only noticed says so after it, and one that was killed says nothing and its heartbeat stops.
"""

from __future__ import annotations

import gc
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from harness.errors import LaunchError, TrainingError
from harness.records.meeting import Meeting, meeting_name
from harness.slurm.cluster import first_node_address
from harness.slurm.commands import patiently

T = TypeVar("T")

RENDEZVOUS_TIMEOUT = timedelta(minutes=5)  # until all processes of a run have started
COLLECTIVE_TIMEOUT = timedelta(hours=2)  # the others wait while the first process evaluates during training
HEARTBEAT_SECONDS = 1.0
HEARTBEAT_TIMEOUT = timedelta(seconds=30)
LOST_SECONDS = 6.0  # without a heartbeat
DEPARTURE_SECONDS = 60.0  # until a living process notices that another has left


class ProcessLost(Exception):
    """Another process of the run was killed, or its node failed: the run is interrupted, and may be started again."""


class NothingToDo(Exception):
    """The first process has no work on this run, or no more."""


@dataclass(frozen=True)
class RankInfo:
    """The rank of a process among those of a run, and the address of the first one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its node
    address: str = "127.0.0.1"  # empty: it stands in the file of the meeting
    port: int = 0  # 0: nobody has started the others yet, or the first one says it at the meeting
    meeting: str = ""  # the name of the file by which processes that srun has started meet

    @property
    def starts_others(self) -> bool:
        """Whether this is the first process of several and has to start the others."""
        return self.size > 1 and not self.port and not self.meeting


def detect_rank(num_processes: int, environment: Mapping[str, str] = os.environ) -> RankInfo:
    """Determine this process's rank in a run of `num_processes`.

    If srun or torchrun started several processes, that decides their number. A process that was started alone is the
    first of `num_processes`.

    Raises:
        LaunchError: the variables of srun or torchrun are incomplete, or SLURM does not give the first one's address.
    """
    if num_processes == 1:
        return RankInfo()
    if "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
        rank, size, local, port = _numbers(names, environment, "WORLD_SIZE is set, as by torchrun")
        if not 0 <= rank < size:
            raise LaunchError(f"RANK {rank} is not one of WORLD_SIZE {size}: unset both, or start the run by torchrun")
        if not environment.get("MASTER_ADDR"):
            raise LaunchError(
                "WORLD_SIZE is set, as by torchrun, but MASTER_ADDR is not: unset WORLD_SIZE, or set both"
            )
        return RankInfo(rank, size, local, environment["MASTER_ADDR"], port)
    # Of the step, not of the job: a batch script sees SLURM_NTASKS as well, and runs once.
    if environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_JOB_ID")
        rank, size, local, _ = _numbers(names, environment, "SLURM_STEP_NUM_TASKS is set, as by srun")
        address = "" if rank else _first_address(environment.get("SLURM_STEP_NODELIST", ""))
        return RankInfo(rank, size, local, address, meeting=meeting_name(environment))
    return RankInfo(size=num_processes)


def _numbers(names: Sequence[str], environment: Mapping[str, str], why: str) -> list[int]:
    """Return the values of environment variables.

    Raises:
        LaunchError: one is not set or no number.
    """
    for name in names:
        if not (environment.get(name, "").strip()).isdecimal():
            value = f"is {environment[name]!r}, not a number" if name in environment else "is not set"
            raise LaunchError(
                f"{why}, so this process would be one of several of a run, but {name} {value}: unset {why.split()[0]} "
                f"if the run is to start its processes itself, else set {name}"
            )
    return [int(environment[name]) for name in names]


def _first_address(nodes: str) -> str:
    try:
        return patiently(lambda: first_node_address(nodes))
    except LaunchError as error:
        raise LaunchError(f"the processes of this run on {nodes} cannot meet: {error}") from error


@dataclass
class ProcessGroup:
    """The processes of a run, from the view of one of them. With a single process all operations are no-ops."""

    rank: int = 0
    size: int = 1
    hosts: tuple[str, ...] = field(default_factory=lambda: (platform.node(),))  # by rank
    nodes: tuple[str, ...] = ()  # by rank, by SLURM's names

    @property
    def is_first(self) -> bool:
        """Whether this process keeps the records."""
        return self.rank == 0

    def share(self, batch_size: int) -> slice:
        """Return this process's rows of a global batch; if it does not divide evenly, shares differ by one row.

        Raises:
            TrainingError: there are fewer rows than processes.
        """
        if batch_size < self.size:
            raise TrainingError(f"{self.size} processes cannot share a batch of {batch_size}: use fewer")
        return slice(self.rank * batch_size // self.size, (self.rank + 1) * batch_size // self.size)

    def gather(self, terms: dict[str, Tensor], rows: slice, batch_size: int) -> dict[str, Tensor]:
        """Gather the terms of all rows: [rows] each -> [batch_size] each; scalars are unchanged."""
        if self.size == 1:
            return terms
        by_row = {name: term for name, term in terms.items() if term.ndim}
        own = torch.stack(list(by_row.values()))
        # A sum in which every row is nonzero in one process only: exact, also if shares differ in size.
        whole = own.new_zeros(len(by_row), batch_size)
        whole[:, rows] = own
        dist.all_reduce(whole)
        return terms | dict(zip(by_row, whole, strict=True))

    def all_reduce_max(self, number: int) -> int:
        """Return the largest of the processes' numbers."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def in_turn(self, turn: int, num_turns: int, action: Callable[[], T]) -> T:
        """Return what an action returns; processes of one turn act together, after all those of the turns before.

        Args:
            turn: of this process, from 0.
        """
        if self.size == 1:
            return action()
        for now in range(num_turns):
            if now == turn:
                result = action()
            self.all_reduce_max(now)
        return result

    def close(self) -> None:
        """Leave the group; the others may continue or exit. Safe to repeat."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
            # DistributedDataParallel has a reference cycle and would keep the connections, with threads that
            # abort the interpreter when it ends before them.
            gc.collect()


@contextmanager
def process_group(
    rank_info: RankInfo, *, cuda: bool, command: Sequence[str], meeting_folder: Path
) -> Iterator[ProcessGroup]:
    """Join the processes of a run; at the end of the block leave, and stop the processes that were started here.

    Args:
        rank_info: of this process; the first one starts the others if necessary.
        cuda: whether the run computes on GPUs.
        command: starts another process of this run, which finds its rank in its environment.
        meeting_folder: where processes that srun has started meet.

    Raises:
        TrainingError: another process did not start, or failed.
        ProcessLost: another process was killed, or its node failed.
        NothingToDo: the first process does not come.
    """
    if rank_info.size == 1:
        yield ProcessGroup()
        return
    store, address = _open_store(rank_info, meeting_folder)
    children: list[subprocess.Popen] = []
    group = ProcessGroup(rank_info.rank, rank_info.size)
    alive = nullcontext() if group.is_first else _heartbeat(rank_info, address, store.port)
    try:
        if rank_info.starts_others:
            children += [_start(command, rank, rank_info.size, store.port) for rank in range(1, rank_info.size)]
        with alive:
            group.hosts, group.nodes = _rendezvous(rank_info, store, children)
            backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
            dist.init_process_group(
                backend, store=store, rank=rank_info.rank, world_size=rank_info.size, timeout=COLLECTIVE_TIMEOUT
            )
            yield group
    except Exception as error:
        own_number = _depart(store, group, error)
        if isinstance(error, RuntimeError):
            group.close()  # so that the others notice, too
            if reason := _reason_to_part(store, group, children, own_number):
                raise reason from error
        raise
    finally:
        group.close()
        for child in children:
            _end(child)


def _open_store(rank_info: RankInfo, meeting_folder: Path) -> tuple[dist.TCPStore, str]:
    """Return the store that all processes of a run share, and the address of the first one, which holds it.

    Raises:
        TrainingError: the first process does not answer.
        NothingToDo: it says that it will not.
    """
    # Under torchrun, its agent holds the store.
    holds_store = rank_info.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address, port = rank_info.address, rank_info.port
    meeting = Meeting(meeting_folder, rank_info.meeting) if rank_info.meeting else None
    try:
        if meeting and not holds_store:
            place = meeting.wait(RENDEZVOUS_TIMEOUT.total_seconds())
            if place is None:
                raise NothingToDo("the first process of this run has nothing to do")
            address, port = place
        # Port 0 is any that is free.
        store = dist.TCPStore(address, port, is_master=holds_store, timeout=RENDEZVOUS_TIMEOUT, wait_for_workers=False)
    except (dist.DistError, TimeoutError) as error:
        raise TrainingError(f"the first process of this run does not answer at {address}:{port}: {error}") from error
    if meeting and holds_store:
        meeting.announce(address, store.port)
    return store, address


def _start(command: Sequence[str], rank: int, size: int, port: int) -> subprocess.Popen:
    variables = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # the same code as here
    # A separate session: Ctrl-C reaches only the first process, which informs the others at the next step.
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)


def _node_name() -> str:
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def _rendezvous(
    rank_info: RankInfo, store: dist.Store, children: Sequence[subprocess.Popen]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Wait until every process has published its host's name and its node's; return all of both."""
    store.set(f"node/{rank_info.rank}", _node_name())
    store.set(f"host/{rank_info.rank}", platform.node())
    names = [f"host/{rank}" for rank in range(rank_info.size)]
    end = time.monotonic() + RENDEZVOUS_TIMEOUT.total_seconds()
    while not store.check(names):
        missing = sum(not store.check([name]) for name in names)
        if lost := [rank for rank, child in enumerate(children, 1) if (child.poll() or 0) < 0]:
            raise ProcessLost("; ".join(_describe_loss(rank, (), children) for rank in lost))
        if any(child.poll() is not None for child in children):
            raise TrainingError(f"{missing} of {rank_info.size} processes of this run did not start")
        if time.monotonic() > end:
            raise ProcessLost(f"{missing} of {rank_info.size} processes of this run did not start in time")
        time.sleep(0.02)
    nodes = tuple(store.get(f"node/{rank}").decode() for rank in range(rank_info.size))
    return tuple(store.get(name).decode() for name in names), nodes


@contextmanager
def _heartbeat(rank_info: RankInfo, address: str, port: int) -> Iterator[None]:
    """Tell the first process, within a block, that this one is alive, whatever it computes."""
    stop = threading.Event()

    def beat() -> None:
        with suppress(RuntimeError):  # the first process has left
            # Its own connection: a store serves one call at a time, and some wait.
            store = dist.TCPStore(address, port, timeout=HEARTBEAT_TIMEOUT, wait_for_workers=False)
            while not stop.wait(HEARTBEAT_SECONDS):
                store.add(f"beat/{rank_info.rank}", 1)

    thread = threading.Thread(target=beat, name="rank-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()  # before the interpreter ends, which would abort it within torch


def _depart(store: dist.Store, group: ProcessGroup, error: Exception) -> int:
    """Say in the store that this process leaves, and why; return how many have left so far, with this one.

    Raises:
        ProcessLost: the first process, which holds the store, is gone.
    """
    place = f"process {group.rank} of {group.size} on {_node_name()}"
    try:
        number = store.add("departures", 1)
        store.set(f"left/{group.rank}", f"{number} {place}: {type(error).__name__}: {error}")
    except RuntimeError:
        if isinstance(error, RuntimeError):
            raise ProcessLost(_describe_loss(0, group.nodes, ())) from error
        return 1
    return number


def _reason_to_part(
    store: dist.Store, group: ProcessGroup, children: Sequence[subprocess.Popen], own_number: int
) -> Exception | None:
    """Return the error of another process that caused one of communication here, None if there is no such error.

    Only the first process can know: it holds the store, by which the others say that they are alive or leave.
    """
    if not group.is_first:
        return None
    beats = {rank: (-1, time.monotonic()) for rank in range(1, group.size)}
    end = time.monotonic() + DEPARTURE_SECONDS
    while True:
        silent = [rank for rank in beats if not store.check([f"left/{rank}"])]
        for rank in silent:
            count = store.add(f"beat/{rank}", 0)
            if count != beats[rank][0]:
                beats[rank] = count, time.monotonic()
        lost = [rank for rank in silent if _is_lost(rank, beats[rank][1], children)]
        if lost == silent or time.monotonic() > end:
            break
        time.sleep(0.1)
    if lost:
        return ProcessLost("; ".join(_describe_loss(rank, group.nodes, children) for rank in lost))
    words = [store.get(f"left/{rank}").decode().partition(" ") for rank in beats if rank not in silent]
    departures = sorted((int(number), text) for number, _, text in words)
    return TrainingError(departures[0][1]) if departures and departures[0][0] < own_number else None


def _is_lost(rank: int, last_beat_seconds: float, children: Sequence[subprocess.Popen]) -> bool:
    if children:
        return children[rank - 1].poll() is not None
    return time.monotonic() - last_beat_seconds > LOST_SECONDS


def _describe_loss(rank: int, nodes: Sequence[str], children: Sequence[subprocess.Popen]) -> str:
    """Return `process 1 on n2 was lost`, with the signal that ended it where that is known."""
    place = f" on {nodes[rank]}" if nodes else ""
    code = children[rank - 1].poll() if children else None
    how = (
        "" if code is None else f": killed by {signal.Signals(-code).name}" if code < 0 else f": it exited with {code}"
    )
    return f"process {rank}{place} was lost{how}"


def _end(child: subprocess.Popen) -> None:
    """Wait for a process to exit, and kill it after 10 s."""
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
