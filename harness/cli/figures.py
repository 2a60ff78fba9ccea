"""figures: all figures and tables of the studies, drawn from the records."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.common import Output, json_option, members, runs_folder_option


@click.command()
@click.argument("studies", nargs=-1, metavar="[STUDY]...")
@click.option("--out", type=click.Path(path_type=Path), default=Path("figures"), show_default=True, help="Folder.")
@click.option("--one-file", is_flag=True, help="Also write OUT/STUDY/STUDY.html: a page with its pictures inside.")
@json_option
@runs_folder_option
def figures(studies: tuple[str, ...], out: Path, one_file: bool, output: Output, runs_folder: Path) -> None:
    """Draw figures and tables from the records.

    Of all studies that have runs, or of those given by file or name. OUT/index.html shows them on one page.

    With --json: {"page": FILE, "studies": [NAME of each requested study]}, with --one-file and "files": [FILE].
    """
    from harness.analysis.report import one_file_page, report
    from harness.analysis.runs import study_names

    names = [str(members(study, runs_folder)[0]) for study in studies]
    page = report(runs_folder, out, names, one_file=one_file)
    files = [str(one_file_page(out, name)) for name in names or study_names(runs_folder)] if one_file else []
    click.echo("\n".join([str(page), *files]))
    output.document({"page": str(page), "studies": names} | ({"files": files} if one_file else {}))
