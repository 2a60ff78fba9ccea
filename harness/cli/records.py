"""sync, clean, export, import: what lies in the run directories."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.common import members, runs_folder_option, studies_or_run
from harness.errors import LaunchError

if TYPE_CHECKING:
    from harness.records.directory import RunDirectory


@click.command()
@click.argument("what", nargs=-1, metavar="[STUDY|RUN]...")
@click.option("--check", is_flag=True, help="Compare MLflow with the journals row for row, and change nothing.")
@click.option("--watch", is_flag=True, help="Go on until nothing is left to run (with no STUDY: until Ctrl-C).")
@click.option("--every", type=click.FloatRange(1), default=30, show_default=True, help="Seconds, with --watch.")
@runs_folder_option
def sync(what: tuple[str, ...], check: bool, watch: bool, every: float, runs_folder: Path) -> None:
    """Carry records to MLflow, each row once: of studies, of runs, or all. Safe to repeat."""
    from harness import text
    from harness.tracking.check import check as check_run
    from harness.tracking.sync import sync_run

    if watch and check:
        raise LaunchError("--watch carries and --check only looks; say one of them")
    if watch:
        _watch(what, every, runs_folder)
        return

    directories = {
        directory.key: directory for one in what or (None,) for directory in studies_or_run(one, runs_folder)
    }
    wrong, num_rows = 0, 0
    for directory in directories.values():
        if check:
            report = check_run(directory)
            num_rows += report.num_rows_compared
            found = [*report.gaps, *report.duplicates, *report.conflicts, *report.problems]
        else:
            sent = sync_run(directory)
            num_rows += sum(study.num_rows_sent for study in sent.studies.values())
            found = sent.problems
        for line in found:
            click.echo(text.printable(f"{directory.key}: {line}"))
        wrong += bool(found)
    verb = "compared" if check else "sent"
    click.echo(f"{text.count(len(directories), 'run')}, {text.count(num_rows, 'row')} {verb}, {wrong} with problems")
    if wrong:
        sys.exit(1)


def _watch(what: tuple[str, ...], every: float, runs_folder: Path) -> None:
    import time

    from harness import text
    from harness.tracking import daemon

    def gather() -> list[RunDirectory]:
        found = [directory for one in what or (None,) for directory in studies_or_run(one, runs_folder)]
        return list({directory.key: directory for directory in found}.values())

    def say(message: str) -> None:
        for line in message.splitlines():
            click.echo(f"{time.strftime('%H:%M:%S')} {text.printable(line)}")

    try:
        daemon.watch(gather, say, every_seconds=every, for_ever=not what)
    except KeyboardInterrupt:
        click.echo("stopped; what is not carried yet, the next `harness sync` carries")


@click.command()
@click.argument("study")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="[default: STUDY.tar.gz]")
@click.option("--checkpoints", type=click.Choice(["none", "newest", "all"]), default="none", show_default=True)
@click.option("--figures", type=click.Path(path_type=Path), default=Path("figures"), show_default=True)
@runs_folder_option
def export(study: str, output: Path | None, checkpoints: str, figures: Path, runs_folder: Path) -> None:
    """Write a study as one archive with checksums, to be read on another machine: its records, specs and figures."""
    from harness import text
    from harness.records import archive

    name, directories = members(study, runs_folder)
    assert name is not None, "a study was named"
    path = output or Path(f"{name}.tar.gz")
    done = archive.export_study(name, directories, path, checkpoints=checkpoints, figures=figures / name)  # type: ignore[arg-type]
    for left_out in done.left_out:
        click.echo(text.printable(f"left out: {left_out}"))
    what = f"{text.count(done.num_runs, 'run')}, {text.count(done.num_files, 'file')}, {text.size(done.num_bytes)}"
    click.echo(f"{path}: {what}; sha256 {done.sha256}")


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--figures", type=click.Path(path_type=Path), default=Path("figures"), show_default=True)
@runs_folder_option
def import_(file: Path, figures: Path, runs_folder: Path) -> None:
    """Put the runs of an archive in place: all of it checked before the first, and none ever overwritten."""
    from harness import text
    from harness.records import archive

    done = archive.import_study(file, runs_folder, figures=figures)
    there = f", {text.count(len(done.present), 'run')} there already" if done.present else ""
    drawn = f", {text.count(done.num_figures, 'figure file')}" if done.num_figures else ""
    click.echo(f"study {done.study}: {text.count(len(done.added), 'run')} imported{there}{drawn}")
    click.echo(f"look at them: harness status {done.study}; show them in MLflow: harness sync {done.study}")


@click.command()
@click.argument("study", required=False)
@click.option("--yes", is_flag=True, help="Remove what is safe to remove, without asking.")
@runs_folder_option
def clean(study: str | None, yes: bool, runs_folder: Path) -> None:
    """Show the disk that runs take and what can go; remove that only when you say yes."""
    from harness import text
    from harness.cli import tables
    from harness.records import disk

    _, directories = members(study, runs_folder)
    used = disk.usage(directory.path for directory in directories)
    rows = [(kind, text.size(used[kind])) for kind in sorted(used, key=lambda kind: -used[kind])]
    tables.Table(("kind", "disk"), [*rows, ("all", text.size(sum(used.values())))]).show()
    offers = {directory.key: disk.removable(directory) for directory in directories}
    folders = [] if study else disk.removable_folders(runs_folder)
    found = [*(one for offer in offers.values() for one in offer), *folders]
    if not found:
        click.echo("nothing that is safe to remove")
        return
    for reason in sorted({one.why for one in found}):
        these = [one for one in found if one.why == reason]
        kind = text.count(len(these), "folder" if these[0].path.is_dir() else "file")
        click.echo(f"safe to remove: {kind}, {text.size(sum(one.num_bytes for one in these))}: {reason}")
    if not yes and not sys.stdin.isatty():
        click.echo("nothing removed; --yes removes them")
        return
    if yes or click.confirm("Remove them?"):
        freed = sum(disk.remove(directory) for directory in directories if offers[directory.key])
        freed += sum(map(disk.remove_folder, folders))
        click.echo(f"freed {text.size(freed)}")
