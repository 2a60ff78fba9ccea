"""Data that somebody names on the command line: `cifar10`, or a YAML mapping with the data's parameters."""

from __future__ import annotations

from harness.spec.base import SpecModel
from harness.spec.data import Data, DataModel
from harness.study.document import SourceLocation, parse_yaml
from harness.study.validate import validate

_WHERE = "command line"


class _Named(SpecModel):
    data: Data


def data_named(text: str) -> DataModel:
    """Return the data that a text names, checked as in a study's file.

    Raises:
        SpecError: it names no data; the message has the choices.
    """
    value, _ = parse_yaml(text, _WHERE)
    return validate(_Named, {"data": value}, lambda *_: SourceLocation(_WHERE, 0)).data
