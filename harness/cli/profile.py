"""profile: where the time of a training step goes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from harness.cli.common import (
    Output,
    find_run,
    is_run_name,
    json_option,
    load,
    runs_folder_option,
)
from harness.cli.study_files import find_study_file, is_study_file
from harness.errors import LaunchError

if TYPE_CHECKING:
    from harness.job.profile import Profile
    from harness.spec.resources import Records, Resources
    from harness.spec.run import RunSpec


class Profiled(NamedTuple):
    """A run whose steps are profiled: of a study the first of each kind."""

    name: str
    spec: RunSpec
    resources: Resources
    records: Records
    data_root: str | None


@click.command()
@click.argument("run_or_study")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Profiled steps.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder.  [default: in the cache]")
@json_option
@runs_folder_option
def profile(run_or_study: str, steps: int, out: Path | None, output: Output, runs_folder: Path) -> None:
    """Show where a training step's time goes.

    Some steps are trained from the initial weights, on this machine and in one process: data, forward, backward,
    optimizer, EMA and records, without checkpoints and evaluations. Of a STUDY the first run of each kind of network,
    data and batch; of a run of several processes one, with its share of the batch and without communication. Nothing is
    written to a run's records. Into --out go a picture, profile.png, and trace.json.gz for
    https://ui.perfetto.dev.

    With --json: [{"run_key", "name", "device", "device_name", "threads", "batch_size", "num_processes", "num_steps",
    "step_ms", "profiled_step_ms", "parts": [{"name", "host_ms", "device_ms"}], "operators": [{"name", "calls",
    "self_ms"}], "picture", "trace"}]; "device_ms" is null without a GPU.
    """
    from harness.data.cache import cache_folder
    from harness.job.profile import profile_training

    profiles = []
    for chosen in _chosen_runs(run_or_study, runs_folder):
        folder = (out or cache_folder("profiles")) / chosen.spec.run_key
        _make(folder)
        trace = folder / "trace.json.gz"
        result = profile_training(*chosen[1:], steps=steps, trace=trace)
        picture = _draw(result, chosen.name, folder / "profile.png")
        profiles.append({
            "run_key": chosen.spec.run_key, "name": chosen.name, **asdict(result), "picture": str(picture),
        })  # fmt: skip
        if not output.as_json:
            _show(result, chosen.name, picture)
    output.document(profiles)


def _chosen_runs(run_or_study: str, runs_folder: Path) -> list[Profiled]:
    """Return the run of that name or key, or the first run of each kind of a study.

    Raises:
        LaunchError: there is neither a study nor a run of that name.
    """
    if is_run_name(run_or_study) or (not is_study_file(run_or_study) and _is_key(run_or_study)):
        from harness.job.request import RunRequest
        from harness.records.plugins import read_spec

        directory = find_run(run_or_study, runs_folder)
        request = RunRequest.of(directory)
        spec = read_spec(directory.path, directory.spec())
        return [Profiled(directory.key, spec, request.resources, request.records, request.data_root)]
    first: dict[str, Profiled] = {}
    for run in load(find_study_file(run_or_study, runs_folder)).runs:
        chosen = Profiled(f"{run.study}/{run.arm}", run.spec, run.resources, run.records, run.data_root)
        first.setdefault(run.spec.cost_key, chosen)
    return list(first.values())


def _is_key(name: str) -> bool:
    return len(name) <= 16 and all(character in "0123456789abcdef" for character in name)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(f"{folder}: cannot be made ({error.strerror}); give another by --out") from error


def _draw(result: Profile, name: str, picture: Path) -> Path:
    from harness.analysis.figures.profile_picture import draw_profile

    parts = [(part.name, part.host_ms, part.device_ms) for part in result.parts]
    figure = draw_profile(
        f"{name}: {_milliseconds(result.step_ms)} a step on {result.device_name}",
        parts,
        [(operator.name, operator.self_ms) for operator in result.operators],
    )
    figure.savefig(picture)
    return picture


def _show(result: Profile, name: str, picture: Path) -> None:
    from harness.cli.tables import Table
    from harness.text import count, printable

    on_device = result.device != "cpu"
    threads = "" if on_device else f", {count(result.threads, 'thread')}"
    speed = result.batch_size / result.step_ms * 1e3
    click.echo(printable(f"{name} on {result.device_name}{threads}"))
    if result.num_processes > 1:
        click.echo(f"one of {result.num_processes} processes, without communication; its batch is {result.batch_size}")
    click.echo(
        f"{_milliseconds(result.step_ms)} a step, {speed:,.1f} images a second; "
        f"{_milliseconds(result.profiled_step_ms)} under the profiler, which these are parts of\n"
    )
    headers = ("part", "ms a step", "share", *(("on the GPU, ms", "of the GPU's time") if on_device else ()))
    total, of_device = result.profiled_step_ms, sum(part.device_ms or 0 for part in result.parts)
    Table(headers, [_cells(part, total, of_device) for part in result.parts]).show()
    if on_device:
        click.echo(f"\nthe GPU is busy for {_milliseconds(of_device)} of {_milliseconds(total)}")
    click.echo("")
    rows = [(each.name, f"{each.calls:g}", f"{each.self_ms:.3f}") for each in result.operators]
    Table(("operator", "calls a step", "ms of its own"), rows).show()
    click.echo(f"\n{picture}\n{result.trace} for https://ui.perfetto.dev\n")


def _milliseconds(value: float) -> str:
    """Return three digits at least: `3,050 ms`, `0.123 ms`."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def _cells(part: Any, total: float, of_device: float) -> tuple[str, ...]:
    cells = (part.name, f"{part.host_ms:.3f}", f"{part.host_ms / total:.1%}")
    if part.device_ms is None:
        return cells
    return *cells, f"{part.device_ms:.3f}", f"{part.device_ms / of_device:.1%}" if of_device else "-"
