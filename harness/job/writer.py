"""Write an evaluation's result into the run directory, in an order that is safe against kills."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from harness.evaluation.images import save_png
from harness.evaluation.result import EvaluationResult
from harness.job.collapse import collapse_signs
from harness.records.collapse import EVENT as COLLAPSE
from harness.records.directory import RunDirectory
from harness.records.files import replace_file
from harness.records.journal import Journal
from harness.spec.evaluation import Evaluation
from harness.spec.protocols import protocol_id


def record_evaluation(
    directory: RunDirectory, journal: Journal, evaluation: Evaluation, prefix: str, result: EvaluationResult, step: int
) -> None:
    """Write the result: files first, then the rows, then signs of a collapse, and the event that marks it as complete.

    Args:
        prefix: of the metrics' names.
        step: of the weights that were measured.
    """
    for name, arrays in result.arrays.items():
        directory.arrays_folder.mkdir(exist_ok=True)
        temporary = directory.arrays_folder / f".{name}"
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        temporary.rename(directory.arrays_folder / name)
    for name, picture in result.pictures.items():
        save_png(directory.samples_folder / name, picture)
    own = evaluation.model_dump(mode="json")
    protocol = {"evaluation": own, **result.protocol}
    if evaluation.fidelity:
        num_timesteps = directory.spec()["diffusion"]["num_timesteps"]
        protocol["protocol_id"] = protocol_id(own, num_timesteps)
    directory.evaluations_folder.mkdir(exist_ok=True)
    replace_file(directory.evaluation_path(evaluation.key), json.dumps(protocol, indent=2), durable=True)
    journal.metrics(step, result.metrics)
    for name, curve in result.curves.items():
        for x, value in curve:
            journal.metrics(x, {name: value}, train_step=step)
    for fields in collapse_signs(evaluation, prefix, result):
        written = (event for event in directory.events(COLLAPSE) if not event.superseded)
        if not any((e.fields.get("key"), e.fields.get("sign")) == (evaluation.key, fields["sign"]) for e in written):
            journal.event(COLLAPSE, step=step, key=evaluation.key, evaluation=prefix, **fields)
    # With its step, so that it is superseded with its rows when the last checkpoint turns out to be damaged.
    protocol_fields = {
        "key": evaluation.key,
        "evaluation": evaluation.name,
        "prefix": prefix,
        "parts": evaluation.parts,
    }
    journal.event("evaluation", step=step, **protocol_fields)
    journal.sync()


def metric_prefix(directory: RunDirectory, requested: Sequence[Evaluation], evaluation: Evaluation) -> str:
    """Return the prefix of an evaluation's metrics: its name, with a suffix if another protocol used it before.

    Args:
        requested: all evaluations that the run's studies ask for.
    """
    taken = {
        (event.fields["evaluation"], part): event.fields["key"]
        for event in directory.events("evaluation")
        for part in event.fields["parts"]
    }
    for other in requested:
        for part in other.parts:
            taken.setdefault((other.name, part), other.key)
    clash = any(taken.get((evaluation.name, part), evaluation.key) != evaluation.key for part in evaluation.parts)
    return f"{evaluation.name}_{evaluation.key[:6]}" if clash else evaluation.name
