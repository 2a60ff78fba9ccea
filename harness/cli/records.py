"""sync, clean: what lies in the run directories."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from harness.cli.common import members, runs_folder_option, studies_or_run


@click.command()
@click.argument("what", nargs=-1, metavar="[STUDY|RUN]...")
@click.option("--check", is_flag=True, help="Compare MLflow with the journals row for row, and change nothing.")
@runs_folder_option
def sync(what: tuple[str, ...], check: bool, runs_folder: Path) -> None:
    """Carry records to MLflow, each row once: of studies, of runs, or all. Safe to repeat."""
    from harness import tracking, views

    directories = {
        directory.key: directory for one in what or (None,) for directory in studies_or_run(one, runs_folder)
    }
    wrong, num_rows = 0, 0
    for directory in directories.values():
        if check:
            report = tracking.check(directory)
            num_rows += report.num_rows_compared
            found = [*report.gaps, *report.duplicates, *report.conflicts, *report.problems]
        else:
            sent = tracking.sync_run(directory)
            num_rows += sum(study.num_rows_sent for study in sent.studies.values())
            found = sent.problems
        for line in found:
            click.echo(views.printable(f"{directory.key}: {line}"))
        wrong += bool(found)
    verb = "compared" if check else "sent"
    click.echo(f"{views.count(len(directories), 'run')}, {views.count(num_rows, 'row')} {verb}, {wrong} with problems")
    if wrong:
        sys.exit(1)


@click.command()
@click.argument("study", required=False)
@click.option("--yes", is_flag=True, help="Remove what is safe to remove, without asking.")
@runs_folder_option
def clean(study: str | None, yes: bool, runs_folder: Path) -> None:
    """Show the disk that runs take and what can go; remove that only when you say yes."""
    from harness import disk, views

    _, directories = members(study, runs_folder)
    used = disk.usage(directory.path for directory in directories)
    rows = [(kind, views.size(used[kind])) for kind in sorted(used, key=lambda kind: -used[kind])]
    views.Table(("kind", "disk"), [*rows, ("all", views.size(sum(used.values())))]).show()
    offers = {directory.key: disk.removable(directory) for directory in directories}
    found = [one for offer in offers.values() for one in offer]
    if not found:
        click.echo("nothing that is safe to remove")
        return
    for reason in sorted({one.why for one in found}):
        these = [one.num_bytes for one in found if one.why == reason]
        click.echo(f"safe to remove: {views.count(len(these), 'file')}, {views.size(sum(these))}: {reason}")
    if not yes and not sys.stdin.isatty():
        click.echo("nothing removed; --yes removes them")
        return
    if yes or click.confirm("Remove them?"):
        freed = sum(disk.remove(directory) for directory in directories if offers[directory.key])
        click.echo(f"freed {views.size(freed)}")
