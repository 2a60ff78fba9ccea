"""What the page says of a study's runs: what every arm is, where its files are, and what is still missing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from harness.analysis.runs import RunRecord, by_arm, count_states
from harness.analysis.settings import brief, settings_of
from harness.errors import RecordError
from harness.records.directory import RunDirectory
from harness.records.manifest import read_manifest
from harness.records.reading import read_json
from harness.spec.base import canonical_json
from harness.text import count

MAX_SETTINGS = 12
"""Most columns of the table of arms; the specs of the runs have all."""
MAX_PICTURES = 240
"""Most sample grids on the page."""


@dataclass(frozen=True)
class Link:
    """A file of a run, or its page in MLflow."""

    text: str
    href: str


def what_every_arm_is(runs: Sequence[RunRecord], baseline: str) -> dict[str, Any] | None:
    """Return the settings in which arms differ, as a table; None of a study with one arm.

    Args:
        baseline: the arm whose values the others are marked against; the first if there is no such arm.
    """
    arms = {arm: settings_of(of_arm[0]) for arm, of_arm in by_arm(runs).items()}
    if len(arms) < 2:
        return None
    base = baseline if baseline in arms else next(iter(arms))
    paths = dict.fromkeys(path for settings in arms.values() for path in settings)
    differing = [path for path in paths if len({canonical_json(of.get(path)) for of in arms.values()}) > 1]
    shown = differing[:MAX_SETTINGS]
    rows = [
        {
            "arm": arm,
            "index": index,
            "runs": count_states(of_arm),
            "cells": [(brief(own.get(path)), own.get(path) != arms[base].get(path)) for path in shown],
        }
        for index, ((arm, own), of_arm) in enumerate(zip(arms.items(), by_arm(runs).values(), strict=True))
    ]
    heads = [path.removesuffix(".name") for path in shown]
    return {"base": base, "heads": heads, "rows": rows, "more": len(differing) - len(shown)}


def missing(runs: Sequence[RunRecord], study: str) -> dict[str, Any] | None:
    """Say which runs and measurements are not there yet, and which commands fill them; None if all are."""
    if not runs:
        return None
    folder = runs[0].folder.parent
    manifest = read_manifest(folder, study)
    asked = manifest.runs if manifest else {}
    unfinished = [run for run in runs if run.state != "done"]
    unmeasured = sum(
        max(0, len(asked[run.run_key]["evaluations"]) - len(run.measurements))
        for run in runs
        if run.state == "done" and run.run_key in asked
    )
    absent = len(set(asked) - {run.run_key for run in runs})
    parts = [f"{count(len(unfinished), 'run')} not done" if unfinished else ""]
    parts += [f"{count(absent, 'run')} without a folder" if absent else ""]
    parts += [f"{count(unmeasured, 'evaluation')} of runs that are done" if unmeasured else ""]
    if not any(parts):
        return None
    file = _seen_from(folder.absolute().parent, Path(manifest.file)) if manifest and manifest.file else "FILE"
    commands = [f"harness submit {shlex.quote(file)}", f"harness status {shlex.quote(study)}"]
    return {"text": ", ".join(filter(None, parts)), "commands": commands}


def _seen_from(home: Path, file: Path) -> str:
    """Return a path relative to the folder that has the runs, where harness is called, if it lies within."""
    return str(file.relative_to(home)) if file.is_relative_to(home) else str(file)


def links(run: RunRecord, page_folder: Path) -> list[Link]:
    """Return a run's spec, its last log and its page in MLflow, as far as they are there."""
    directory = RunDirectory(run.folder)
    logs = directory.log_paths()
    files = {"spec": directory.spec_yaml_path, "log": logs[-1] if logs else None}
    shown = [
        Link(text, relative(path, page_folder)) for text, path in files.items() if path is not None and path.is_file()
    ]
    address = _in_mlflow(directory, run.study)
    return [*shown, Link("MLflow", address)] if address else shown


def _in_mlflow(directory: RunDirectory, study: str) -> str:
    """Return the address of a run in MLflow, if a server has it; empty if not."""
    for path in sorted(directory.tracking_folder.glob(f"{study}-*.json")):
        try:
            cursor = read_json(path)
        except (OSError, ValueError, RecordError):
            continue
        match cursor:
            case {"server": str(server), "run_id": str(run_id)} if run_id.isalnum() and _is_server(server):
                return f"{server.rstrip('/')}/#/runs/{run_id}"
    return ""


def _is_server(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc


def relative(path: Path, folder: Path) -> str:
    """Return a path as a link from a folder."""
    return quote(os.path.relpath(path.absolute(), folder.absolute()))


def samples(runs: Sequence[RunRecord], page_folder: Path) -> list[dict[str, Any]]:
    """Return the sample grids side by side: one set for each evaluation and replicate, all from the same noise."""
    index = {arm: number for number, arm in enumerate(by_arm(runs))}
    sets: dict[tuple[str, int], dict[str, Any]] = {}
    for run in runs:
        pictures = run.sample_pictures()
        for measurement in run.measured("grid"):
            if path := pictures.get(measurement.prefix):
                place = sets.setdefault((measurement.name, run.replicate), {"seeds": set(), "pictures": []})
                place["seeds"].add(run.spec["seed"])
                shown = {"arm": run.arm, "index": index[run.arm], "path": path, "src": relative(path, page_folder)}
                place["pictures"].append(shown)
    several = len({name for name, _ in sets}) > 1
    result: list[dict[str, Any]] = []
    for (name, replicate), place in sorted(sets.items(), key=lambda item: item[0]):
        seeds = place["seeds"]
        which = f"seed {next(iter(seeds))}" if len(seeds) == 1 else f"replicate {replicate}"
        if sum(len(of["pictures"]) for of in result) + len(place["pictures"]) <= MAX_PICTURES or not result:
            pictures = place["pictures"][:MAX_PICTURES]
            result.append({"name": f"{name}, {which}" if several else which, "pictures": pictures})
    return result if any(len(of["pictures"]) > 1 for of in result) else []
