"""figures: all figures and tables of the studies, drawn from the records."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.common import Output, json_option, members, runs_folder_option


@click.command()
@click.argument("studies", nargs=-1, metavar="[STUDY]...")
@click.option("--out", type=click.Path(path_type=Path), default=Path("figures"), show_default=True, help="Folder.")
@click.option("--fresh", is_flag=True, help="Draw everything again, whatever is there.")
@click.option(
    "--jobs", type=click.IntRange(1), show_default="one a core", help="Processes that draw, of 50 runs or more."
)
@json_option
@runs_folder_option
def figures(
    studies: tuple[str, ...], out: Path, fresh: bool, jobs: int | None, output: Output, runs_folder: Path
) -> None:
    """Draw figures and tables from the records.

    Of all studies that have runs, or of those given by file or name. OUT/index.html shows them on one page. Only what
    has changed since the last time is drawn.

    With --json: {"page": FILE, "studies": [NAME of each requested study], "made": [NAME of each figure or table that
    was written]}.
    """
    from harness.analysis.stamps import nothing_has_changed

    names = [str(members(study, runs_folder)[0]) for study in studies]
    made: list[str] = []
    if fresh or not nothing_has_changed(runs_folder, out, names):
        from harness.analysis.report import draw_report
        from harness.launch.processes import available_cores

        made = draw_report(runs_folder, out, names, fresh=fresh, num_processes=jobs or available_cores()).made
    page = out / "index.html"
    click.echo(page)
    click.echo(f"{len(made)} figures and tables are new" if made else "nothing has changed")
    output.document({"page": str(page), "studies": names, "made": made})
