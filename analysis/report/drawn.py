"""What stands in a folder of figures, and what it was made from: figures/.drawn.json.

    {"format": 1, "surroundings": DIGEST, "page": [STUDY, ...],
     "studies": {STUDY: {"stamp": TEXT, "provenance": {...}}},
     "outputs": {NAME: {"study", "title", "caption", "width_inches", "records", "inputs", "files": {FILE: SHA256}}}}

A figure is one output with several files, a table's file is an output of its own, and so is the page. `records` is a
digest of what an output shows, `inputs` of that together with the code and the libraries that draw it: an output is
made anew when `inputs` has changed, or when one of its files is gone or is not the one that was written.

Nothing here loads matplotlib or pandas, so that a report without news costs little.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from harness import PACKAGE_ROOT
from harness.errors import RecordError
from harness.records.files import replace_file
from harness.records.reading import Fields, read_json

logger = logging.getLogger(__name__)

_ROOT = PACKAGE_ROOT.resolve()
RECORD = ".drawn.json"
FORMAT = 1
LIBRARIES = (
    *("contourpy", "fonttools", "jinja2", "kiwisolver", "markupsafe", "matplotlib", "numpy", "optuna", "pandas"),
    *("pillow", "pydantic", "pyyaml", "scikit-learn", "scipy"),
)
"""What files' bytes may depend on."""


@dataclass(frozen=True)
class Output:
    """What was made of one study, or of none: a figure, a file of a table, or the page.

    Attributes:
        caption: of a figure.
        width_inches: of a figure; 0 of what is none.
        records: digest of what it shows.
        inputs: digest of that, and of the code and the libraries that make it.
        files: path below the folder of figures -> sha256.
    """

    study: str
    title: str
    records: str
    inputs: str
    files: Mapping[str, str]
    caption: str = ""
    width_inches: float = 0.0

    def is_whole(self, out: Path) -> bool:
        """Return whether all files are what was written."""
        return all(file_digest(out / name) == digest for name, digest in self.files.items())


@dataclass(frozen=True)
class DrawnStudy:
    """The records that a study was last drawn from.

    Attributes:
        stamp: of their files (stamps.py); empty if they have to be read to see whether they have changed.
        provenance: as in `style.Provenance`, as plain values.
    """

    stamp: str
    provenance: Mapping[str, Any]


@dataclass
class Drawn:
    """All that stands in a folder of figures.

    Attributes:
        surroundings: digest of all code and libraries, and of a look that all figures were asked to have.
        page: the studies on the page, in its order.
    """

    surroundings: str = ""
    page: list[str] = field(default_factory=list)
    studies: dict[str, DrawnStudy] = field(default_factory=dict)
    outputs: dict[str, Output] = field(default_factory=dict)

    def owner_of(self, file: str) -> tuple[str, Output] | None:
        """Return the name of the output that a file belongs to, and the output."""
        return next(((name, output) for name, output in self.outputs.items() if file in output.files), None)

    def digest_of(self, study: str) -> str:
        """Return a digest of all figures and tables of a study, which its page in one file shows."""
        own = {name: output.inputs for name, output in self.outputs.items() if name.startswith(f"{study}/")}
        return text_digest(*(f"{name} {own[name]}" for name in sorted(own) if name != one_file_name(study)))

    def write(self, out: Path) -> None:
        document = {
            "format": FORMAT,
            "surroundings": self.surroundings,
            "page": self.page,
            "studies": {name: vars(study) for name, study in sorted(self.studies.items())},
            "outputs": {name: vars(output) for name, output in sorted(self.outputs.items())},
        }
        text = json.dumps(document, indent=1)
        path = out / RECORD
        if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
            replace_file(path, text, durable=False)


def one_file_name(study: str) -> str:
    """Return the name of a study's page with its pictures inside."""
    return f"{study}/{study}.html"


