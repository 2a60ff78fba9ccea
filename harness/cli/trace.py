"""trace: where a figure, a table or the page comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.common import Output, json_option, runs_folder_option

if TYPE_CHECKING:
    from harness.analysis.report.trace import TracedStudy


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("figures"), show_default=True, help="Folder.")
@json_option
@runs_folder_option
def trace(file: Path, out: Path, output: Output, runs_folder: Path) -> None:
    """Show what a figure or a table was made from.

    FILE is one that `harness figures` has written, or a copy of one: a PNG, PDF or SVG says itself where it comes from,
    other copies are known by their content as long as the originals are in OUT.

    With --json: {"file", "name", "title", "studies": [{"study", "command", "current", "why_stale", "code_versions",
    "data_digests", "protocols", "runs": [{"run_key", "arm", "replicate", "seed", "state", "run_dir", "code_version",
    "data_digest"}]}]}.
    """
    from harness.analysis.report.trace import as_values
    from harness.analysis.report.trace import trace as trace_file

    traced = trace_file(file, runs_folder, out)
    output.document(as_values(traced))
    if output.as_json:
        return
    click.echo(f"{file}: {traced.title}{f', {traced.name} of the folder of figures' if traced.name else ''}")
    for study in traced.studies:
        _show(study)


def _show(study: TracedStudy) -> None:
    from harness.cli.tables import Table
    from harness.text import count, printable

    made_of = study.made_of
    facts = {
        "study": made_of.study,
        "runs": f"{count(len(made_of.run_keys), 'run')}, digest {made_of.runs_digest}" if made_of.run_keys else "none",
        "code": ", ".join(made_of.code_versions),
        "data": ", ".join(digest[:16] for digest in made_of.data_digests),
        "protocols": ", ".join(made_of.protocols),
        "made by": made_of.command,
        "still true": f"no: {study.why_stale}" if study.why_stale else "yes",
    }
    for name, value in facts.items():
        if value:
            click.echo(printable(f"  {name:10}  {value}"))
    rows = [
        (run.run_key, f"{run.arm} r{run.replicate}" if run.arm else "-", _text(run.seed), run.state, run.run_dir or "-")
        for run in study.runs
    ]
    if rows:
        Table(("run", "arm", "seed", "state", "folder"), rows).show()


def _text(number: int | None) -> str:
    return "-" if number is None else str(number)
