"""verify-resume: prove that a killed and resumed training equals an uninterrupted one."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import click

from harness.cli.common import Output, json_option, load, runs_folder_option, set_option
from harness.cli.study_files import study_file


@click.command("verify-resume")
@study_file
@click.option("--kills", type=click.IntRange(1), default=3, show_default=True, help="SIGKILLs; one SIGTERM is added.")
@click.option("--steps", type=click.IntRange(10), help="Train only to this step.  [default: to the end]")
@click.option("--all", "everything", is_flag=True, help="Every run, not the first of each arm.")
@set_option
@json_option
@runs_folder_option
def verify_resume(
    study: Path,
    kills: int,
    steps: int | None,
    everything: bool,
    sets: tuple[str, ...],
    output: Output,
    runs_folder: Path,
) -> None:
    """Prove that resuming is exact.

    Each arm is trained without interruption, and again with kills and resumes; all bits are compared.

    With --json: {"runs": [{"run_key", "arm", "replicate", "verdict": "equal"|"different", "certificate": FILE,
    ...}]}, each with the content of its certificate.
    """
    from harness import text
    from harness.job import verify

    runs = load(study, sets).runs
    if not everything:
        runs = tuple({run.arm: run for run in reversed(runs)}.values())[::-1]
    results = []
    for run in runs:
        name = f"{run.run_key} {run.arm} r{run.replicate}"
        result = verify.verify_resume(
            run, runs_folder, kills=kills, steps=steps, on_progress=partial(_show_progress, name)
        )
        results.append({"run_key": run.run_key, "arm": run.arm, "replicate": run.replicate, **result})
        certificate = result.pop("certificate", None)
        if result["verdict"] == "equal":
            compared = f"{result['num_state_entries']} state entries, {result['num_result_rows']} result rows"
            click.echo(f"{name}: equal bit for bit after {len(result['ends'])} ends ({compared})")
        else:
            click.echo(text.printable(f"{name}: DIFFERENT: {result['first_difference']}; both sides: {result['kept']}"))
            hint = verify.advice(result)
            if hint:
                click.echo(f"  {hint}")
        click.echo(f"  certificate: {certificate}" if certificate else json.dumps(result, indent=2))
    output.document({"runs": results})
    if any(result["verdict"] != "equal" for result in results):
        sys.exit(1)


def _show_progress(name: str, line: str) -> None:
    click.echo(f"{name}: {line}")
