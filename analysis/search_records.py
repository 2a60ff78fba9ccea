"""Read the records of a search beside its runs: runs/.search/<name>/."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.runs import RunRecord
from harness.errors import RecordError
from harness.records.layout import SEARCH
from harness.records.manifest import read_manifest
from harness.records.reading import Fields, as_number, read_json
from harness.spec.base import canonical_json

logger = logging.getLogger(__name__)

_ENDED = ("complete", "pruned")


def is_search(runs: Sequence[RunRecord]) -> bool:
    return bool(runs) and (_folder(runs) / "search.json").is_file()


def trials(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row per trial, metric and parameter, in the order in which the trials ended.

    Columns: trial, order (1, 2, ...), state, metric, direction, value, n (replicates), parameter, position (the number,
    or the index among the choices), label, low, high, log. A parameter that is not used has no position.

    Raises:
        RecordError: search.json is damaged. A damaged trial is left out, and logged.
    """
    if not is_search(runs):
        return pd.DataFrame()
    definition = _definition(_folder(runs) / "search.json")
    records = _ended_trials(_folder(runs) / "trials", definition["space"])
    if manifest := read_manifest(runs[0].folder.parent, runs[0].study):  # a study of runs may have taken the name over
        records = [record for record in records if manifest.runs.keys() & record.get("run_keys", [])]
    ended = sorted(records, key=lambda record: (record["ended_seconds"], record["number"]))
    rows = []
    for order, record in enumerate(ended, 1):
        for metric in definition["metrics"]:
            replicates = record["replicate_values"].get(metric["name"], [])
            value = record["values"].get(metric["name"], np.nan)
            row = {"trial": record["number"], "order": order, "state": record["state"], "metric": metric["name"]}
            row |= {"direction": metric["direction"], "value": value, "n": len(replicates)}
            for parameter in definition["space"]:
                rows.append(row | _position(parameter, record["point"]))
    return pd.DataFrame(rows)


def at_rungs(runs: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row per trial that has ended and rung that it was measured at; none of a search without rungs.

    Columns: trial, state, metric, direction, rung (1, 2, ...), step, value; at the last rung the result.

    Raises:
        RecordError: search.json is damaged. A damaged trial is left out, and logged.
    """
    if not is_search(runs):
        return pd.DataFrame()
    definition = _definition(_folder(runs) / "search.json")
    steps, rows = definition.get("rungs", []), []
    for record in _ended_trials(_folder(runs) / "trials", definition["space"]) if steps else ():
        metric = definition["metrics"][0]
        row = {"trial": record["number"], "state": record["state"], "metric": metric["name"]}
        values = {step: record.get("rung_values", {}).get(str(step)) for step in steps[:-1]}
        values[steps[-1]] = record["values"].get(metric["name"]) if record["state"] == "complete" else None
        rows += [
            row | {"direction": metric["direction"], "rung": rung, "step": step, "value": value}
            for rung, (step, value) in enumerate(values.items(), 1)
            if value is not None
        ]
    return pd.DataFrame(rows)


def importances(runs: Sequence[RunRecord]) -> tuple[dict[str, dict[str, dict[str, float]]], int]:
    """Return each parameter's share of the variance by metric, and the number of trials; empty if there are none.

    Raises:
        RecordError: importances.json is damaged.
    """
    path = _folder(runs) / "importances.json" if is_search(runs) else Path()
    if not path.name or not path.exists():
        return {}, 0
    stored = read_json(path)
    fields = Fields(stored, str(path))
    metrics = fields.fields("metrics")
    for metric, parameters in stored["metrics"].items():
        for name in Fields(parameters, f"{path}: {metric}"):
            for column in ("share", "low", "high"):
                metrics.fields(metric).fields(name).number(column, 0.0)
    return stored["metrics"], fields.integer("num_trials")


def _folder(runs: Sequence[RunRecord]) -> Path:
    return runs[0].folder.parent / SEARCH / runs[0].study


def _definition(path: Path) -> dict[str, Any]:
    stored = read_json(path)
    fields = Fields(stored, str(path)).fields("definition")
    for metric in fields.items("metrics"):
        metric.line("name")
        metric.choice("direction", ("minimize", "maximize"))
    if not isinstance(rungs := stored["definition"].get("rungs", []), list) or any(
        type(step) is not int for step in rungs
    ):
        raise RecordError(f"{path}: rungs are not a list of steps")
    for parameter in fields.items("space"):
        parameter.line("path")
        if parameter.line("kind") == "choices":
            parameter.fields("choices")
        else:
            parameter.finite("low")
            parameter.finite("high")
    return stored["definition"]


def _ended_trials(folder: Path, space: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    records = []
    for path in sorted(folder.glob("trial-*.json")):
        try:
            if (record := _trial(path, space))["state"] in _ENDED:
                records.append(record)
        except FileNotFoundError:  # removed meanwhile
            continue
        except RecordError as error:
            logger.warning(f"{error}; this trial is left out")
    return records


def _trial(path: Path, space: Sequence[dict[str, Any]]) -> dict[str, Any]:
    record = read_json(path)
    fields = Fields(record, str(path))
    if fields.line("state") in _ENDED:
        fields.integer("number")
        fields.seconds("ended_seconds")
        point = fields.fields("point")
        for parameter in space:
            if (name := parameter["path"]) not in point:
                continue
            if parameter["kind"] != "choices":
                point.finite(name)
            elif canonical_json(point.get(name)) not in map(canonical_json, parameter["choices"].values()):
                raise RecordError(f"{path}: {name} is none of the search's choices")
        keys = record.get("run_keys", [])
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise RecordError(f"{path}: run_keys are not a list of keys")
        for metric in fields.fields("values"):
            if as_number(record["values"][metric]) is None:
                raise RecordError(f"{path}: the value of {metric} is not a number")
        rungs = fields.fields("rung_values", {})
        for step in rungs:
            rungs.number(step)
        for metric in fields.fields("replicate_values"):
            if not isinstance(record["replicate_values"][metric], list):
                raise RecordError(f"{path}: the values of the replicates of {metric} are not a list")
    return record


def _position(parameter: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    path = parameter["path"]
    row = {"parameter": path, "log": bool(parameter.get("log"))}
    if parameter["kind"] == "choices":
        names, values = list(parameter["choices"]), list(parameter["choices"].values())
        texts = list(map(canonical_json, values))  # 1, 1.0 and true are three values
        index = texts.index(canonical_json(point[path])) if path in point else None
        place, label = (np.nan, "") if index is None else (index, names[index])
        return row | {
            "position": place,
            "label": label,
            "low": -0.5,
            "high": len(names) - 0.5,
            "names": "|".join(names),
        }
    value = point.get(path, np.nan)
    label = f"{value:.3g}" if path in point else ""
    return row | {"position": value, "label": label, "low": parameter["low"], "high": parameter["high"], "names": ""}
