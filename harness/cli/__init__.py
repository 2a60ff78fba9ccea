"""The command line: verbs over studies and runs. Every import is late, so that `harness --help` answers at once.

Errors of the user's are printed as one message with exit code 2; 1 means that the work itself did not end well.
"""

from __future__ import annotations

import sys

import click

from harness.cli import checkpoints, cluster, preflight, records, runs, search, studies, verify
from harness.errors import HarnessError


def main() -> None:
    """Run the command line; a HarnessError becomes a message and exit code 2."""
    try:
        cli(prog_name="harness")
    except HarnessError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Ablations and scaling studies of diffusion models: one YAML study in, runs, records and figures out."""


VERBS = (
    *(studies.plan, studies.submit, search.search),
    *(cluster.cancel, cluster.retry),
    *(preflight.doctor, preflight.calibrate),
    *(runs.status, runs.why, runs.logs, runs.sample),
    *(records.sync, records.clean, records.export, records.import_),
    *(checkpoints.import_checkpoint, checkpoints.export_checkpoint),
    verify.verify_resume,
)
for verb in VERBS:
    cli.add_command(verb)
