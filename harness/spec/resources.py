"""Resources and records of a run: not part of its identity."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.spec.base import YOUNGER, SpecModel


class Resources(SpecModel):
    """Resources of a run and how it is computed. Bits may depend on them, the science does not; they are recorded."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(None, ge=1)  # None: the share of the job's cores at its first start
    microbatch: int | None = Field(None, ge=1)  # gradient accumulation: examples per forward pass
    activation_checkpointing: bool = False
    deterministic: bool = False  # CUDA: bit-exact resume, slower kernels
    kernels: Annotated[Literal["reference", "fused", "compiled", "cuda_graphs"], YOUNGER] = Field(
        "fused",
        description="How the network and AdamW are computed: as published, operation by operation; by fused attention, "
        "upsampling (on a CPU) and AdamW; these, and the network compiled; or compiled and replayed as CUDA graphs.",
    )
    nodes: int = Field(1, ge=1)  # nodes per run: with more than one process, training uses torch.distributed
    gpus_per_node: int = Field(0, ge=0)
    processes_per_node: int | None = Field(None, ge=1)  # None: one per GPU, or one without GPUs
    cpus: int = Field(1, ge=1)  # of each process
    memory_gib: float = Field(4.0, gt=0)
    time_minutes: int = Field(24 * 60, ge=1)
    pack: int = Field(1, ge=1)  # number of small runs that share the cores and GPUs of one SLURM job
    canary: bool = False  # SLURM: the array waits until its first run has trained for 50 steps

    @model_validator(mode="after")
    def _graphs_are_of_a_gpu(self) -> Resources:
        if self.kernels == "cuda_graphs" and (self.device == "cpu" or self.microbatch):
            given = "device: cpu" if self.device == "cpu" else f"microbatch: {self.microbatch}"
            raise ValueError(
                f"kernels: cuda_graphs replays one forward and backward pass a step on a GPU, but there is {given}: "
                "choose kernels: compiled"
            )
        return self

    @property
    def num_processes(self) -> int:
        """Return how many processes train one run."""
        return self.nodes * (self.processes_per_node or max(1, self.gpus_per_node))


class Records(SpecModel):
    log_every: int = Field(10, ge=1)  # steps
    checkpoint_every_seconds: float = Field(60.0, ge=0)
    keep_every: int | None = Field(None, ge=1)  # steps; every such checkpoint is kept
    best: str | None = Field(
        None, pattern=r"^[a-z][a-z0-9_]*/\w+$"
    )  # metric; the checkpoint with its lowest value is kept
    keep_features_mib: Annotated[float, YOUNGER] = Field(256.0, ge=0)  # features of samples are kept up to this size
    keep_samples: Annotated[bool, YOUNGER] = False  # samples of evaluations stay, not only until they are recorded

    def warnings(self) -> list[str]:
        """Return what a user of these settings should know."""
        if self.best is None or not self.best.rpartition("/")[2].startswith("fid_"):
            return []
        return [
            f"records.best {self.best}: the FID of the checkpoint that it chooses is the lowest of several readings, "
            "and so too low: measure that checkpoint again on samples of another seed before you report it"
        ]
