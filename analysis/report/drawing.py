"""Draw a figure, or leave the files that an earlier report has drawn of the same."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.figures import fig_search, style
from harness.analysis.page.page import Shown
from harness.analysis.provenance import Provenance
from harness.analysis.report.drawn import Output, code_of, file_digest, libraries, text_digest
from harness.records.files import replace_file
from harness.spec.presentation import FigureStyle

USUAL = FigureStyle()
Picture = ModuleType | fig_search.Picture


@dataclass(frozen=True)
class Planned:
    """A figure that there is data for.

    Attributes:
        stem: of its files, below the folder of figures: `study/samples`.
        look: the width, colours, labels and formats that the study wants.
    """

    stem: str
    picture: Picture
    frame: pd.DataFrame
    caption: str
    made_of: Provenance
    look: FigureStyle = USUAL

    @cached_property
    def records(self) -> str:
        """A digest of all that the figure's files show: its data, and what they say of its runs."""
        return text_digest(frame_digest(self.frame), replace(self.made_of, title=self.picture.TITLE).as_json())

    @property
    def inputs(self) -> str:
        """A digest of that, of how it is to look, and of the code and the libraries that draw it."""
        return inputs_of(self.records, self.picture, self.look)

    def is_drawn(self, before: Output | None, out: Path) -> bool:
        """Return whether the figure's files are there as they would be drawn."""
        return before is not None and before.inputs == self.inputs and before.is_whole(out)

    def drawn_by_an_earlier_version(self, out: Path) -> Output | None:
        """Return the figure as a version that kept no record has drawn it; None if it has not."""
        width, paths = style.width_inches(out / f"{self.stem}.png"), sorted((out / self.stem).parent.glob("*"))
        files = {
            path.relative_to(out).as_posix(): file_digest(path) for path in paths if path.stem == Path(self.stem).name
        }
        return Output(self.made_of.study, self.picture.TITLE, "", "", files, self.caption, width) if width else None

    def draw(self, out: Path) -> Output:
        """Draw the figure and write its files."""
        made_of = replace(self.made_of, title=self.picture.TITLE, records=self.records)
        with style.chosen(self.look):
            figure = self.picture.draw(self.frame)
            paths = style.save(figure, self.frame, out / self.stem, made_of)
        return Output(
            study=self.made_of.study,
            title=self.picture.TITLE,
            records=self.records,
            inputs=self.inputs,
            files={path.relative_to(out).as_posix(): file_digest(path) for path in paths},
            caption=self.caption,
            width_inches=float(figure.get_figwidth()),
        )


def inputs_of(records: str, picture: Picture, look: FigureStyle = USUAL) -> str:
    """Return the digest of what a figure shows, how it is to look, and the code and the libraries that draw it."""
    module = picture.__name__ if isinstance(picture, ModuleType) else type(picture).__module__
    return text_digest(records, code_of(module), libraries(), look.model_dump_json())


def shown(stem: str, output: Output) -> Shown:
    """Return a figure that was drawn as the page shows it."""
    return Shown(stem, output.title, output.caption, output.width_inches)


def write_text(out: Path, name: str, text: str, study: str, before: Output | None) -> tuple[Output, bool]:
    """Write a file of a table or the page, unless it is there; return whether it was written, too."""
    content = text.encode("utf-8", "replace")
    digest = hashlib.sha256(content).hexdigest()
    output = Output(study, Path(name).name, digest[:16], digest[:16], {name: digest})
    if before == output and output.is_whole(out):
        return output, False
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    replace_file(out / name, content.decode(), durable=False)
    return output, True


# ------------------------------------------------------------------------------------------------------------- digests


def frame_digest(frame: pd.DataFrame) -> str:
    """Return the sha256 of a frame's columns, types, index, values and attributes; arrays in cells by their content."""
    digest = hashlib.sha256()
    for name, column in [("index", frame.index), *frame.items()]:
        values = column.to_numpy()
        digest.update(f"{name!r} {values.dtype.str} {len(values)}\n".encode("utf-8", "replace"))
        if values.dtype.kind in "biufcmM":
            digest.update(np.ascontiguousarray(values).tobytes())
        else:
            for value in values:
                _add(digest, value)
    _add(digest, frame.attrs)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufcmM":
        digest.update(f"array {value.dtype.str} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)}\n".encode())
        for key, entry in value.items():
            _add(digest, key)
            _add(digest, entry)
    elif isinstance(value, list | tuple | np.ndarray):
        digest.update(f"{type(value).__name__} {len(value)}\n".encode())
        for entry in value:
            _add(digest, entry)
    elif isinstance(value, str | int | float | bool | type(None) | np.generic | Path):
        digest.update(f"{type(value).__name__} {value!r}\n".encode("utf-8", "backslashreplace"))
    else:  # equal pickles are equal values
        digest.update(pickle.dumps(value))
