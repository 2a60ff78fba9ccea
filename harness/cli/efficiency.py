"""efficiency: what jobs asked for against what they used."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.common import Output, json_option, members, runs_folder_option

if TYPE_CHECKING:
    from harness.launch.efficiency import Use


@click.command()
@click.argument("study")
@json_option
@runs_folder_option
def efficiency(study: str, output: Output, runs_folder: Path) -> None:
    """Compare what jobs asked for and used.

    Time, memory, cores and GPUs of a study's jobs by what they asked for, and the lines of `resources` or of the
    profile that would fit. From SLURM's accounting; where there is none, from what the runs measured of themselves.

    With --json: {"study", "requests": [{"arms", "request": {"time_minutes", "memory_gib", "cores", "gpus", "nodes",
    "processes", "pack"}, "jobs", "device_hours", "longest_seconds", "peak_memory_gib", "cores", "gpu_percent",
    "gpu_memory_gib", "memory_kills", "source": "accounting"|"gauges", "fits": {FIELD: VALUE}}], "notes": [TEXT]};
    memory, cores and GPUs of a node.
    """
    from harness.cli.tables import Table
    from harness.launch.efficiency import efficiency as uses_of
    from harness.records.devices import mixed_devices
    from harness.text import compute_time, printable

    name, directories = members(study, runs_folder)
    uses, notes = uses_of(directories, name), mixed_devices(directories, name)
    requests = [asdict(use) | {"fits": use.fits()} for use in uses]
    output.document({"study": name, "requests": requests, "notes": notes})
    if output.as_json:
        return
    if not uses:
        click.echo("no run of it has ended an attempt yet")
        return
    headers = ("arms", "jobs", "device time", "time", "memory", "cores", "GPUs", "from")
    rows = [
        (
            ", ".join(use.arms),
            str(use.jobs),
            compute_time(use.device_hours),
            _time(use),
            _memory(use),
            f"{_amount(use.cores)} of {use.request.cores}",
            _gpus(use),
            use.source,
        )
        for use in uses
    ]
    Table(headers, rows).show()
    click.echo("used of what was asked for: the longest time, the most memory of a node, cores and GPUs on average")
    for use in uses:
        if fits := use.fits():
            asked = "" if use.request.memory_gib is None else f" with {use.request.memory_gib:.3g} GiB"
            click.echo(printable(f"would fit {', '.join(use.arms)}{asked}, in resources or in the profile:"))
            for field, value in fits.items():
                click.echo(f"    {field}: {value:g}")
    for note in notes:
        click.echo(printable(f"warning: {note}"))


def _time(use: Use) -> str:
    from harness.text import duration

    limit = use.request.time_minutes
    return f"{duration(use.longest_seconds)} of {duration(60 * limit) if math.isfinite(limit) else 'no limit'}"


def _memory(use: Use) -> str:
    asked = "?" if use.request.memory_gib is None else f"{use.request.memory_gib:.3g}"
    kills = f", killed {use.memory_kills} times" if use.memory_kills else ""
    return f"{_amount(use.peak_memory_gib)} of {asked} GiB{kills}"


def _gpus(use: Use) -> str:
    if not use.request.gpus:
        return "-"
    busy = "?" if use.gpu_percent is None else f"{use.gpu_percent:.0f} % busy"
    memory = "" if use.gpu_memory_gib is None else f", {use.gpu_memory_gib:.3g} GiB"
    return f"{use.request.gpus}: {busy}{memory}"


def _amount(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}"
