"""Which figures are no longer what the records say, and which cells have no value yet; nothing is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from harness.analysis.answers.missing import MissingCell, missing_cells
from harness.analysis.report import claims_report, parallel, report
from harness.analysis.report.drawing import USUAL, inputs_of
from harness.analysis.report.drawn import Drawn, Output, file_digest, one_file_name, read_drawn
from harness.analysis.report.publishing import Content
from harness.analysis.report.report import MANY_RUNS, PAGE, SCHEDULES, contents
from harness.analysis.runs import require_study, study_names
from harness.records.layout import run_paths
from harness.spec.presentation import FigureStyle

CHANGED, NOT_DRAWN = "its records have changed since it was drawn", "it has not been drawn"
OTHER_TEXT = "it would say something else now: its records have changed, or the harness has"
OTHER_CODE = "it is to look otherwise now, or another version of the harness or of its libraries has drawn it"


@dataclass(frozen=True)
class Stale:
    """A figure, a file of a table or the page that is not what a report would make now.

    Attributes:
        name: below the folder of figures, of a figure without its suffix.
    """

    study: str
    name: str
    why: str


@dataclass
class Check:
    """What a report would change, and what it cannot show."""

    stale: list[Stale] = field(default_factory=list)
    missing: dict[str, list[MissingCell]] = field(default_factory=dict)

    @property
    def num_missing(self) -> int:
        return sum(map(len, self.missing.values()))


def check(
    runs_folder: Path,
    out: Path,
    studies: Sequence[str] = (),
    *,
    look: FigureStyle | None = None,
    options: str = "",
    num_processes: int = 1,
) -> Check:
    """Compare a folder of figures with the records.

    Args:
        studies: names; if empty, all studies that have runs.
        look: of all figures; what it says counts more than what the studies say.
        options: that a command needs to address the same runs.

    Raises:
        RecordError: a study has no runs; the message lists the studies that have.
    """
    for name in studies:
        require_study(runs_folder, name)
    names = [name for name in study_names(runs_folder) if not studies or name in studies]
    drawn = read_drawn(out)
    calls = [partial(_of_study, runs_folder, out, name, drawn, look, options) for name in names]
    many = len(run_paths(runs_folder)) >= MANY_RUNS
    result = Check()
    if not studies:
        result.stale += stale_schedules(out, drawn, look)
    for name, (stale, missing) in zip(names, parallel.results(calls, num_processes if many else 1), strict=True):
        result.stale += stale
        result.missing[name] = missing
    for name in (claims_report.STEM, PAGE):  # what they show is in the studies' files, too
        if (name == PAGE or name in drawn.outputs) and (why := damage(drawn.outputs.get(name), out)):
            result.stale.append(Stale("", name, why))
    return result


def _of_study(
    runs_folder: Path, out: Path, study: str, drawn: Drawn, look: FigureStyle | None, options: str
) -> tuple[list[Stale], list[MissingCell]]:
    content = contents(runs_folder, study, look)
    missing = missing_cells(runs_folder, study, content.section.runs, options)
    return list(stale_outputs(content, out, drawn)), missing


def stale_schedules(out: Path, drawn: Drawn, look: FigureStyle | None = None) -> list[Stale]:
    """Return the figures without runs that are not what a report would draw."""
    stale = []
    for name, module in report.WITHOUT_RUNS.items():
        before = drawn.outputs.get(f"{SCHEDULES}/{name}")
        why = damage(before, out)
        if before and before.inputs != inputs_of(before.records, module, look or USUAL):
            why = OTHER_CODE
        stale += [Stale(SCHEDULES, f"{SCHEDULES}/{name}", why)] if why else []
    return stale


def stale_outputs(content: Content, out: Path, drawn: Drawn) -> Iterator[Stale]:
    """Return the figures and tables of a study that are not what a report would make of its records."""
    study, expected = content.section.name, set()
    for planned in content.figures:
        before = drawn.outputs.get(planned.stem)
        expected.add(planned.stem)
        why = damage(before, out)
        if before and before.inputs != planned.inputs:
            why = OTHER_CODE if before.records == planned.records else CHANGED
        if why:
            yield Stale(study, planned.stem, why)
    for file, text in content.tables.items():
        name = f"{study}/{file}"
        before = drawn.outputs.get(name)
        expected.add(name)
        now = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        why = damage(before, out)
        if before and before.files.get(name) != now:
            why = OTHER_TEXT
        if why:
            yield Stale(study, name, why)
    for name, output in drawn.outputs.items():
        if name == one_file_name(study):
            if why := damage(output, out) or (CHANGED if output.records != drawn.digest_of(study) else ""):
                yield Stale(study, name, why)
        elif name.startswith(f"{study}/") and name not in expected and output.is_whole(out):
            yield Stale(study, name, "its study has no data for it any more")


def damage(output: Output | None, out: Path) -> str:
    """Say what has happened to the files of an output since they were written; empty if nothing has."""
    if output is None:
        return NOT_DRAWN
    for name, digest in output.files.items():
        if (found := file_digest(out / name)) != digest:
            return f"{name} {'was changed' if found else 'is missing'}"
    return ""
