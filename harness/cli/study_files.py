"""How a verb finds the file of a study that is given by file or by name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from harness.errors import LaunchError

STUDY_SUFFIXES = (".yaml", ".yml", ".py")
_STUDY_NAME = re.compile(r"""^study:[ ]*["']?([^"'#\s]+)""", re.MULTILINE)


class StudyFile(click.ParamType):
    """A study's file, or its name. `runs_folder_option` is eager, so that the folder is known here."""

    name = "study"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        assert ctx is not None
        return find_study_file(str(value), ctx.params["runs_folder"])


study_file = click.argument("study", type=StudyFile())


def is_study_file(study: str) -> bool:
    return study.endswith(STUDY_SUFFIXES) or os.path.isfile(study)  # noqa: PTH113 (any text is allowed)


def find_study_file(study: str, runs_folder: Path) -> Path:
    """Return a study's file, given that or its name.

    Of a study that was submitted it is the file that it was last submitted from. Else, or if that is gone, the name is
    looked up in the YAML files of the working folder and of experiments/.

    Raises:
        LaunchError: no file has a study of that name, or several have; or the one that was submitted is gone.
    """
    from harness.records.layout import study_names

    if is_study_file(study):
        return Path(study)
    submitted = _submitted_file(study, runs_folder)
    if submitted and submitted.is_file() and _names(submitted, study):
        here = Path.cwd()
        return submitted.relative_to(here) if submitted.is_relative_to(here) else submitted
    paths = [*Path().glob("*.y*ml"), *Path("experiments").glob("**/*.y*ml")]
    names = {path: match[1] for path in paths if (match := _STUDY_NAME.search(_read(path)))}
    matches = sorted(path for path, name in names.items() if name == study)
    if not matches and submitted:
        what = "which has another name now" if submitted.is_file() else "which is gone"
        raise LaunchError(f"study {study!r} was submitted from {submitted}, {what}; give its file")
    if not matches:
        known = choices(sorted({*names.values(), *study_names(runs_folder)}), "they name none")
        raise LaunchError(
            f"no study {study!r} in {runs_folder} or in the YAML files of this folder and of experiments/; "
            f"{known}; or give its file"
        )
    if len(matches) > 1:
        raise LaunchError(f"study {study!r} is in {len(matches)} files, give one: {', '.join(map(str, matches))}")
    return matches[0]


def _submitted_file(study: str, runs_folder: Path) -> Path | None:
    """Return the file that a study was submitted from last; None if it has not been."""
    from harness.errors import RecordError
    from harness.records.files import safe_name
    from harness.records.manifest import read_manifest

    try:
        manifest = read_manifest(runs_folder, safe_name(study))
    except RecordError:  # no study can have that name
        return None
    return Path(manifest.file) if manifest and manifest.file else None


def _names(path: Path, study: str) -> bool:
    from harness.study.expand import name_of_study

    return path.suffix == ".py" or name_of_study(path) == study


def _read(path: Path) -> str:
    """Return a file's text; empty for a folder and for what cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def choices(names: Iterable[str], none: str) -> str:
    """Return `choices: a, b and 3 more`, or another text where there is none."""
    names = list(names)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"choices: {', '.join(names[:10])}{more}" if names else none