def read_drawn(out: Path) -> Drawn:
    """Return what stands in a folder of figures; nothing if that is not recorded, or the record cannot be read."""
    path = out / RECORD
    try:
        fields = Fields(read_json(path), str(path))
        if fields.integer("format") != FORMAT:
            return Drawn()
        studies, outputs = fields.fields("studies"), fields.fields("outputs")
        return Drawn(
            fields.text("surroundings"),
            _texts(fields.get("page"), f"{path}: page"),
            {name: _study(studies.fields(name)) for name in studies},
            {name: _output(outputs.fields(name)) for name in outputs},
        )
    except FileNotFoundError:
        return Drawn()
    except RecordError as error:
        logger.warning(f"{error}; so everything is drawn anew")
        return Drawn()


def _study(fields: Fields) -> DrawnStudy:
    provenance = fields.fields("provenance")
    return DrawnStudy(fields.text("stamp"), {name: provenance.get(name) for name in provenance})


def _output(fields: Fields) -> Output:
    files = fields.fields("files")
    names = [name for name in files if not name.startswith("/") and ".." not in Path(name).parts]
    return Output(
        study=fields.text("study"),
        title=fields.text("title"),
        records=fields.text("records"),
        inputs=fields.text("inputs"),
        files={name: files.text(name) for name in names},
        caption=fields.text("caption"),
        width_inches=fields.finite("width_inches", low=0),
    )


def _texts(value: Any, place: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise RecordError(f"{place} is not a list of texts")
    return value


# ------------------------------------------------------------------------------------------------------------- digests


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content; empty if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def text_digest(*texts: str) -> str:
    """Return 16 hex digits of sha256 over texts, in their order."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


@cache
def libraries() -> str:
    """Return the versions of Python and of the libraries that files' bytes may depend on."""
    return " ".join([f"python {platform.python_version()}", *map(_version, LIBRARIES)])


def _version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name} -"


@cache
def surroundings() -> str:
    """Return a digest of the harness's code, its templates, and the libraries."""
    folders = (_ROOT / "harness", _ROOT / "analysis")  # the link between them is not followed
    paths = {path.resolve() for folder in folders for path in folder.rglob("*") if _is_code(path)}
    return text_digest(libraries(), *_content(paths))


# A syntax tree would be the same to a figure, and take a second: of a hundred files.
_IMPORT = re.compile(
    r"^[ \t]*(?:from (?P<from>harness[\w.]*) import (?P<names>\([^)]*\)|.*)|import (?P<module>harness[\w.]*))",
    re.MULTILINE,
)


@cache
def code_of(module: str) -> str:
    """Return a digest of the files that a module is made of: its own, and those that it imports from the harness.

    Imports within functions count; the data files beside the imported modules do too.
    """
    waiting, paths = [module], set()
    while waiting:
        path = _file_of(waiting.pop())
        if path is not None and path not in paths:
            paths.add(path)
            waiting += _imported_by(path)
    folders = {path.parent for path in paths}
    beside = {path for folder in folders for path in folder.rglob("*") if path.suffix != ".py" and _is_code(path)}
    return text_digest(*_content(paths | beside))


def _content(paths: Iterable[Path]) -> list[str]:
    return [f"{path.relative_to(_ROOT)} {_code_digest(path)}" for path in sorted(paths)]


_code_digest = cache(file_digest)


def _is_code(path: Path) -> bool:
    return path.suffix in (".py", ".html", ".css", ".js", ".csv", ".json") and path.is_file()


@cache
def _file_of(module: str) -> Path | None:
    """Return the file of a module of the harness."""
    stem = _ROOT.joinpath(*module.split("."))
    paths = (stem.with_name(f"{stem.name}.py"), stem / "__init__.py")
    return next((path.resolve() for path in paths if path.is_file()), None)


@cache
def _imported_by(path: Path) -> list[str]:
    """Return the modules of the harness that a file imports, wherever in it, with the packages on the way."""
    names = []
    for match in _IMPORT.finditer(path.read_text(encoding="utf-8")):
        module = match["from"] or match["module"]
        names += [module, *(f"{module}.{name}" for name in re.findall(r"\w+", match["names"] or ""))]
    return [name.rsplit(".", depth)[0] for name in names for depth in range(name.count("."))]  # not harness
