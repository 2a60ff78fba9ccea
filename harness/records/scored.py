"""Images from elsewhere that were scored for a study: arms that stand beside its own, and are marked as not ours.

runs/.studies/<study>/scored/<arm>.json
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.files import replace_file, safe_name
from harness.records.layout import StudyLayout
from harness.records.reading import Fields, read_json

logger = logging.getLogger(__name__)

FORMAT = 1


@dataclass(frozen=True)
class ScoredArm:
    """Images from elsewhere, measured by a study's protocol.

    Attributes:
        source: where the images lay, for people.
        metrics: kind (`fid`) -> value.
        extractor: the name of the network whose features were compared.
        reference: the split that they were compared with.
        k: neighbours of precision and recall.
        fid_standard_error: of FID over draws of as many images; None where none was recorded.
    """

    arm: str
    source: str
    num_images: int
    metrics: Mapping[str, float]
    extractor: str
    reference: str
    k: int
    fid_standard_error: float | None = None


def write_scored(runs_folder: Path, study: str, arm: str, document: Mapping[str, Any]) -> Path:
    """Store what was measured of an arm, in place of what was stored before.

    Raises:
        RecordError: the name cannot be one of a file, or the file cannot be written.
    """
    path = StudyLayout(runs_folder, safe_name(study)).scored_path(safe_name(arm))
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT, "arm": arm, **document}, indent=1)
    replace_file(path, text, durable=True)
    return path


def read_scored(runs_folder: Path, study: str) -> list[ScoredArm]:
    """Return the arms that were scored for a study, by name; of one that cannot be read a warning is logged."""
    arms = []
    for path in sorted(StudyLayout(runs_folder, study).scored_path("x").parent.glob("[!.]*.json")):
        try:
            arms.append(_scored_from(read_json(path), path))
        except (RecordError, FileNotFoundError) as error:
            logger.warning(f"left out: {error}")
    return arms


def _scored_from(stored: Any, path: Path) -> ScoredArm:
    fields = Fields(stored, str(path))
    if (version := fields.integer("format")) != FORMAT:
        raise RecordError(f"{path}: is of format {version}, which this version cannot read")
    protocol, metrics = fields.fields("fidelity"), fields.fields("metrics")
    return ScoredArm(
        arm=fields.line("arm"),
        source=fields.line("source"),
        num_images=fields.integer("num_images", low=1),
        metrics={str(name): metrics.number(name) for name in metrics},
        extractor=fields.fields("extractor").line("name"),
        reference=protocol.line("reference"),
        k=protocol.integer("k", low=1),
        fid_standard_error=protocol.number("fid_standard_error") if "fid_standard_error" in protocol else None,
    )
