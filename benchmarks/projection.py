"""What many GPUs would do, by arithmetic: nothing here has been measured on one.

A step takes its arithmetic at an assumed share of the card's peak, or the time in which its kernels are launched if
that is longer; then what is left of the gradients' all-reduce when the backward pass ends. Parameters and multiply-adds
are counted from the harness's own networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables import table
from harness.launch.arithmetic import Arithmetic, arithmetic_of
from harness.launch.estimate import LEAST_STEP_SECONDS
from harness.spec.cards import CARDS, UTILISATION
from harness.study.expand import load_study

ROOT = Path(__file__).resolve().parents[1]
CARD, PRECISION = CARDS["h100"], "bf16"
GPUS_OF_A_NODE = 8
BUCKET_BYTES = 25 << 20  # DistributedDataParallel's own
SHARE_OF_BACKWARD = 2 / 3  # of the arithmetic: gradients of inputs and of weights, each as much as the forward pass
MEMORY_BYTES_A_SECOND = 3.35e12 / 4  # of the card; a quarter of it for drawing normal numbers
NUMBERS_OF_GPUS = (1, 8, 16, 32, 64)


@dataclass(frozen=True)
class Network:
    """What two GPUs of any network have to exchange, and one of them to compute."""

    name: str
    arithmetic: Arithmetic
    numbers_an_image: int  # channels x height x width

    @property
    def gradient_bytes(self) -> int:
        return 4 * self.arithmetic.parameters

    def compute_seconds(self, batch_size: float) -> float:
        """Return the time of a step without communication, of one GPU with this batch."""
        flops = 2 * self.arithmetic.step_multiply_adds * batch_size
        peak = 1e12 * CARD.peak_tflops(PRECISION) * UTILISATION[PRECISION]
        return max(LEAST_STEP_SECONDS, flops / peak)


@dataclass(frozen=True)
class Links:
    """How GPUs are connected.

    Attributes:
        bytes_a_second: that each GPU sends in a ring, within a node and between nodes.
        latency_seconds: of one all-reduce, however small, within a node and between nodes.
    """

    name: str
    bytes_a_second: tuple[float, float]
    latency_seconds: tuple[float, float] = (50e-6, 200e-6)

    def seconds(self, num_bytes: float, num_gpus: int) -> float:
        """Return the time of a ring all-reduce: each GPU sends 2 (n - 1) / n of the bytes."""
        if num_gpus == 1:
            return 0.0
        between = num_gpus > GPUS_OF_A_NODE
        rate = min(self.bytes_a_second) if between else self.bytes_a_second[0]
        return bytes_sent(num_bytes, num_gpus) / rate + self.latency_seconds[between]


LINKS = (
    Links("8 x NDR", (360e9, 8 * 46e9)),
    Links("1 x HDR", (360e9, 23e9)),
)


@dataclass(frozen=True)
class Step:
    """A projected training step.

    Attributes:
        all_reduce_seconds: of all gradients; most of it beside the backward pass.
        exposed_seconds: of it, after the backward pass.
    """

    compute_seconds: float
    all_reduce_seconds: float
    exposed_seconds: float

    @property
    def seconds(self) -> float:
        return self.compute_seconds + self.exposed_seconds


def bytes_sent(num_bytes: float, num_gpus: int) -> float:
    """Return what each GPU sends in a ring all-reduce of some bytes."""
    return 2 * (num_gpus - 1) / num_gpus * num_bytes


def project(network: Network, links: Links, num_gpus: int, batch_size: float) -> Step:
    """Project a step in which every GPU has its own batch of this size.

    Buckets of gradients are reduced one after another while the backward pass computes the next ones. The last one is
    ready when it ends, so that its all-reduce is never hidden.
    """
    compute, size = network.compute_seconds(batch_size), network.gradient_bytes
    num_buckets = math.ceil(size / BUCKET_BYTES)
    one = links.seconds(size / num_buckets, num_gpus)
    exposed = max(one, num_buckets * one - SHARE_OF_BACKWARD * compute)
    return Step(compute, num_buckets * one, exposed)


def networks() -> list[Network]:
    """Return IDDPM's networks, counted."""
    found = []
    for name, study, channels in (
        ("CIFAR-10, C = 128", "table2_cifar10", 128),
        ("ImageNet-64, C = 128", "table1_imagenet64", 128),
        ("ImageNet-64, C = 192", "table1_imagenet64", 192),
    ):
        file = ROOT / f"experiments/iddpm/{study}.yaml"
        spec = load_study(file, sets=[f"model.channels={channels}"]).runs[0].spec
        arithmetic, facts = arithmetic_of(spec), spec.data.facts
        assert arithmetic is not None and facts.image_size is not None, "they are the harness's own"
        found.append(Network(name, arithmetic, facts.channels * facts.image_size**2))
    return found


BATCH_SIZE = 128
"""Of the published trainings, in all."""


def markdown() -> str:
    """Return the section of RESULTS.md."""
    counted = networks()
    return "\n\n".join([
        "## Projection: 8 to 64 GPUs",
        "**A projection by arithmetic (`python -m benchmarks.devices --only projection`), not a measurement: no GPU "
        "has run it.** It says where more GPUs cannot help, and what to measure first.",
        _assumptions(),
        "### The same batch on every GPU (128)",
        table(_header(), [row for network in counted for row in _weak_rows(network)]),
        "### The published batch, 128 in all",
        table(
            ["", *(f"{number} GPUs" if number > 1 else "1 GPU" for number in NUMBERS_OF_GPUS)],
            [row for network in counted for row in _strong_rows(network)],
        ),
        _limits(counted),
    ])  # fmt: skip


