"""How a study is compared and drawn: by its file where it still exists, else by what was stored when it was submitted.

So a label or a width that is changed in the file counts at the next `harness figures`, without a submission, and a
folder of runs that came without the file is drawn as it was asked for.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from pydantic import ValidationError

from harness.records.manifest import read_manifest
from harness.spec.presentation import FigureStyle, Presentation
from harness.study.presentation import presentation_of_file

logger = logging.getLogger(__name__)


def presentation_of(runs_folder: Path, study: str, given: FigureStyle | None = None) -> Presentation:
    """Return a study's question, what decides it, and how its figures look.

    Args:
        given: of a file of its own; what it says of figures counts more than what the study says.
    """
    presentation = _presentation_of(runs_folder, study)
    if given is None:
        return presentation
    changes = {name: getattr(given, name) for name in given.model_fields_set}
    changes["labels"] = presentation.figures.labels | given.labels
    return presentation.model_copy(update={"figures": presentation.figures.model_copy(update=changes)})


def _presentation_of(runs_folder: Path, study: str) -> Presentation:
    manifest = read_manifest(runs_folder, study)
    if manifest is None:
        return Presentation()
    if manifest.file and (current := presentation_of_file(Path(manifest.file), study)):
        return current
    try:
        return Presentation.model_validate_json(json.dumps(manifest.presentation))
    except ValidationError as error:
        logger.warning(
            f"study {study}: its stored presentation is not used: {error.error_count()} of its values are odd"
        )
        return Presentation()
