"""Several processes that train one run: where each stands, how they meet, and what they tell one another in a step.

Every process holds the whole network and works on its rows of the global batch. What a step draws is drawn for the
global batch by all of them (randomness.py), the gradients add up (DistributedDataParallel), and the losses are put
together again, so that all hold the same weights, timestep sampler and means. The first process alone has the lock,
the journal and the checkpoints. It evaluates at the end, when the others have left.

Tensors on the CPU travel by gloo, those on a GPU by NCCL. What the processes agree on at each step (to stop) is on the
CPU: the device is not waited for, and a process that died is noticed there at once, as its connections close.
"""

from __future__ import annotations

import gc
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from harness.errors import LaunchError, TrainingError
from harness.slurm.cluster import first_node_address

RENDEZVOUS_TIMEOUT = timedelta(minutes=5)  # until all processes of a run have started
COLLECTIVE_TIMEOUT = timedelta(hours=2)  # one process may keep the others waiting: an evaluation during training


@dataclass(frozen=True)
class RankInfo:
    """Where a process stands among those of a run, and where the first of them is met."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its node
    address: str = "127.0.0.1"
    port: int = 0  # 0: nobody has started the others yet

    @property
    def starts_others(self) -> bool:
        """Whether this is the first process of several, and nobody else will start the others."""
        return self.size > 1 and not self.port


def detect_rank(num_processes: int, environment: Mapping[str, str] = os.environ) -> RankInfo:
    """Find out where this process stands, for a run that wants `num_processes`.

    Whoever started several processes, SLURM's srun or torchrun, decides how many there are. A process that was started
    alone is the first of as many as the run wants.

    Raises:
        LaunchError: SLURM does not say where the first process is.
    """
    if num_processes == 1:
        return RankInfo()
    if "WORLD_SIZE" in environment:
        rank, size, local, port = (
            int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
        )
        return RankInfo(rank, size, local, environment["MASTER_ADDR"], port)
    # Of the step, not of the job: a batch script sees SLURM_NTASKS as well, and runs once.
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return RankInfo(
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment["SLURM_LOCALID"]),
            _first_address(environment["SLURM_STEP_NODELIST"]),
            20_000 + int(environment["SLURM_JOB_ID"]) % 12_000,  # below those that the kernel hands out by itself
        )
    return RankInfo(size=num_processes)


def _first_address(nodes: str) -> str:
    try:
        return first_node_address(nodes)
    except LaunchError as error:
        raise LaunchError(f"the processes of this run on {nodes} cannot meet: {error}") from error


@dataclass
class ProcessGroup:
    """The processes of a run, as one of them sees them. Alone, nothing here does anything."""

    rank: int = 0
    size: int = 1
    hosts: tuple[str, ...] = field(default_factory=lambda: (platform.node(),))  # by rank

    @property
    def is_first(self) -> bool:
        """Whether this process keeps the records."""
        return self.rank == 0

    def share(self, batch_size: int) -> slice:
        """Return this process's rows of a global batch; where it does not divide, shares differ by one row.

        Raises:
            TrainingError: there are fewer rows than processes.
        """
        if batch_size < self.size:
            raise TrainingError(f"{self.size} processes cannot share a batch of {batch_size}: ask for fewer")
        return slice(self.rank * batch_size // self.size, (self.rank + 1) * batch_size // self.size)

    def gather(self, terms: dict[str, Tensor], rows: slice, batch_size: int) -> dict[str, Tensor]:
        """Put the terms of all rows together: [rows] each -> [batch_size] each; scalars stay."""
        if self.size == 1:
            return terms
        by_row = {name: term for name, term in terms.items() if term.ndim}
        own = torch.stack(list(by_row.values()))
        # A sum in which every row has one process that knows it: exact, also where shares differ in size.
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

    def close(self) -> None:
        """Take part in nothing any more; the others may go on or end. Harmless to repeat."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
            # DistributedDataParallel refers to itself in a circle and would keep the connections, with threads that
            # abort the interpreter when it ends before them.
            gc.collect()