def _assumptions() -> str:
    inside, outside = (seconds * 1e6 for seconds in LINKS[0].latency_seconds)
    rows = [
        [
            "arithmetic",
            f"{UTILISATION[PRECISION]:.0%} of an {CARD.name}'s {CARD.bf16:g} TFLOPS in {PRECISION}, and "
            f"{1e3 * LEAST_STEP_SECONDS:.0f} ms a step at least, in which kernels are launched",
            f"peak: {CARD.source}; the share: `harness/spec/cards.py`, which says what published speeds give it",
        ],
        [
            "bytes that a GPU sends",
            "2 (n - 1) / n x 4 bytes a parameter and step, in buckets of 25 MiB",
            "ring all-reduce, as in NVIDIA's nccl-tests, doc/PERFORMANCE.md; DistributedDataParallel's default",
        ],
        [
            "within a node of 8",
            "360 GB/s: 80 % of NVLink 4's 450 GB/s each way",
            "900 GB/s both ways: NVIDIA H100 Tensor Core GPU architecture; 80 % is assumed. nccl-tests issue 290 calls "
            "476 GB/s usual for the 8 GPUs of a node, where the switch adds up",
        ],
        [
            "between nodes, 8 x NDR",
            "8 InfiniBand ports of 400 Gb/s a node, 46 GB/s each",
            "NVIDIA DGX H100 datasheet; 46 to 48 GB/s a port: NCCL's maintainers in nccl-tests issue 290",
        ],
        [
            "between nodes, 1 x HDR",
            "one port of 200 Gb/s a node, 23 GB/s: an older or cheaper cluster",
            "the same share of the port's rate",
        ],
        ["an all-reduce at least", f"{inside:.0f} us within a node, {outside:.0f} us between nodes", "assumed"],
        [
            "hidden",
            "what is reduced while the backward pass runs, two thirds of the arithmetic, all but the last bucket",
            "as DistributedDataParallel works",
        ],
    ]
    return table(["", "assumed", "source"], rows)


def _header() -> list[str]:
    return [
        "",
        "parameters",
        "GPUs",
        "sent a GPU and step",
        "step without it",
        *(f"all-reduce, {links.name}" for links in LINKS),
        *(f"not hidden, {links.name}" for links in LINKS),
        *(f"efficiency, {links.name}" for links in LINKS),
        "noise, drawn whole",
    ]


def _weak_rows(network: Network) -> list[list[str]]:
    rows = []
    for number in NUMBERS_OF_GPUS:
        steps = [project(network, links, number, BATCH_SIZE) for links in LINKS]
        noise = 4 * number * BATCH_SIZE * network.numbers_an_image / MEMORY_BYTES_A_SECOND
        rows.append([
            network.name if number == 1 else "",
            f"{network.arithmetic.parameters / 1e6:.1f} M" if number == 1 else "",
            str(number),
            f"{bytes_sent(network.gradient_bytes, number) / 1e6:.0f} MB",
            milliseconds(steps[0].compute_seconds),
            *(milliseconds(step.all_reduce_seconds) for step in steps),
            *(milliseconds(step.exposed_seconds) for step in steps),
            *(f"{step.compute_seconds / step.seconds:.1%}" for step in steps),
            milliseconds(noise),
        ])  # fmt: skip
    return rows


def _strong_rows(network: Network) -> list[list[str]]:
    alone = project(network, LINKS[0], 1, BATCH_SIZE).seconds
    rows = []
    for links in LINKS:
        steps = [project(network, links, number, BATCH_SIZE / number) for number in NUMBERS_OF_GPUS]
        cells = [f"{milliseconds(step.seconds)}, {alone / step.seconds:.1f} x" for step in steps]
        rows.append([f"{network.name}, {links.name}", *cells])
    return rows


def _limits(counted: Sequence[Network]) -> str:
    cifar, imagenet = counted[:2]
    alone = milliseconds(cifar.compute_seconds(BATCH_SIZE))
    useful = imagenet.compute_seconds(BATCH_SIZE) / LEAST_STEP_SECONDS
    slow = project(counted[2], LINKS[1], 16, BATCH_SIZE / 16)
    return f"""Where it breaks down:

- **The published batch.** A step of CIFAR-10 takes {alone} on one GPU, not much more than the
  {1e3 * LEAST_STEP_SECONDS:.0f} ms in which its kernels are assumed to be launched, so more GPUs hardly help one run.
  Give them to replicates and arms, a run a GPU: `submit` does that by itself, and nothing is exchanged. ImageNet-64
  at C = 128 has work for {useful:.1f} GPUs. `kernels: compiled` and `cuda_graphs` lower the limit; by how much is
  not measured.
- **A larger batch is another experiment**: `train.batch_size` is part of the run_key, the number of GPUs is not.
- **One port a node** carries large batches and not small ones: of ImageNet-64 at C = 192 with 8 images a GPU on 16
  GPUs, {milliseconds(slow.exposed_seconds)} of {milliseconds(slow.all_reduce_seconds)} of all-reduce are not hidden.
- **At each step the processes agree on the CPU whether to stop**, by 2 (n - 1) messages of gloo one after another. A
  GPU does not wait for that while its host is ahead of it, as in a step of tens of milliseconds.
- **A GPU draws the noise of the whole batch** (the last column, at a quarter of the memory's rate); DDGAN and SIDDM
  draw six and eight times as much.
- **DDGAN and SIDDM reduce after the backward pass**, in one message a network: nothing of it is hidden.
- Not in it: the slowest of n GPUs, for which all wait; other jobs on the network; data on a slow disk that fit no
  GPU."""


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms" if seconds >= 0.01 else f"{1e3 * seconds:.2g} ms"
