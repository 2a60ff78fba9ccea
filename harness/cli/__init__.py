"""The command line: verbs over studies and runs. Imports are lazy, so that `harness --help` is fast.

User errors are printed as one message with exit code 2; exit code 1 means that the work itself failed.
"""

from __future__ import annotations

import os
import sys

import click

from harness import __version__
from harness.cli import (
    checkpoints,
    claims,
    cluster,
    compare,
    earlier,
    efficiency,
    evaluations,
    extractors,
    figures,
    listing,
    predict,
    preflight,
    profile,
    records,
    runs,
    schema,
    search,
    studies,
    trace,
    verify,
)
from harness.errors import HarnessError
from harness.messages import show_messages
from harness.text import printable_lines

GROUPS: dict[str, tuple[click.Command, ...]] = {
    "Run": (studies.plan, studies.submit, search.search, evaluations.evaluate, cluster.cancel, cluster.retry),
    "Look": (
        listing.list_,
        runs.status,
        runs.why,
        runs.logs,
        compare.compare,
        predict.predict,
        claims.claims,
        efficiency.efficiency,
        figures.figures,
        trace.trace,
        records.ui,
        runs.sample,
        evaluations.score,
    ),
    "Keep": (
        *(records.sync, records.export, records.import_, records.clean, earlier.forget),
        *(checkpoints.import_checkpoint, checkpoints.export_checkpoint),
    ),
    "Check": (
        *(preflight.doctor, preflight.calibrate, profile.profile, verify.verify_resume, schema.schema),
        *(extractors.reference, extractors.probe_extractor),
    ),
}


class GroupedVerbs(click.Group):
    """List the verbs under the headings of `GROUPS`."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        for heading, verbs in GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl([(str(verb.name).ljust(width), verb.get_short_help_str()) for verb in verbs])


@click.group(cls=GroupedVerbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="harness", message="%(prog)s %(version)s")
def cli() -> None:
    """Ablations and scaling studies of diffusion models: one YAML study in, runs, records and figures out.

    A RUN is named by the first digits of its key, or by STUDY/ARM/REPLICATE, such as digits/cosine/0.
    """
    show_messages()
    os.umask(os.umask(0o077) & 0o077)  # with one that takes the owner's own rights, no record could be read again


for verbs in GROUPS.values():
    for verb in verbs:
        cli.add_command(verb)


def main() -> None:
    """Run the command line; a HarnessError becomes a message and exit code 2."""
    try:
        cli(prog_name="harness")
    except HarnessError as error:
        click.echo(f"error: {printable_lines(error)}", err=True)
        sys.exit(2)
