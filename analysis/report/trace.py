"""Where a figure, a table or the page comes from: its runs, code, data and protocols, and whether it is still true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from harness.analysis.provenance import METADATA, Provenance, provenance_from
from harness.analysis.report import claims_report
from harness.analysis.report.check import CHANGED, Stale, damage, stale_outputs, stale_schedules
from harness.analysis.report.drawing import USUAL
from harness.analysis.report.drawn import RECORD, Drawn, file_digest, read_drawn
from harness.analysis.report.publishing import Content
from harness.analysis.report.report import PAGE, SCHEDULES, contents
from harness.analysis.runs import RunRecord, study_names
from harness.errors import RecordError
from harness.records.reading import parse_json, read_bytes

MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class TracedRun:
    """A run that a file was made of, as the records have it now; of one that is not there the key alone is known."""

    run_key: str
    arm: str = ""
    replicate: int | None = None
    seed: int | None = None
    state: str = "absent"
    run_dir: str = ""
    code_version: str = ""
    data_digest: str = ""


@dataclass(frozen=True)
class TracedStudy:
    """What a file shows of one study.

    Attributes:
        why_stale: empty if it is what the records say.
    """

    made_of: Provenance
    runs: list[TracedRun]
    why_stale: str


@dataclass
class Trace:
    """Where a file comes from.

    Attributes:
        name: of the figure or table below its folder of figures; empty for a copy that only its metadata tell of.
        studies: that it shows; several of the page alone.
    """

    file: Path
    name: str = ""
    title: str = ""
    studies: list[TracedStudy] = field(default_factory=list)


def trace(file: Path, runs_folder: Path, out: Path) -> Trace:
    """Find out where a file comes from, by the record of its folder, by its metadata, or by its content.

    Args:
        out: the folder of figures whose record knows a copy by its content.

    Raises:
        RecordError: it is no file, or nothing says where it comes from.
    """
    if not file.is_file():
        raise RecordError(f"{file}: is no file; give a figure or a table of a folder of figures, or a copy of one")
    folder, name = _place(file, out)
    drawn = read_drawn(folder)
    embedded = read_provenance(file)
    if name == PAGE and drawn.page:
        return Trace(file, PAGE, "Figures", [_traced(runs_folder, folder, drawn, study) for study in drawn.page])
    owner = drawn.owner_of(name)
    if owner is None and embedded is None:
        raise RecordError(
            f"{file}: nothing says where it comes from. What can be traced: every file of a folder of figures that "
            "`harness figures` has written (its .drawn.json knows them), copies of these files (--out FOLDER says "
            "where the originals are), and any copy of a PNG, PDF or SVG, whose metadata say it"
        )
    if owner is None:
        assert embedded is not None
        return Trace(file, "", embedded.title, [_by_metadata(runs_folder, embedded)])
    stem, output = owner
    if stem == claims_report.STEM:
        studies = [study for study in drawn.page if study in _studies(output.study)]
        of_studies = [_traced(runs_folder, folder, drawn, study, f"{study}/claims.csv") for study in studies]
        why = damage(output, folder)
        of_studies = [replace(study, why_stale=why or study.why_stale) for study in of_studies]
        return Trace(file, stem, output.title, of_studies)
    return Trace(file, stem, output.title, [_traced(runs_folder, folder, drawn, output.study, stem, file)])


def _place(file: Path, out: Path) -> tuple[Path, str]:
    """Return the folder of figures that knows a file, and the name that the file has in it; "" if it is in none."""
    absolute = file.resolve()
    for folder in absolute.parents:
        if (folder / RECORD).is_file():
            name = absolute.relative_to(folder).as_posix()
            if read_drawn(folder).owner_of(name):
                return folder, name
    digest = file_digest(file)
    for output in read_drawn(out).outputs.values():
        for name, known in output.files.items():
            if known == digest:
                return out, name
    return out, ""


def _traced(
    runs_folder: Path, folder: Path, drawn: Drawn, study: str, stem: str = "", file: Path | None = None
) -> TracedStudy:
    """Trace what one study has in a folder of figures: an output, or all of them for the page."""
    if study == SCHEDULES and study not in drawn.studies:
        made_of = Provenance(drawn.outputs[stem].title, SCHEDULES, (), (), "harness figures")
        return TracedStudy(made_of, [], _first(stale_schedules(folder, drawn), stem))
    made_of = provenance_from(drawn.studies[study].provenance, str(folder / RECORD))
    content = _contents(runs_folder, study)
    if content is None:
        return TracedStudy(made_of, _runs(made_of, []), f"{runs_folder} has no run of study {study}")
    stale = _first(stale_outputs(content, folder, drawn), stem)
    if stem and file and not stale and file_digest(file) not in drawn.outputs[stem].files.values():
        stale = "it was changed"
    return TracedStudy(made_of, _runs(made_of, content.section.runs), stale)


def _first(stale: Iterator[Stale] | list[Stale], stem: str) -> str:
    """Return why an output is stale, or of the page the first output that is."""
    for entry in stale:
        if not stem:
            return f"{entry.name}: {entry.why}"
        if entry.name == stem:
            return entry.why
    return ""


def _by_metadata(runs_folder: Path, made_of: Provenance) -> TracedStudy:
    """Trace a copy of a figure by what stands in it."""
    if made_of.study == SCHEDULES:
        return TracedStudy(made_of, [], "")
    found = [content for study in _studies(made_of.study) if (content := _contents(runs_folder, study))]
    if not found:
        return TracedStudy(made_of, _runs(made_of, []), f"{runs_folder} has no run of study {made_of.study}")
    card = claims_report.planned_card([content.section for content in found], USUAL)
    planned = [*(figure for content in found for figure in content.figures), *([card[1]] if card else [])]
    current = made_of.records in {figure.records for figure in planned}
    runs = [run for content in found for run in content.section.runs]
    return TracedStudy(made_of, _runs(made_of, runs), "" if current else CHANGED)


def _studies(text: str) -> list[str]:
    """Return the studies of a figure: one, but for the card of claims, which names several."""
    return text.split(", ")


def _contents(runs_folder: Path, study: str) -> Content | None:
    return contents(runs_folder, study) if study in study_names(runs_folder) else None


def _runs(made_of: Provenance, records: list[RunRecord]) -> list[TracedRun]:
    known = {run.run_key: run for run in records}
    return [_run(known[key]) if key in known else TracedRun(key) for key in made_of.run_keys]


def _run(run: RunRecord) -> TracedRun:
    return TracedRun(
        run_key=run.run_key,
        arm=run.arm,
        replicate=run.replicate,
        seed=run.spec.get("seed"),
        state=run.state,
        run_dir=str(run.folder),
        code_version=run.code_version,
        data_digest=str(run.environment.get("data_digest") or ""),
    )


# ------------------------------------------------------------------------------------------------------ metadata


def read_provenance(file: Path) -> Provenance | None:
    """Return the provenance in the metadata of a PNG, a PDF or an SVG; None if there is none."""
    reader = {".png": _of_png, ".pdf": _of_pdf, ".svg": _of_svg}.get(file.suffix.lower())
    text = reader(file) if reader else None
    try:
        values = parse_json(text.encode(), str(file)) if text else None
        return provenance_from(values, str(file)) if values else None
    except RecordError:  # keywords of another program
        return None


def _of_png(file: Path) -> str | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file, formats=["PNG"]) as picture:
            text: Any = picture.info.get(METADATA)
            return text if isinstance(text, str) else None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError):
        return None


def _of_pdf(file: Path) -> str | None:
    """Return the keywords of a PDF by matplotlib: a string of ASCII with backslashes before parentheses and itself."""
    match = re.search(rb"/Keywords \(((?:\\.|[^\\()])*)\)", read_bytes(file, limit=MAX_BYTES), re.DOTALL)
    return re.sub(rb"\\(.)", rb"\1", match[1], flags=re.DOTALL).decode("ascii", "replace") if match else None


def _of_svg(file: Path) -> str | None:
    """Return the keyword of an SVG that is JSON."""
    try:
        root = ElementTree.fromstring(read_bytes(file, limit=MAX_BYTES))
    except ElementTree.ParseError:
        return None
    texts = (element.text or "" for element in root.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"))
    return next((text for text in texts if text.startswith("{")), None)


def as_values(traced: Trace) -> dict[str, Any]:
    """Return a trace as plain values, for JSON."""
    studies = [
        {
            "study": study.made_of.study,
            "command": study.made_of.command,
            "current": not study.why_stale,
            "why_stale": study.why_stale,
            "code_versions": list(study.made_of.code_versions),
            "data_digests": list(study.made_of.data_digests),
            "protocols": list(study.made_of.protocols),
            "runs": [vars(run) for run in study.runs],
        }
        for study in traced.studies
    ]
    return {"file": str(traced.file), "name": traced.name, "title": traced.title, "studies": studies}
