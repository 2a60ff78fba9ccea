"""schema: the JSON schema of study files, for editors and checkers."""

from __future__ import annotations

import json

import click


@click.command()
def schema() -> None:
    """Print the JSON schema of study files.

    It goes to standard output as one JSON document. Editors complete and check studies with it:
    `# yaml-language-server: $schema=FILE` on a study's first line names the file it was written to.
    """
    from harness.search.space import Settings
    from harness.study.schema import study_schema

    click.echo(json.dumps(study_schema(Settings), indent=2))
