"""figures: all figures and tables of the studies, drawn from the records."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.common import Output, json_option, members, runs_folder_option, upload_left_over


@click.command()
@click.argument("studies", nargs=-1, metavar="[STUDY]...")
@click.option("--out", type=click.Path(path_type=Path), default=Path("figures"), show_default=True, help="Folder.")
@json_option
@runs_folder_option
def figures(studies: tuple[str, ...], out: Path, output: Output, runs_folder: Path) -> None:
    """Draw figures and tables from the records.

    Of all studies that have runs, or of those given by file or name. OUT/index.html shows them on one page.

    With --json: {"page": FILE, "studies": [NAME of each requested study]}.
    """
    from harness.analysis.report import report

    asked = [members(study, runs_folder) for study in studies]
    names = [str(name) for name, _ in asked]
    upload_left_over([directory for _, directories in asked for directory in directories])
    page = report(runs_folder, out, names)
    click.echo(page)
    output.document({"page": str(page), "studies": names})
