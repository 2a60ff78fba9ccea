"""sync, export, import, clean: maintain the records in the run directories."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.common import Output, json_option, members, runs_folder_option, studies_or_runs
from harness.errors import LaunchError, RecordError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.records.directory import RunDirectory
    from harness.records.disk import Removable

figures_option = click.option(
    "--figures", type=click.Path(path_type=Path), default=Path("figures"), show_default=True, help="Folder of figures."
)


@click.command()
@click.argument("names", nargs=-1, metavar="[STUDY|RUN]...")
@click.option("--check", is_flag=True, help="Compare MLflow with the journals row for row; change nothing.")
@click.option("--watch", is_flag=True, help="Repeat until nothing is left to run (without STUDY: until Ctrl-C).")
@click.option("--every", type=click.FloatRange(1), default=30, show_default=True, help="Seconds, with --watch.")
@json_option
@runs_folder_option
def sync(names: tuple[str, ...], check: bool, watch: bool, every: float, output: Output, runs_folder: Path) -> None:
    """Upload records to MLflow, exactly once.

    The records of studies, of runs, or all. Safe to repeat: what MLflow already has is not sent again.

    With --json: {"runs": [{"run_key", "num_rows", "problems": [TEXT]}]}, the rows being those sent, or with --check
    those compared; and with --check also "arms": [{"study", "arm", "num_rows", "problems"}], "arm" being null for the
    study's own run.
    """
    from harness import text
    from harness.tracking.studies import sync_studies

    output.refuse_with("--watch", watch)
    if watch and check:
        raise LaunchError("--watch uploads and --check only compares; use one of them")
    if watch:
        _watch(names, every, runs_folder)
        return

    directories = studies_or_runs(names, runs_folder)
    results = list(_compare(directories) if check else _upload(directories))
    arms = list(_compare_arms(directories)) if check else []
    if not check:
        sync_studies(directories)
    output.document({"runs": results} | ({"arms": arms} if check else {}))
    rows = text.count(sum(result["num_rows"] for result in results), "row")
    num_wrong = sum(bool(result["problems"]) for result in [*results, *arms])
    verb = "compared" if check else "sent"
    click.echo(f"{text.count(len(results), 'run')}, {rows} {verb}, {num_wrong} with problems")
    if not check:
        show_views(directories)
    if num_wrong:
        sys.exit(1)


def _upload(directories: Sequence[RunDirectory]) -> Iterator[dict[str, Any]]:
    """Upload runs, print what is wrong, and yield the result of each."""
    from harness.tracking.sync import sync_runs

    for directory, report in sync_runs(directories):
        problems, num_rows = directory.damage(), 0
        if isinstance(report, RecordError):
            problems.append(f"not uploaded: {report}")
        else:
            problems += report.problems
            num_rows = sum(study.num_rows_sent for study in report.studies.values())
        _show(directory.key, problems)
        yield {"run_key": directory.key, "num_rows": num_rows, "problems": problems}


def _compare(directories: Sequence[RunDirectory]) -> Iterator[dict[str, Any]]:
    """Compare runs with MLflow, print a line for each that differs, and yield the result of each with all lines."""
    from harness.tracking.check import check

    for directory in directories:
        problems, num_rows = directory.damage(), 0
        shown = list(problems)
        try:
            report = check(directory)
        except RecordError as error:
            problems.append(f"not compared: {error}")
            shown.append(problems[-1])
        else:
            num_rows = report.num_rows_compared
            problems += report.lines()
            shown.append(report.summary())
        _show(directory.key, shown)
        yield {"run_key": directory.key, "num_rows": num_rows, "problems": problems}


def _compare_arms(directories: Sequence[RunDirectory]) -> Iterator[dict[str, Any]]:
    """Compare the runs of arms and studies with the records, as `_compare` does."""
    from harness.tracking.check import check_studies

    for (study, arm), report in check_studies(directories).items():
        _show(f"{study}/{arm}" if arm else study, [report.summary()])
        number, problems = report.num_rows_compared, report.lines()
        yield {"study": study, "arm": arm or None, "num_rows": number, "problems": problems}


def _show(name: str, lines: Sequence[str]) -> None:
    from harness import text

    for line in filter(None, lines):
        click.echo(text.printable(f"{name}: {line}"))


def show_views(
    directories: Sequence[RunDirectory], *, tracking_uri: str | None = None, server: str | None = None
) -> str | None:
    """Print where each study's views are opened in MLflow; return the first one's address, None if there is none."""
    from harness import text
    from harness.tracking.experiment import view_addresses

    first = None
    for study, views in view_addresses(directories, tracking_uri=tracking_uri, server=server).items():
        click.echo(text.printable(f"{study} in MLflow:"))
        width = max(len(view.name) for view in views)
        for view in views:
            click.echo(f"  {view.name:{width}}  {view.address}")
            first = first or view.address
    return first


@click.command()
@click.argument("names", nargs=-1, metavar="[STUDY|RUN]...")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="On this machine.")
@click.option("--no-browser", is_flag=True, help="Print the addresses only.")
@json_option
@runs_folder_option
def ui(names: tuple[str, ...], port: int, no_browser: bool, output: Output, runs_folder: Path) -> None:
    """Open MLflow's pages at a study's first view.

    Uploads what is missing, prints the address of each view, and opens a browser where there is a display. Of a store
    that is a file the pages are served here until Ctrl-C; a server serves its own.

    With --json: {"server", "served": BOOL, "studies": {NAME: [{"name", "address"}]}}, and nothing is opened or served.
    """
    from harness import text
    from harness.tracking.experiment import view_addresses
    from harness.tracking.pages import open_when_served, serve
    from harness.tracking.store import initialise_store, server_address
    from harness.tracking.studies import sync_studies
    from harness.tracking.sync import sync_runs

    directories = studies_or_runs(names, runs_folder)
    for directory, report in sync_runs(directories):
        if isinstance(report, RecordError):
            click.echo(text.printable(f"{directory.key}: not uploaded: {report}"), err=True)
    sync_studies(directories)
    uri = initialise_store()
    own = server_address(uri)
    server = own or f"http://127.0.0.1:{port}"
    addresses = view_addresses(directories, server=server)
    studies = {study: [asdict(view) for view in views] for study, views in addresses.items()}
    output.document({"server": server, "served": bool(own), "studies": studies})
    if output.as_json:
        return
    first = show_views(directories, server=server) or server
    if not no_browser:
        open_when_served(first, server)
    if not own:
        sys.exit(serve(uri, port))


def _watch(names: tuple[str, ...], every: float, runs_folder: Path) -> None:
    import time

    from harness import text
    from harness.launch.states import shown_states
    from harness.tracking import daemon

    def show(message: str) -> None:
        for line in message.splitlines():
            click.echo(f"{time.strftime('%H:%M:%S')} {text.printable(line)}")

    try:
        runs = partial(studies_or_runs, names, runs_folder)
        daemon.watch(runs, shown_states, show, every_seconds=every, for_ever=not names)
    except KeyboardInterrupt:
        click.echo("stopped; the next `harness sync` uploads what is left")


@click.command()
@click.argument("study")
@click.option(
    "-o", "--output", "file", type=click.Path(path_type=Path, dir_okay=False), help="File.  [default: STUDY.tar.gz]"
)
@click.option(
    "--checkpoints",
    type=click.Choice(["none", "newest", "all"]),
    default="none",
    show_default=True,
    help="Which checkpoints of each run go into the archive.",
)
@figures_option
@json_option
@runs_folder_option
def export(study: str, file: Path | None, checkpoints: str, figures: Path, output: Output, runs_folder: Path) -> None:
    """Pack a study into one archive.

    Its specs, records and figures, with checksums; `harness import` unpacks it on another machine.

    With --json: {"study", "file", "num_runs", "num_files", "num_bytes", "sha256", "left_out": [TEXT]}.
    """
    from harness import text
    from harness.cli.earlier import earlier_lines
    from harness.records import archive
    from harness.records.manifest import Manifests

    name, directories = members(study, runs_folder)
    assert name is not None, "a study was named"
    path = file or Path(f"{name}.tar.gz")
    done = archive.export_study(name, directories, path, checkpoints=checkpoints, figures=figures / name)  # type: ignore[arg-type]
    for left_out in done.left_out:
        click.echo(text.printable(f"left out: {left_out}"))
    for line in earlier_lines(name, [run.key for run in Manifests(runs_folder).earlier_runs(name)], [], runs_folder):
        click.echo(f"left out: {line}")
    content = f"{text.count(done.num_runs, 'run')}, {text.count(done.num_files, 'file')}, {text.size(done.num_bytes)}"
    click.echo(f"{path}: {content}; sha256 {done.sha256}")
    exported = asdict(done)
    output.document({"study": name, "file": str(exported.pop("path")), **exported})


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@figures_option
@json_option
@runs_folder_option
def import_(file: Path, figures: Path, output: Output, runs_folder: Path) -> None:
    """Unpack an archive of a study.

    All of it is checked before the first run is put in place, and no run is ever overwritten. What is no record of a
    run is left out, and the state of a run is read from its journals: one that was not finished is interrupted.

    With --json: {"study", "added": [RUN_KEY], "present": [RUN_KEY], "num_figures", "left_out": [TEXT]}.
    """
    from harness import text
    from harness.records import archive

    done = archive.import_study(file, runs_folder, figures=figures)
    for left_out in done.left_out:
        click.echo(text.printable(f"left out: {left_out}"))
    present = f", {text.count(len(done.present), 'run')} already here" if done.present else ""
    drawn = f", {text.count(done.num_figures, 'figure file')}" if done.num_figures else ""
    click.echo(f"study {done.study}: {text.count(len(done.added), 'run')} imported{present}{drawn}")
    status, upload = (text.harness_command(verb, done.study, runs_folder=runs_folder) for verb in ("status", "sync"))
    click.echo(f"next: {status}; for MLflow: {upload}")
    output.document(asdict(done))


@click.command()
@click.argument("study", required=False)
@click.option("--yes", is_flag=True, help="Remove what is safe to remove, without asking.")
@json_option
@runs_folder_option
def clean(study: str | None, yes: bool, output: Output, runs_folder: Path) -> None:
    """Show disk usage and remove leftovers.

    Nothing is removed without --yes or a yes at the prompt.

    With --json: {"num_bytes": {KIND: bytes}, "removable": [{"path", "num_bytes", "why"}], "num_bytes_freed"}.
    """
    from harness import text
    from harness.cli import tables
    from harness.cli.earlier import earlier_lines
    from harness.records import disk
    from harness.records.manifest import Manifests

    name, directories = members(study, runs_folder)
    used = disk.usage(directory.path for directory in directories)
    rows = [(kind, text.size(used[kind])) for kind in sorted(used, key=lambda kind: -used[kind])]
    if not output.as_json:
        tables.Table(("kind", "disk"), [*rows, ("all", text.size(sum(used.values())))]).show()
    by_run = {directory.key: disk.removable(directory) for directory in directories}
    folders = [] if study else disk.removable_folders(runs_folder)
    removable = [*(item for items in by_run.values() for item in items), *folders]
    _show_removable(removable)
    freed = 0
    if removable and not yes and (output.as_json or not sys.stdin.isatty()):
        click.echo("nothing removed; --yes removes them")
    elif removable and (yes or click.confirm("Remove them?")):
        freed = sum(disk.remove(directory) for directory in directories if by_run[directory.key])
        freed += sum(map(disk.remove_folder, folders))
        click.echo(f"freed {text.size(freed)}")
    if name:
        earlier = Manifests(runs_folder).earlier_runs(name)
        for line in earlier_lines(name, [directory.key for directory in earlier], [], runs_folder):
            click.echo(f"{line}; they take {text.size(sum(disk.usage(run.path for run in earlier).values()))}")
    items = [asdict(item) for item in removable]
    output.document({"num_bytes": dict(used), "removable": items, "num_bytes_freed": freed})


def _show_removable(removable: Sequence[Removable]) -> None:
    from harness import text

    if not removable:
        click.echo("nothing is safe to remove")
    for reason in sorted({item.why for item in removable}):
        items = [item for item in removable if item.why == reason]
        kind = text.count(len(items), "folder" if items[0].path.is_dir() else "file")
        click.echo(f"safe to remove: {kind}, {text.size(sum(item.num_bytes for item in items))}: {reason}")
