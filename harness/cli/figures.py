"""figures: all figures and tables of the studies, drawn from the records."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.common import Output, json_option, members, runs_folder_option, same_runs, upload_left_over

if TYPE_CHECKING:
    from harness.analysis.answers.missing import MissingCell
    from harness.spec.presentation import FigureStyle


@click.command()
@click.argument("studies", nargs=-1, metavar="[STUDY]...")
@click.option("--out", type=click.Path(path_type=Path), default=Path("figures"), show_default=True, help="Folder.")
@click.option(
    "--style",
    "style_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML with width, palette, labels, arms, formats, as under `figures` in a study's file; counts more than it.",
)
@click.option("--fresh", is_flag=True, help="Draw everything again, whatever is there.")
@click.option("--check", is_flag=True, help="Draw nothing; name what is out of date, and cells without a value.")
@click.option(
    "--jobs", type=click.IntRange(1), show_default="one a core", help="Processes that draw, of 50 runs or more."
)
@click.option("--verbose", is_flag=True, help="Name each figure that there are no data for, and what it needs.")
@click.option("--one-file", is_flag=True, help="Also write OUT/STUDY/STUDY.html: a page with its pictures inside.")
@json_option
@runs_folder_option
def figures(
    studies: tuple[str, ...],
    out: Path,
    style_file: Path | None,
    fresh: bool,
    check: bool,
    jobs: int | None,
    verbose: bool,
    one_file: bool,
    output: Output,
    runs_folder: Path,
) -> None:
    """Draw figures and tables from the records.

    Of all studies that have runs, or of those given by file or name. OUT/index.html shows them on one page. Only what
    has changed since the last time is drawn.

    With --check nothing is written; the exit code is 1 if a figure or a table is missing, was edited or is not what the
    records say now, or if a metric that a study asks for has no value. What fills it stands beside it.

    With --json: {"page": FILE, "studies": [NAME of each requested study], "made": [NAME of each figure or table that
    was written]}, with --one-file and "files": [FILE of each study drawn]; with --check {"studies", "stale": [{"study",
    "name", "why"}], "missing": {STUDY: [{"arm", "replicate", "seed", "run_key", "evaluation", "metric", "state",
    "command"}]}}.
    """
    from harness.analysis.report.stamps import nothing_has_changed

    asked = [members(study, runs_folder) for study in studies]
    names = [str(name) for name, _ in asked]
    look = _read_style(style_file) if style_file else None
    if check:
        _check(names, out, look, jobs, output, runs_folder)
        return
    upload_left_over([directory for _, directories in asked for directory in directories])
    made: list[str] = []
    files: list[Path] = []
    without_data: dict[str, dict[str, str]] = {}
    if fresh or one_file or verbose or not nothing_has_changed(runs_folder, out, names, look):
        from harness.analysis.report.report import draw_report
        from harness.launch.processes import available_cores

        processes = jobs or available_cores()
        outcome = draw_report(
            runs_folder, out, names, fresh=fresh, num_processes=processes, look=look, one_file=one_file
        )
        made, files, without_data = outcome.made, outcome.files, outcome.without_data
    page = out / "index.html"
    for path in (page, *files):
        click.echo(path)
    new = "1 figure or table is new" if len(made) == 1 else f"{len(made)} figures and tables are new"
    click.echo(new if made else "nothing has changed")
    _say_without_data(without_data, verbose)
    document = {"page": str(page), "studies": names, "made": made}
    output.document(document | ({"files": list(map(str, files))} if one_file else {}))


def _say_without_data(without_data: dict[str, dict[str, str]], verbose: bool) -> None:
    """Print what there are no data for: how much, or each with what it needs."""
    from harness.text import printable

    lines = [f"{study}: no {name}: it needs {what}" for study, of in without_data.items() for name, what in of.items()]
    if verbose:
        for line in lines:
            click.echo(printable(line))
    elif lines:
        more = "1 more figure or table" if len(lines) == 1 else f"{len(lines)} more figures and tables"
        click.echo(f"no data for {more}: --verbose says what each needs")


def _read_style(path: Path) -> FigureStyle:
    """Read a file of style; a label whose formula cannot be drawn is a mistake in it, too."""
    from harness.analysis.figures.style import unusable_labels
    from harness.study.presentation import read_figure_style

    look, document = read_figure_style(path)
    for arm, why in unusable_labels(look.labels).items():
        raise document.fail(("labels", arm), f"the label cannot be drawn: {why}")
    return look


def _check(
    names: list[str], out: Path, look: FigureStyle | None, jobs: int | None, output: Output, runs_folder: Path
) -> None:
    from harness.analysis.report.check import check
    from harness.cli.tables import Table
    from harness.launch.processes import available_cores
    from harness.text import count, printable

    options, num_processes = same_runs(runs_folder), jobs or available_cores()
    result = check(runs_folder, out, names, look=look, options=options, num_processes=num_processes)
    missing = {study: [vars(cell) for cell in cells] for study, cells in result.missing.items() if cells}
    output.document({"studies": names, "stale": [vars(entry) for entry in result.stale], "missing": missing})
    if not output.as_json:
        for entry in result.stale:
            click.echo(printable(f"{entry.name}: {entry.why}"))
        if result.stale:
            folder = [] if out == Path("figures") else ["--out", str(out)]
            again = shlex.join(["harness", "figures", *names, *folder])
            click.echo(f"out of date: {len(result.stale)}; to draw again: {again}{options}")
        for study, cells in result.missing.items():
            if cells:
                click.echo(f"{study}: {count(len(cells), 'cell')} without a value")
                Table(_CELLS, [_row(cell) for cell in cells]).show()
        if not result.stale and not result.num_missing:
            click.echo("all figures and tables are what the records say, and no cell is without a value")
    if result.stale or result.num_missing:
        sys.exit(1)


_CELLS = ("run", "arm", "evaluation", "metric", "state", "to fill it")


def _row(cell: MissingCell) -> tuple[str, ...]:
    arm, command = f"{cell.arm} r{cell.replicate}", cell.command or "it was measured, and is not a number"
    return cell.run_key, arm, cell.evaluation, cell.metric, cell.state, command
