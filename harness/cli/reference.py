"""The page docs/cli.md, made from the help of the verbs: `python -m harness.cli.reference > docs/cli.md`."""

from __future__ import annotations

import inspect

import click

from harness.cli import GROUPS, cli

HEAD = """# The command line

Made by `python -m harness.cli.reference > docs/cli.md` from `harness VERB --help`; a test holds it up to date.

STUDY is a study's file or its name. A name is looked up in the runs (`list`, `status`, `figures`, `sync`, ...) or in
the YAML files here and below `experiments/` (`plan`, `submit`, ...). RUN is a run's key, or at least its first four
digits. `--json` prints one JSON document to standard output, and messages to standard error. The exit code is 0; 1 when
the work did not end well; 2 after a mistake in the command or a file; 130 after Ctrl-C.
"""


def reference() -> str:
    """Return docs/cli.md."""
    parts = [HEAD]
    with click.Context(cli, info_name="harness") as context:
        for heading, verbs in GROUPS.items():
            parts.append(f"## {heading}\n")
            parts.extend(_section(verb, context) for verb in verbs)
    return "\n".join(parts)


def _section(verb: click.Command, parent: click.Context) -> str:
    with click.Context(verb, info_name=verb.name, parent=parent) as context:
        usage = " ".join([context.command_path, *verb.collect_usage_pieces(context)])
        records = [option.get_help_record(context) for option in verb.params if isinstance(option, click.Option)]
    options = [f"- `{names}`: {text.strip()}" for names, text in filter(None, records)]
    description = inspect.cleandoc(verb.help or "")
    return f"### {verb.name}\n\n    {usage}\n\n{description}\n\n" + "\n".join(options) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
