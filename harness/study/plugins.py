"""Load the plugins of a study, before its first run is validated."""

from __future__ import annotations

from pathlib import Path

from harness.errors import SpecError
from harness.spec.parts import Plugin
from harness.spec.plugins import load_package_plugin, load_plugin
from harness.study.document import Document, spec_error


def load_plugins(document: Document) -> list[Plugin]:
    """Load a study's plugins in order.

    Raises:
        SpecError: a file is missing, fails or has an invalid declaration; or two plugins clash.
    """
    plugins: list[Plugin] = []
    for source, mark in document.plugins.items():
        if isinstance(source, Path):
            if not source.is_file():
                problem = "is not a file" if source.exists() else "does not exist"
                raise spec_error(mark, "plugins", f"{source} {problem}")
            plugin = load_plugin(source)
        else:
            try:
                plugin = load_package_plugin(source)
            except SpecError as error:
                raise spec_error(mark, "", str(error)) from None
        for other in plugins:
            if other.name == plugin.name:
                raise spec_error(mark, "plugins", f"two files have the name {plugin.name}; rename one")
            for kind, parts in plugin.parts.items():
                if both := sorted(parts.keys() & other.parts.get(kind, {}).keys()):
                    raise spec_error(
                        mark, "plugins", f"{plugin.name} and {other.name} both have a {kind} {both[0]!r}; rename one"
                    )
        plugins.append(plugin)
    return plugins
