"""claims: what the records say of the papers' claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.cli.common import Output, json_option, members, runs_folder_option, show_damage
from harness.text import printable


@click.command()
@click.option("--all", "show_all", is_flag=True, help="Also those that were not run, and every contrast.")
@json_option
@runs_folder_option
def claims(show_all: bool, output: Output, runs_folder: Path) -> None:
    """Hold the papers' claims against the records.

    Of all studies in the runs folder: which claims are reproduced, which contradicted, and what runs those that no
    record can judge yet. `make claims` runs them all.

    With --json: {"claims": [{"id", "statement", "source", "verdict", "study": FILE that tests it, "contrasts": [{
    "study", "context", "metric", "ours", "other", "pairs": [[ours, other]], "p_holm", "verdict"}]}]}; the verdict is
    reproduced, contradicted, mixed, suggests, suggests the opposite, inconclusive or not run.
    """
    from harness.analysis.claims import claims_card
    from harness.analysis.claims.verdicts import RULE

    _, directories = members(None, runs_folder)
    show_damage(runs_folder, directories)
    judged, left_out = claims_card.judge_folder(runs_folder)
    for run_key, reason in left_out.items():
        click.echo(printable(f"left out: {run_key}: {reason}"), err=True)
    rows = claims_card.card(judged)
    output.document({"claims": [claims_card.as_values(row) for row in rows]})
    if output.as_json:
        return
    _show([row for row in rows if show_all or row.contrasts], show_all)
    click.echo(f"{claims_card.counts(rows)}.")
    missing = dict.fromkeys(row.command for row in rows if not row.contrasts)
    if missing and not show_all:
        click.echo("\n".join(["The claims that were not run are tested by:", *(f"  {command}" for command in missing)]))
    click.echo(RULE)


def _show(rows: list[Any], each_contrast: bool) -> None:
    from harness.analysis.claims import claims_card
    from harness.cli.tables import Table

    if not rows:
        return
    Table(claims_card.HEADERS, [claims_card.cells(row) for row in rows]).show()
    click.echo()
    contrasts = [
        (contrast.verdict, row.claim.statement, f"{contrast.metric}, {contrast.context}", contrast.numbers(), study)
        for row in rows
        for study, contrast in row.contrasts
    ]
    if each_contrast and contrasts:
        Table(("verdict", "claim", "metric and context", "numbers", "study"), contrasts).show()
        click.echo()
