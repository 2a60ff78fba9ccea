"""compare: which arm of a study is better, and by how much; or in which runs two studies differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.cli.common import Output, json_option, members, runs_folder_option, show_damage, upload_left_over
from harness.errors import LaunchError


@click.command()
@click.argument("study")
@click.argument("other", required=False)
@click.option(
    "--baseline", metavar="ARM", help="Compare the others with this one.  [default: the study's, or the first arm]"
)
@click.option("--metric", help="Only this one: nll, fid, eval/fid, ..., or all.  [default: the study's, or all]")
@click.option(
    "--by",
    metavar="PATH",
    multiple=True,
    help="The main effect of a part of the spec, such as diffusion.schedule; of two also their interaction.",
)
@click.option("--all-pairs", is_flag=True, help="Compare every arm with every other.")
@click.option("--markdown", "form", flag_value="markdown", help="Print Markdown.")
@click.option("--latex", "form", flag_value="latex", help="Print a LaTeX table (booktabs).")
@json_option
@runs_folder_option
def compare(
    study: str,
    other: str | None,
    baseline: str | None,
    metric: str | None,
    by: tuple[str, ...],
    all_pairs: bool,
    form: str | None,
    output: Output,
    runs_folder: Path,
) -> None:
    """Say which arm is better, and by how much.

    Runs of one seed share the order of the data, the timesteps and the noise, so arms are compared in pairs. What is
    compared is what the study's file says under `compare`, unless an option says otherwise. Given two studies: which
    runs they share, and which only one of them asks for.

    With --json: {"study", "contrasts": [{"metric", "evaluation", "protocol", "protocol_id", "ours_name", "other_name",
    "factors", "n", "ours", "other", "difference", "t_low", "t_high", "bca_low", "bca_high", "p", "p_holm", "p_flip",
    "effect_size", "correlation", "floor", "verdict", "pairs_to_decide", "device_hours_to_decide", "seeds",
    "seeds_left_out"}]}; what is not known is null. Of two studies {"studies": [NAME, NAME], "shared": [RUN_KEY],
    "only_in": {NAME: [{"run_key", "arm", "replicate"}]}}.
    """
    if other is not None:
        options = {
            "--baseline": baseline,
            "--metric": metric,
            "--by": by,
            "--all-pairs": all_pairs,
            "--" + str(form): form,
        }
        if given := next((option for option, value in options.items() if value), None):
            raise LaunchError(f"{given} is for the arms of one study; of two, only their runs are compared")
        _compare_studies(study, other, output, runs_folder)
        return
    from harness.analysis.answers import contrasts as analysis
    from harness.analysis.presentation import presentation_of
    from harness.analysis.runs import load_records
    from harness.analysis.tables import tab_contrasts
    from harness.records.devices import mixed_devices
    from harness.text import harness_command

    if all_pairs and (baseline or by):
        raise LaunchError("either --all-pairs or a --baseline or --by")
    name, directories = members(study, runs_folder)
    show_damage(runs_folder, directories)
    upload_left_over(directories)
    chosen = {directory.path for directory in directories}
    runs = [run for run in load_records(runs_folder, str(name)) if run.folder in chosen]
    asked = presentation_of(runs_folder, str(name)).compare
    chosen_metric = None if metric == "all" else metric
    if by or baseline or all_pairs:
        pairs: Any = "all" if all_pairs else ()
        contrasts = analysis.contrasts(runs, baseline=baseline, metric=chosen_metric, pairs=pairs, by=by)
    else:
        contrasts = analysis.contrasts_of(runs, asked, metric=chosen_metric)
    if metric is None:
        contrasts = analysis.deciding(contrasts, asked)
    output.document({"study": name, "contrasts": [analysis.as_values(contrast) for contrast in contrasts]})
    if output.as_json:
        return
    if not contrasts:
        status = harness_command("status", name, runs_folder=runs_folder)
        click.echo(f"nothing of {name} can be compared yet: `{status}` shows what its runs are doing")
        return
    if form == "markdown":
        click.echo(tab_contrasts.markdown(contrasts))
    elif form == "latex":
        click.echo(tab_contrasts.latex(contrasts, f"harness compare {name}"))
    else:
        _show(contrasts)
        for note in mixed_devices(directories, name):
            click.echo(f"warning: {note}.")
        for path in by or asked.by:
            if along := analysis.changes_along(runs, path):
                click.echo(f"{', '.join(along)} change along with {path}: their effects cannot be told apart.")


def _show(contrasts: Any) -> None:
    from harness.analysis.tables import tab_contrasts
    from harness.cli.tables import Table

    for heading, rows in tab_contrasts.rows(contrasts):
        click.echo(heading)
        Table(tab_contrasts.HEADERS, rows).show()
        click.echo()
    for note in tab_contrasts.notes(contrasts):
        click.echo(f"{note}.")
    click.echo(tab_contrasts.RULE)


def _compare_studies(study: str, other: str, output: Output, runs_folder: Path) -> None:
    from harness.cli.tables import Table
    from harness.records.manifest import Manifests
    from harness.text import count

    manifests = Manifests(runs_folder)
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    for name, directories in (members(text, runs_folder) for text in (study, other)):
        places = {directory.key: manifests.split(directory)[0].get(str(name), {}) for directory in directories}
        runs[str(name)] = {
            key: {"run_key": key, "arm": place.get("arm", "-"), "replicate": place.get("replicate", 0)}
            for key, place in places.items()
        }
    if len(runs) < 2:
        raise LaunchError(f"{study} and {other} are the same study")
    (first, ours), (second, theirs) = runs.items()
    shared = [key for key in ours if key in theirs]
    only_in = {
        name: [run for key, run in own.items() if key not in shared] for name, own in ((first, ours), (second, theirs))
    }
    output.document({"studies": [first, second], "shared": shared, "only_in": only_in})
    if output.as_json:
        return
    click.echo(
        f"{first}: {count(len(ours), 'run')}, {second}: {count(len(theirs), 'run')}; the same in both: {len(shared)}"
    )
    rows = [
        (name, run["run_key"], f"{run['arm']} r{run['replicate']}")
        for name, members in only_in.items()
        for run in members
    ]
    if rows:
        Table(("only in", "run", "arm"), rows).show()
