"""Whether the records of a study may have changed, without reading them: stamps of their files, as git's index has.

A stamp is a digest of name, size, inode, time of change of content and time of change of the entry (ctime, which no
program can set) of every file that figures read. Where the stamps are equal, so are the files; where they differ, the
files are read, and only what they say decides what is drawn anew. So copied records cost one reading, and no more.

Two changes within one tick of a file system's clock may leave a file with the same stamp. So records of which one has
changed in the last `SETTLED_SECONDS` have no stamp, and are read each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.analysis.report.drawn import Drawn, read_drawn, surroundings, text_digest
from harness.records import layout
from harness.records.directory import RunDirectory
from harness.records.layout import ASKED, SEARCH
from harness.records.manifest import Manifests

if TYPE_CHECKING:
    from harness.spec.presentation import FigureStyle

SETTLED_SECONDS = 2.0
READ = ("", "studies", "evaluations", "arrays", "samples", "logs", "tracking")
"""The folders of a run directory with files that figures and the page read or link to."""

Entry = tuple[str, int, int, int, int]


class Stamps:
    """The stamps of the studies in a folder of runs, all of one moment."""

    def __init__(self, runs_folder: Path, look: FigureStyle | None = None):
        self.runs_folder = runs_folder
        self.look = look  # that figures are asked to have, whatever the study says
        self._latest = time.time_ns() - int(SETTLED_SECONDS * 1e9)
        self._manifests = Manifests(runs_folder)
        self._no_runs = layout.folders_that_are_no_runs(runs_folder)
        self._of_runs: dict[str, list[Entry]] = {}
        self._writers: dict[str, bool] = {}
        self._members: dict[str, list[str]] = {}
        for path in layout.run_paths(runs_folder):
            entries = [entry for folder in READ for entry in _entries(path / folder)]
            self._of_runs[path.name] = entries
            self._writers[path.name] = RunDirectory(path).may_be_written()
            for name in _names(path / "studies"):
                self._members.setdefault(name.removesuffix(".json"), []).append(path.name)

    @property
    def num_runs(self) -> int:
        return len(self._of_runs)

    def of(self, study: str) -> str:
        """Return the stamp of all that a report of a study reads; empty if it changed a moment ago."""
        from harness.analysis.presentation import presentation_of

        manifest = self._manifests.of(study)
        keys = sorted({*self._members.get(study, ()), *(manifest.runs if manifest else ())} & self._of_runs.keys())
        files = {key: self._of_runs[key] for key in keys}
        folder, search = self.runs_folder / ASKED / study, self.runs_folder / SEARCH / study
        for of_study in (folder, folder / "scored", search, search / "trials"):
            files[str(of_study.relative_to(self.runs_folder))] = _entries(of_study)
        if any(max(entry[3:]) > self._latest for entries in files.values() for entry in entries):
            return ""
        presentation = presentation_of(self.runs_folder, study, self.look).model_dump(mode="json")
        written = [key for key in keys if self._writers[key]]
        return hashlib.sha256(json.dumps([files, written, self._no_runs, presentation]).encode()).hexdigest()[:16]


def _entries(folder: Path) -> list[Entry]:
    """Return the stamps of the files in a folder, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            files = [(entry.name, entry.stat()) for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return []
    return sorted(
        (name, facts.st_size, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns)
        for name, facts in files
        if not stat.S_ISDIR(facts.st_mode)
    )


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]  # noqa: PTH208 (a thousand folders)
    except OSError:
        return []


def on_the_page(known: Iterable[str], asked: Sequence[str], drawn: Drawn, out: Path) -> list[str]:
    """Return the studies that a report shows: those that it is asked for, all if none, and those drawn earlier."""

    def has_pictures(name: str) -> bool:  # of a version that kept no record
        return any((out / name).glob("*.png"))

    return [name for name in known if not asked or name in asked or name in drawn.studies or has_pictures(name)]


def made_with(look: FigureStyle | None, runs_folder: Path, out: Path) -> str:
    """Return a digest of what all outputs depend on: code, libraries, a look of all figures, and where the runs are.

    The page links to the runs' files, as seen from its own folder.
    """
    way = os.path.relpath(runs_folder.resolve(), out.resolve())
    return text_digest(surroundings(), look.model_dump_json() if look else "", way)


def nothing_has_changed(runs_folder: Path, out: Path, studies: Sequence[str], look: FigureStyle | None = None) -> bool:
    """Return whether a report would write what is there: the same records, look, code, libraries and files."""
    drawn = read_drawn(out)
    if not drawn.outputs or drawn.surroundings != made_with(look, runs_folder, out):
        return False
    if drawn.page != on_the_page(layout.study_names(runs_folder), studies, drawn, out):
        return False
    if any(study not in drawn.studies or not drawn.studies[study].stamp for study in drawn.page):
        return False
    stamps = Stamps(runs_folder, look)
    unchanged = all(stamps.of(study) == drawn.studies[study].stamp for study in drawn.page)
    return unchanged and all(output.is_whole(out) for output in drawn.outputs.values())
