"""A cluster as scontrol and sacctmgr describe it: its settings, partitions, nodes and accounts, as text by key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.errors import LaunchError
from harness.slurm.commands import parse_records, parse_table, run_slurm
from harness.slurm.jobs import current_user
from harness.slurm.profile import Profile

DEFAULT_MAX_ARRAY_SIZE = 1001  # SLURM's own


@dataclass(frozen=True)
class ClusterInfo:
    """What `scontrol show` and `sacctmgr` say of a cluster."""

    config: Mapping[str, str]
    partitions: Mapping[str, Mapping[str, str]]
    nodes: Sequence[Mapping[str, str]]
    associations: Sequence[Mapping[str, str]] | None  # of this user; None where sacctmgr did not answer

    @property
    def default_partition(self) -> str | None:
        return next((name for name, record in self.partitions.items() if record.get("Default") == "YES"), None)

    @property
    def max_array_size(self) -> int:
        """The largest number of tasks of an array: SLURM limits the index, and ours starts at 0."""
        return _max_array_size(self.config)


def read_cluster_info() -> ClusterInfo:
    """Read SLURM's description of a cluster.

    Raises:
        LaunchError: scontrol does not answer.
    """
    partitions = parse_records(run_slurm("scontrol", "--oneliner", "show", "partition"))
    return ClusterInfo(
        read_config(),
        {record["PartitionName"]: record for record in partitions},
        parse_records(run_slurm("scontrol", "--oneliner", "show", "node")),
        _read_associations(),
    )


def read_config() -> dict[str, str]:
    """Read the settings of the cluster.

    Raises:
        LaunchError: scontrol does not answer.
    """
    return parse_config(run_slurm("scontrol", "show", "config"))


def max_array_size(profile: Profile) -> int:
    """Return the largest number of tasks of an array: the profile's, else the cluster's.

    Raises:
        LaunchError: the profile has none and scontrol does not answer.
    """
    return profile.max_array_size or _max_array_size(read_config())


def first_node_address(nodes: str) -> str:
    """Return the address of the first of SLURM's nodes, such as n[1-4]; a node's name may differ from its host name.

    Raises:
        LaunchError: scontrol does not answer or does not know the nodes.
    """
    names = run_slurm("scontrol", "show", "hostnames", nodes).split() if nodes else []
    if not names:
        raise LaunchError(f"SLURM knows no node in {nodes!r}")
    records = parse_records(run_slurm("scontrol", "--oneliner", "show", "node", names[0]))
    return records[0].get("NodeAddr", names[0]) if records else names[0]


def node_names() -> set[str]:
    """Return the names of the cluster's nodes.

    Raises:
        LaunchError: scontrol does not answer.
    """
    return {record["NodeName"] for record in parse_records(run_slurm("scontrol", "--oneliner", "show", "node"))}


def _max_array_size(config: Mapping[str, str]) -> int:
    return int(config.get("MaxArraySize", DEFAULT_MAX_ARRAY_SIZE))


def _read_associations() -> list[dict[str, str]] | None:
    columns = ("account", "partition", "qos", "defaultqos")
    query = ("show", "assoc", f"user={current_user()}", f"format={','.join(columns)}")
    try:
        table = run_slurm("sacctmgr", "--noheader", "--parsable2", *query)
    except LaunchError:
        return None
    return [dict(zip(columns, row, strict=True)) for row in parse_table(table, len(columns))]


# ------------------------------------------------------------------------------------------------------------- parsing


def parse_config(text: str) -> dict[str, str]:
    """Parse `scontrol show config`: one `Key = value` per line."""
    lines = (line.partition("=") for line in text.splitlines() if " = " in line)
    return {key.strip(): value.strip() for key, _, value in lines}


def parse_time_limit(limit: str) -> float:
    """Parse a time limit of SLURM's into minutes: 30, 30:00, 12:00:00, 2-00:00:00, UNLIMITED."""
    if limit in ("UNLIMITED", "INFINITE", "NONE", "N/A", ""):
        return float("inf")
    days, _, clock = limit.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if days:  # days-hours:minutes:seconds
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    else:  # [hours:]minutes[:seconds]
        hours, minutes, seconds = parts if len(parts) == 3 else (0, *parts, 0)[:3]
    return int(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def count_gpus(gres: str) -> int:
    """Count the GPUs of a node's Gres: gpu:2, gpu:a100:4(S:0-1), gpu:a100:2,gpu:v100:2."""
    without_sockets = re.sub(r"\([^)]*\)", "", gres)
    return sum(int(number) for number in re.findall(r"(?:^|,)gpu(?::[^:,]+)?:(\d+)(?=,|$)", without_sockets))


_UNUSABLE = {"DOWN", "DRAIN", "DRAINED", "DRAINING", "ERROR", "FAIL", "FAILING", "MAINT", "NOT_RESPONDING", "UNKNOWN"}


def is_usable(state: str) -> bool:
    """Return whether a node accepts jobs, from states such as IDLE, MIXED+DRAIN, DOWN* or IDLE+CLOUD+POWERED_DOWN."""
    return not state.endswith("*") and _UNUSABLE.isdisjoint(state.split("+"))
