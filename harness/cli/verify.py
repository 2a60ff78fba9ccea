"""verify-resume: the proof that a training which was killed and resumed is the one that was not."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import click

from harness.cli.common import load, runs_folder_option, set_option, study_file


@click.command("verify-resume")
@study_file
@click.option("--kills", type=click.IntRange(1), default=3, show_default=True, help="SIGKILLs; a SIGTERM is added.")
@click.option("--steps", type=click.IntRange(10), help="Train only so far.  [default: to the end]")
@click.option("--all", "everything", is_flag=True, help="Every run, not the first of each arm.")
@set_option
@runs_folder_option
def verify_resume(
    study: Path, kills: int, steps: int | None, everything: bool, sets: tuple[str, ...], runs_folder: Path
) -> None:
    """Prove that resume is exact: train each arm straight and killed-and-resumed, and compare all bits."""
    from harness import text
    from harness.job import verify

    runs = load(study, sets).runs
    if not everything:
        runs = tuple({run.arm: run for run in reversed(runs)}.values())[::-1]
    num_different = 0
    for run in runs:
        name = f"{run.run_key} {run.arm} r{run.replicate}"
        found = verify.verify_resume(run, runs_folder, kills=kills, steps=steps, on_progress=partial(_say, name))
        where = found.pop("certificate", None)
        if found["verdict"] == "equal":
            said = f"{found['num_state_entries']} state entries, {found['num_result_rows']} result rows"
            click.echo(f"{name}: equal bit by bit after {len(found['ends'])} ends ({said})")
        else:
            num_different += 1
            click.echo(text.printable(f"{name}: DIFFERENT: {found['first_difference']}; both sides: {found['kept']}"))
            hint = verify.advice(found)
            if hint:
                click.echo(f"  {hint}")
        click.echo(f"  certificate: {where}" if where else json.dumps(found, indent=2))
    if num_different:
        sys.exit(1)


def _say(name: str, line: str) -> None:
    click.echo(f"{name}: {line}")
