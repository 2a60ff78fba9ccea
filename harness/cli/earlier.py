"""forget: end the membership of runs that a study no longer asks for; and how every verb speaks of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from harness.cli.common import Output, json_option, runs_folder_option, study_name


def earlier_lines(study: str | None, keys: Sequence[str], active: Sequence[str], runs_folder: Path) -> list[str]:
    """Say how many runs are no longer asked for, and which commands end them; nothing if there are none.

    Args:
        study: that no longer asks for them; None if it is several.
        keys: of these runs.
        active: the keys of those that are queued or running.
    """
    from harness.text import count, harness_command

    if not keys:
        return []
    verb, whose = "is" if len(keys) == 1 else "are", " of this study" if study else ""
    forget = harness_command("forget", study or "STUDY", runs_folder=runs_folder)
    lines = [f"{count(len(keys), 'run')}{whose} {verb} no longer asked for: {forget}"]
    if active:
        cancel = harness_command("cancel", *active, runs_folder=runs_folder)
        lines.append(f"of them queued or running: {len(active)}; to cancel: {cancel}")
    return lines


@click.command()
@click.argument("study")
@click.option("--dry-run", is_flag=True, help="Only show the runs.")
@json_option
@runs_folder_option
def forget(study: str, dry_run: bool, output: Output, runs_folder: Path) -> None:
    """Drop runs that a study no longer asks for.

    They leave the study; their records and checkpoints stay, and count again if the study asks for them again. A run
    that is queued or running stays in the study until it has ended.

    With --json: {"study", "forgotten": [RUN_KEY], "active": [RUN_KEY]}.
    """
    from harness import text
    from harness.cli.tables import Table
    from harness.errors import LaunchError
    from harness.launch import manage
    from harness.records import manifest
    from harness.records.layout import study_names

    name = study_name(study)
    if name not in study_names(runs_folder):
        raise LaunchError(
            f"no study {name!r} in {runs_folder}; {text.harness_command('list', runs_folder=runs_folder)} shows them"
        )
    earlier = manifest.Manifests(runs_folder).earlier_runs(name)
    active = {directory.key for directory in manage.active(earlier)}
    leaving = [directory for directory in earlier if directory.key not in active]
    rows = []
    for directory in leaving:
        studies = directory.studies()
        place, others = studies[name], ", ".join(sorted(studies.keys() - {name}))
        rows.append((directory.key, f"{place.get('arm')} r{place.get('replicate')}", others or "-"))
    if not dry_run:
        keys = {directory.key for directory in leaving}
        leaving = manifest.forget(runs_folder, name, lambda directory: directory.key in keys)
    output.document({"study": name, "forgotten": [directory.key for directory in leaving], "active": sorted(active)})
    if rows and not output.as_json:
        Table(("run", "arm", "other studies"), rows).show()
    verb = "would be forgotten" if dry_run else "forgotten"
    click.echo(f"{text.count(len(leaving), 'run')} {verb}" if leaving else f"nothing to forget in study {name}")
    if leaving and not dry_run:
        sync = text.harness_command("sync", runs_folder=runs_folder)
        click.echo(f"their records stay; {sync} marks them in MLflow, where a submission has not")
    if active:
        cancel = text.harness_command("cancel", *sorted(active), runs_folder=runs_folder)
        click.echo(f"kept, since queued or running: {cancel}")
