"""Validate plain values by a model of the spec; every error has its file, line, path and choices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import TypeAdapter, ValidationError

from harness.errors import SpecError
from harness.spec.base import SpecModel
from harness.spec.parts import Choice
from harness.study.document import Keys, SourceLocation, dotted, error_line, integer
from harness.text import did_you_mean

_adapter = cache(TypeAdapter)


def validate(
    kind: type[SpecModel], value: Any, locate: Callable[[Keys, Keys], SourceLocation], prefix: Keys = ()
) -> Any:
    """Validate plain values as `kind`, strictly; turn pydantic's errors into `file:line: path: message`."""
    adapter = _adapter(kind)
    value = _plain(value)
    try:
        try:
            return adapter.validate_python(value, strict=True, context={"strict": True})
        except ValidationError as error:
            value = _with_integers(value, error)
            return adapter.validate_python(value, strict=True, context={"strict": True})
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            if problem["type"] == "too_short" and problem["input"]:
                continue  # the list is too short only because invalid items were removed, which are reported themselves
            keys = _real_keys(problem["loc"], value)
            path = dotted((*prefix, *keys))
            message = _explain(problem, kind, keys, value)
            # A rule between parts has no location; its message starts with the path of the wrong field.
            culprit = keys or tuple(message.split()[0].rstrip(":").split("."))
            lines.append(error_line(locate(keys, culprit), path, message))
        raise SpecError("\n".join(dict.fromkeys(lines))) from None


def validated_part(kind: type[SpecModel], name: str, value: Any) -> Any:
    """Return the validated part of a kind's values; the value itself if that is invalid, or no part."""
    if not isinstance(value, dict | str):
        return value
    try:
        part = _part_adapter(kind, name).validate_python(_plain(value), strict=True, context={"strict": True})
    except ValidationError:
        return value
    return part if isinstance(part, SpecModel) else value


@cache
def _part_adapter(kind: type[SpecModel], name: str) -> TypeAdapter[Any]:
    field = kind.model_fields[name]
    annotation: Any = field.annotation
    return TypeAdapter(Annotated[annotation, *field.metadata] if field.metadata else annotation)


def _plain(value: Any) -> Any:
    """Return the value with tuples for lists, which strict validation requires, and 0.0 for -0.0, its equal."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return 0.0 if type(value) is float and value == 0 else value


def _with_integers(value: Any, error: ValidationError) -> Any:
    """Return the value with whole numbers in place of floats such as 2e2 where an integer is required.

    Raises:
        ValidationError: the same one, if there is no such float.
    """
    places = [
        _real_keys(problem["loc"], value)
        for problem in error.errors(include_url=False)
        if problem["type"] == "int_type" and integer(problem["input"]) is not problem["input"]
    ]
    if not places:
        raise error
    for keys in places:
        value = _replace(value, keys)
    return value


def _replace(value: Any, keys: Keys) -> Any:
    """Return the value with the float at `keys` as an integer."""
    if not keys:
        return integer(value)
    if isinstance(value, dict):
        return {key: _replace(item, keys[1:]) if key == keys[0] else item for key, item in value.items()}
    return tuple(_replace(item, keys[1:]) if index == keys[0] else item for index, item in enumerate(value))


def _real_keys(loc: tuple, value: Any) -> Keys:
    """Remove what pydantic inserts into the keys of a location: the members of a union such as `int | None`."""
    keys: list[str | int] = []
    for depth, part in enumerate(loc):
        indexed = isinstance(value, (list, tuple)) and isinstance(part, int) and part < len(value)
        if indexed or (isinstance(value, dict) and part in value):
            value = value[part]
        elif depth < len(loc) - 1 or (isinstance(part, str) and not isinstance(value, dict)):
            continue
        keys.append(part)
    return tuple(keys)


def _explain(problem: Any, kind: type[SpecModel], keys: Keys, value: Any) -> str:
    context, given = problem.get("ctx", {}), problem.get("input")
    match problem["type"]:
        case "extra_forbidden":
            fields = list(_possible_classes(kind, keys[:-1], value)[0].model_fields)
            return f"unknown key; {did_you_mean(str(keys[-1]), fields)}"
        case "missing":
            return "is required"
        case "union_tag_invalid":
            tags = [tag.strip().strip("'") for tag in context["expected_tags"].split(",")]
            return f"unknown name {context['tag']!r}; {did_you_mean(context['tag'], tags)} (choices: {', '.join(tags)})"
        case "union_tag_not_found":
            names = ", ".join(filter(None, map(_name_of, _possible_classes(kind, keys, value))))
            return f"missing `name`; choices: {names}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"a mapping is expected, not {given!r}"
        case "literal_error":
            return f"unknown value {given!r}; choices: {context['expected']}"
        case "value_error":
            return str(context["error"])
    message = problem["msg"][0].lower() + problem["msg"][1:]
    shown = list(given) if isinstance(given, tuple) else given
    return f"{message}, not {shown!r}" if not isinstance(given, dict) else message


def _parts_in(annotation: Any, metadata: Iterable[Any] = ()) -> list[type[SpecModel]]:
    """Return the parameter classes in an annotation such as `tuple[Sampler, ...]`."""
    for entry in (*metadata, *getattr(annotation, "__metadata__", ())):
        if isinstance(entry, Choice):
            return list(entry.classes().values())
    if isinstance(annotation, type) and issubclass(annotation, SpecModel):
        return [annotation]
    return [part for argument in get_args(annotation) for part in _parts_in(argument)]


def _possible_classes(kind: type[SpecModel], keys: Keys, value: Any) -> list[type[SpecModel]]:
    """Return the possible classes at `keys`: several if a name is missing."""
    places = [kind]
    for key in keys:
        if isinstance(value, dict):
            field = places[0].model_fields[str(key)]
            places = _parts_in(field.annotation, field.metadata)
            value = value.get(key)
        else:
            value = value[int(key)]
        name = value.get("name") if isinstance(value, dict) else value
        places = [place for place in places if _name_of(place) == name] or places
    return places


def _name_of(kind: type[SpecModel]) -> str | None:
    return kind.model_fields["name"].default if "name" in kind.model_fields else None
