"""The files of a study that a paper takes in: its numbers as macros, and the appendix on reproducibility."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from harness.analysis.answers.contrasts import Contrast
from harness.analysis.page.page import Section
from harness.analysis.tables import macros, reproducibility
from harness.records.manifest import Manifests


def texts(
    section: Section, runs_folder: Path, frame: pd.DataFrame, compared: Sequence[Contrast], origin: str
) -> dict[str, str]:
    """Return the files' texts by name; none for a study without runs.

    Args:
        frame: of `results.data`.
        origin: what the files are made of, for their first lines.
    """
    if not section.runs:
        return {}
    manifests = Manifests(runs_folder)
    manifest = manifests.of(section.name)
    answers = reproducibility.answers(
        section.name,
        section.runs,
        manifests.earlier_runs(section.name),
        question=section.presentation.question,
        file=manifest.file if manifest else "",
    )
    appendix = {
        "reproducibility.md": reproducibility.markdown(section.name, answers),
        "reproducibility.tex": reproducibility.latex(section.name, answers, origin),
    }
    numbers = {"macros.tex": macros.macros(section.name, frame, compared, origin)} if len(frame) else {}
    return numbers | appendix
