"""How many jobs SLURM's accounting lets a user have in the queue, as sacctmgr says it. Each task of an array counts."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import LaunchError
from harness.slurm.commands import parse_records, parse_table, run_slurm
from harness.slurm.jobs import current_user, live_jobs
from harness.slurm.profile import Profile


@dataclass(frozen=True)
class SubmitLimit:
    """A limit on this user's queued and running jobs."""

    jobs: int
    name: str  # MaxSubmitJobs of account lab


def read_submit_limit(profile: Profile) -> SubmitLimit | None:
    """Return the smallest limit on the jobs that a profile's submissions may have in the queue; None without one.

    Limits of whole accounts, which colleagues use up, are left out.

    Raises:
        LaunchError: sacctmgr does not answer; a cluster without slurmdbd has no limits.
    """
    associations = _table("assoc", ("account", "partition", "defaultqos", "maxsubmit"), f"user={current_user()}")
    if profile.account:
        usable = [row for row in associations if row["account"] == profile.account]
    else:
        default = {row["defaultaccount"] for row in _table("user", ("defaultaccount",), current_user())}
        usable = [row for row in associations if row["account"] in default]
    partitions = (profile.partition or "").split(",")
    usable = [row for row in usable if row["partition"] in ("", *partitions)]
    limits = [
        SubmitLimit(int(row["maxsubmit"]), f"MaxSubmitJobs of account {row['account']}")
        for row in usable
        if row["maxsubmit"].isdecimal()
    ]
    names = {profile.qos} if profile.qos else {row["defaultqos"] or "normal" for row in usable}
    names |= {record.get("QoS", "") for record in _partitions() if record["PartitionName"] in partitions}
    limits += [
        SubmitLimit(int(row["maxsubmitpu"]), f"MaxSubmitJobsPerUser of qos {row['name']}")
        for row in _table("qos", ("name", "maxsubmitpu"))
        if row["name"] in names and row["maxsubmitpu"].isdecimal()
    ]
    return min(limits, key=lambda limit: limit.jobs, default=None)


def room_for_jobs(profile: Profile) -> int | None:
    """Return how many more jobs SLURM would take, 0 or more; None where no limit is known."""
    try:
        limit = read_submit_limit(profile)
        return max(0, limit.jobs - len(live_jobs())) if limit else None
    except LaunchError:
        return None


def _partitions() -> list[dict[str, str]]:
    return parse_records(run_slurm("scontrol", "--oneliner", "show", "partition"))


def _table(entity: str, columns: tuple[str, ...], *conditions: str) -> list[dict[str, str]]:
    query = ("show", entity, *conditions, f"format={','.join(columns)}")
    table = run_slurm("sacctmgr", "--noheader", "--parsable2", *query)
    if len(columns) == 1:  # a line without a separator is no table to `parse_table` of several columns
        return [{columns[0]: line} for line in table.splitlines()]
    return [dict(zip(columns, row, strict=True)) for row in parse_table(table, len(columns))]