@contextmanager
def process_group(rank_info: RankInfo, *, cuda: bool, command: Sequence[str]) -> Iterator[ProcessGroup]:
    """Join the other processes of a run; leave them, and end those that were started here, when the block ends.

    Args:
        rank_info: of this process; the first one starts the others when nobody has.
        cuda: whether the run computes on GPUs.
        command: starts another process of this run, which finds its rank in its environment.

    Raises:
        TrainingError: another process did not come, failed, or was killed.
    """
    if rank_info.size == 1:
        yield ProcessGroup()
        return
    # Under torchrun, its agent holds the store.
    holds_store = rank_info.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    children: list[subprocess.Popen] = []
    group = ProcessGroup(rank_info.rank, rank_info.size)
    try:
        store = dist.TCPStore(
            rank_info.address, rank_info.port, is_master=holds_store, timeout=RENDEZVOUS_TIMEOUT, wait_for_workers=False
        )
    except dist.DistError as error:
        raise TrainingError(
            f"the first process of this run does not answer at {rank_info.address}:{rank_info.port}: {error}"
        ) from error
    try:
        if rank_info.starts_others:
            children += [_start(command, rank, rank_info.size, store.port) for rank in range(1, rank_info.size)]
        group.hosts = _meet(rank_info, store, children)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(
            backend, store=store, rank=rank_info.rank, world_size=rank_info.size, timeout=COLLECTIVE_TIMEOUT
        )
        yield group
    except Exception as error:
        if not group.is_first:
            with suppress(RuntimeError):  # the first process, who holds the store, may be gone
                place = f"process {rank_info.rank} of {rank_info.size} on {platform.node()}"
                failure = f"{place}: {type(error).__name__}: {error}"
                store.compare_set("failed", "", failure)
        elif isinstance(error, RuntimeError) and (why := _who_failed(store, children)):
            raise TrainingError(why) from error
        raise
    finally:
        group.close()
        for child in children:
            _end(child)


def _start(command: Sequence[str], rank: int, size: int, port: int) -> subprocess.Popen:
    variables = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # the very code that runs here
    # A session of its own: Ctrl-C reaches the first process alone, which tells the others at the next step.
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)


def _meet(rank_info: RankInfo, store: dist.Store, children: Sequence[subprocess.Popen]) -> tuple[str, ...]:
    """Wait until every process has said on which host it is."""
    store.set(f"host/{rank_info.rank}", platform.node())
    names = [f"host/{rank}" for rank in range(rank_info.size)]
    end = time.monotonic() + RENDEZVOUS_TIMEOUT.total_seconds()
    while not store.check(names):
        if time.monotonic() > end or any(child.poll() is not None for child in children):
            missing = sum(not store.check([name]) for name in names)
            raise TrainingError(
                _killed(children) or f"{missing} of {rank_info.size} processes of this run did not start"
            )
        time.sleep(0.02)
    return tuple(store.get(name).decode() for name in names)


def _who_failed(store: dist.Store, children: Sequence[subprocess.Popen]) -> str:
    """Return which other process is the cause of an error here, as far as it can be known."""
    time.sleep(0.2)  # a connection closes a moment before its process has ended
    if killed := _killed(children):
        return killed
    with suppress(RuntimeError):
        if store.check(["failed"]):
            return store.get("failed").decode()
    return ""


def _killed(children: Sequence[subprocess.Popen]) -> str:
    for rank, child in enumerate(children, 1):
        code = child.poll()
        if code is not None and code < 0:
            return f"process {rank} of {len(children) + 1} was killed by {signal.Signals(-code).name}"
    return ""


def _end(child: subprocess.Popen) -> None:
    """Wait for a process that has nothing left to do, or has lost us, and ends by itself; kill one that does not."""
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
