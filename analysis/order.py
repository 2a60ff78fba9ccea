"""The order of a study's arms: that of its file, or without a manifest that of the papers' tables."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from harness.spec.parts import choices
from harness.spec.run import Objective, Schedule

if TYPE_CHECKING:
    from harness.analysis.runs import RunRecord
    from harness.records.manifest import Manifests


def in_order(records: list[RunRecord], manifests: Manifests) -> list[RunRecord]:
    """Sort runs by study, arm and replicate, arms as the study's manifest has them first."""
    asked = {run.study: manifests.of(run.study) for run in records}
    places = {study: {key: place for place, key in enumerate(of.runs)} if of else {} for study, of in asked.items()}
    first: dict[tuple[str, str], int] = {}
    for run in records:
        place = places[run.study].get(run.run_key, len(records))
        first[run.study, run.arm] = min(place, first.get((run.study, run.arm), place))
    return sorted(records, key=lambda r: (r.study, first[r.study, r.arm], _arm_order(r), r.arm, r.replicate))


def _arm_order(run: RunRecord) -> tuple:
    """Return a sort key for arms as in the papers' tables: schedule, objective, then name with numeric parts."""
    schedules, objectives = _ranks()
    words = re.split(r"(\d+(?:\.\d+)?)", run.arm)
    natural = [(float(word), "") if index % 2 else (0.0, word) for index, word in enumerate(words)]
    schedule, objective = run.named("diffusion.schedule"), run.named("objective")
    return schedules.get(schedule, len(schedules)), objectives.get(objective, len(objectives)), natural


@cache
def _ranks() -> tuple[dict[str, int], dict[str, int]]:
    schedules, objectives = list(choices(Schedule)), list(choices(Objective))
    return {name: i for i, name in enumerate(schedules)}, {name: i for i, name in enumerate(objectives)}
