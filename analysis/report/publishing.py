"""Write what a study shows into the folder of figures, as far as it has changed."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.analysis.page.page import Section, Shown
from harness.analysis.provenance import Provenance
from harness.analysis.report.drawing import Planned, inputs_of, shown, write_text
from harness.analysis.report.drawn import Drawn, Output, file_digest
from harness.errors import HarnessError
from harness.spec.presentation import FigureStyle
from harness.text import printable

logger = logging.getLogger(__name__)


@dataclass
class Content:
    """What a study shows, by its records: nothing of it is drawn yet.

    Attributes:
        section: of the page, without figures.
        figures: those that there is data for.
        tables: name of the file -> text.
        names: what the arms with a label are called in texts.
        without_data: what there is no data for, with what it needs.
    """

    section: Section
    made_of: Provenance
    figures: list[Planned] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    without_data: dict[str, str] = field(default_factory=dict)


@dataclass
class Published:
    """What stands in the folder of figures of one study, or of the schedules.

    Attributes:
        made: names of the outputs that were written just now.
        is_complete: whether all that was read is shown.
        without_data: of a study that was drawn, what there are no data for, with what it needs.
    """

    section: Section | None = None
    shown: list[Shown] = field(default_factory=list)
    outputs: dict[str, Output] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    is_complete: bool = True
    without_data: dict[str, str] = field(default_factory=dict)


def publish_schedules(
    modules: Mapping[str, ModuleType], folder: str, out: Path, before: Drawn, *, fresh: bool, look: FigureStyle
) -> Published:
    """Draw the figures that need no runs; of what is there, not even the data are computed."""
    published = Published()
    for name, module in modules.items():
        stem = f"{folder}/{name}"
        output = before.outputs.get(stem)
        if (
            output is None
            or fresh
            or output.inputs != inputs_of(output.records, module, look)
            or not output.is_whole(out)
        ):
            frame = module.data([])
            made_of = Provenance(module.TITLE, folder, (), (), "harness figures")
            output = Planned(stem, module, frame, module.caption(frame), made_of, look).draw(out)
            published.made.append(stem)
        published.outputs[stem] = output
        published.shown.append(shown(stem, output))
    return published


def publish(content: Content, out: Path, before: Drawn, *, asked: bool, fresh: bool) -> Published:
    """Draw what has changed of a study, or only describe what an earlier report has drawn.

    Args:
        asked: whether the study is to be drawn.
        fresh: draw everything again.
    """
    section, study = content.section, content.section.name
    published = Published(section, provenance=asdict(content.made_of))
    if asked:
        published.without_data = content.without_data
        _write_tables(content, out, before, published)
    else:
        _forget_missing_tables(section, out / study)
    for planned in content.figures:
        output = before.outputs.get(planned.stem)
        try:
            if asked and (fresh or not planned.is_drawn(output, out)):
                output = planned.draw(out)
                published.made.append(planned.stem)
            elif not asked:
                output = output or planned.drawn_by_an_earlier_version(out)
        except Exception as error:  # of one figure: the others are drawn
            section.left_out[planned.picture.TITLE] = f"cannot be drawn: {describe(error)}"
            continue
        if output and (asked or output.is_whole(out)):
            published.outputs[planned.stem] = replace(output, caption=planned.caption)
            section.figures.append(shown(planned.stem, published.outputs[planned.stem]))
    if not asked:
        published.outputs |= {name: output for name, output in before.outputs.items() if output.study == study}
    published.is_complete = not section.left_out
    for name, reason in section.left_out.items():
        logger.warning(printable(f"{study}: left out: {name}: {reason}"))
    return published


def _write_tables(content: Content, out: Path, before: Drawn, published: Published) -> None:
    for file, text in content.tables.items():
        name = f"{content.section.name}/{file}"
        output, written = write_text(out, name, text, content.section.name, before.outputs.get(name))
        published.outputs[name] = output
        published.made += [name] if written else []


def _forget_missing_tables(section: Section, folder: Path) -> None:
    """Leave tables out that no earlier report has written."""
    for attribute, file in (
        *(("results", "results.csv"), ("claims", "claims.csv"), ("contrasts", "contrasts.csv")),
        *(("mixture", "mixture_by_steps.csv"), ("noise", "noise.csv")),
        ("published", "published.csv"),
    ):
        if not (folder / file).is_file():
            setattr(section, attribute, getattr(Section(section.name, []), attribute))


def remove_what_is_no_longer_made(out: Path, before: Drawn, after: Drawn, asked: Collection[str]) -> None:
    """Remove files that earlier reports have written of studies, unless somebody has changed them since."""
    files = {name for output in after.outputs.values() for name in output.files}
    for output in before.outputs.values():
        for name, digest in output.files.items() if output.study in asked else ():
            if name not in files and file_digest(out / name) == digest:
                (out / name).unlink()


def describe(error: Exception) -> str:
    return str(error) if isinstance(error, HarnessError) else f"{type(error).__name__}: {error}"
