"""The JSON schema of study files (draft 2020-12), so that editors complete and check them.

It has keys, names and ranges. Rules between parts are checked by `plan`; and since a file may extend another, only
names of choices without a default are required.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from harness.spec.base import SpecModel
from harness.spec.evaluation import PARTS, Evaluation
from harness.spec.presentation import Compare, FigureStyle
from harness.spec.protocols import PROTOCOLS
from harness.spec.resources import Records, Resources
from harness.spec.run import RunSpec
from harness.study.axes import RUN_PARTS, SIDE_PARTS

_STRINGS = {"type": "array", "items": {"type": "string"}}
_ONE_OR_MORE_STRINGS = {"anyOf": [{"type": "string"}, _STRINGS]}


def _drop_required(node: Any) -> None:
    """Remove required fields, in definitions and in inlined objects."""
    if isinstance(node, dict):
        if "properties" in node:
            node.pop("required", None)
        for child in node.values():
            _drop_required(child)
    elif isinstance(node, list):
        for child in node:
            _drop_required(child)


def study_schema(search: type[SpecModel] | None = None) -> dict[str, Any]:
    """Return the schema.

    Args:
        search: the model of a search's settings; without it, anything is allowed below `search`.
    """
    kinds: list[type[SpecModel]] = [RunSpec, Resources, Records, Evaluation, Compare, FigureStyle]
    kinds += [search] if search else []
    _, schema = models_json_schema([(kind, "validation") for kind in kinds], ref_template="#/$defs/{model}")
    definitions = schema["$defs"]
    _drop_required(definitions)
    run, evaluation = definitions.pop("RunSpec"), definitions["Evaluation"]
    evaluation["properties"] |= {"arms": _STRINGS, "replicates": {"type": "array", "items": {"type": "integer"}}}
    description = "How samples are measured: fills in fidelity, weights and guidance."
    evaluation["properties"]["protocol"] = {"enum": list(PROTOCOLS), "description": description}
    del evaluation["properties"]["plugins"]
    for part in PARTS:  # null would measure nothing
        choices = evaluation["properties"][part].get("anyOf", [])
        evaluation["properties"][part].pop("default", None)
        if {"type": "null"} in choices:
            choices.remove({"type": "null"})
    head = "|".join((*RUN_PARTS, *SIDE_PARTS))
    path = rf"({head})(\.[A-Za-z_0-9]+)*"
    changes = {"type": ["object", "null"], "propertyNames": {"pattern": f"^{path}$"}}
    points = {"type": "array", "minItems": 1}
    conditional = {
        "type": "object",
        "properties": {"choices": points, "when": {"type": "object", "minProperties": 1}},
        "required": ["choices", "when"],
        "additionalProperties": False,
    }
    properties: dict[str, Any] = {
        "study": {"type": "string", "description": "The study's name."},
        "extends": {**_ONE_OR_MORE_STRINGS, "description": "Files that this one extends, relative to it."},
        "plugins": {
            **_ONE_OR_MORE_STRINGS,
            "description": "Python files with parts of your own, relative to this one.",
        },
        **{part: run["properties"][part] for part in RUN_PARTS if part in run["properties"]},
        "resources": {"$ref": "#/$defs/Resources"},
        "records": {"$ref": "#/$defs/Records"},
        "arms": {"type": "object", "additionalProperties": changes, "description": "Named changes to the base."},
        "grid": {
            "type": "object",
            "propertyNames": {"pattern": rf"^{path}( *& *{path})*$"},
            "additionalProperties": {"anyOf": [points, conditional]},
            "description": "Every combination; & moves several fields together, `when` limits an axis.",
        },
        "replicates": {"type": "integer", "minimum": 1, "maximum": 10_000, "description": "Seeds."},
        "exclude": {"type": "array", "items": {"type": "object"}, "description": "Combinations to leave out."},
        "evaluate": {"type": "array", "items": {"$ref": "#/$defs/Evaluation"}},
        "data_root": {"type": ["string", "null"]},
        "budget_gpu_hours": {"type": ["number", "null"], "minimum": 0},
        "rungs": {
            "type": "array",
            "minItems": 2,
            "items": {"type": "integer", "minimum": 1},
            "description": "Steps at which all runs pause, and from which only the best arms go on.",
        },
        "reduction_factor": {"type": "integer", "minimum": 2, "description": "Of so many arms at a rung, one goes on."},
        "question": {"type": "string", "description": "What the study asks; by default its first line of comment."},
        "compare": {"$ref": "#/$defs/Compare"},
        "figures": {"$ref": "#/$defs/FigureStyle"},
        "search": {"$ref": f"#/$defs/{search.__name__}"} if search else {"type": "object"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A study of diffusion-harness",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": definitions,
    }
