"""HTML from the templates in `templates/`, which escape every value that they show."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness.text import printable


def render(template: str, **values: Any) -> Markup:
    """Return a template with its values, as text that other templates show as it is."""
    return Markup(_environment().get_template(template).render(**values))


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_without_control_characters,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _without_control_characters(value: Any) -> Any:
    return value if isinstance(value, Markup) else printable(value)
