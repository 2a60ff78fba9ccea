"""Parts of a spec that are chosen by name: one table per kind, for built-in parts and those of plugins.

A field such as `schedule: Schedule` is `Annotated[NamedModel, Choice("schedule", {...})]`. Its names are looked up when
a value is validated: the built-in ones, and those of the currently active plugins. There is no global registry of
plugins, so two versions of a plugin can be read in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticKnownError, core_schema

from harness.spec.base import SpecModel, expand_name


class NamedModel(SpecModel):
    """A part that is chosen by its name; each parameter class declares it as a Literal with a default."""

    name: str


@dataclass(frozen=True, eq=False)
class Plugin:
    """The parts that a plugin adds.

    Attributes:
        name: of its file, or the name and version of its package.
        digest: sha256 over its files.
        path: of the file with its tables, as it was executed.
        files: their contents by name, stored with the runs that use them; empty for installed packages.
        parts: parameter classes by kind and name.
        implementations: the implementation of each parameter class, imported on first use.
    """

    name: str
    digest: str
    path: Path
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    parts: Mapping[str, Mapping[str, type[SpecModel]]] = field(default_factory=dict)
    implementations: Mapping[type[SpecModel], Callable[[], Any]] = field(default_factory=dict, repr=False)


KINDS: dict[str, Choice] = {}
"""Each kind of part -> the choice that the spec has of it."""

_active: ContextVar[Sequence[Plugin]] = ContextVar("active plugins", default=())
_plugin_of: dict[type[SpecModel], Plugin] = {}


@contextmanager
def active(plugins: Sequence[Plugin]) -> Iterator[None]:
    """Make the parts of these plugins available to validation within the block."""
    for plugin in plugins:
        _plugin_of.update(dict.fromkeys(plugin.implementations, plugin))
    token = _active.set(tuple(plugins))
    try:
        yield
    finally:
        _active.reset(token)


@dataclass(frozen=True)
class Choice:
    """The metadata of a field whose value is chosen by name.

    Attributes:
        kind: such as schedule.
        base: what parameter classes derive from.
        built_in: parameter classes by name.
        default_name: for a mapping without a name.
    """

    kind: str
    base: type[SpecModel]
    built_in: Mapping[str, type[SpecModel]]
    default_name: str | None = None

    def __post_init__(self) -> None:
        KINDS[self.kind] = self

    def classes(self) -> dict[str, type[SpecModel]]:
        """Return the available parameter classes, those of active plugins last."""
        classes = dict(self.built_in)
        for plugin in _active.get():
            classes |= plugin.parts.get(self.kind, {})
        return classes

    def validate(self, value: Any, info: core_schema.ValidationInfo) -> SpecModel:
        """Validate a value by the parameter class that it names.

        `context={"strict": True}` requests strict validation: a function does not see the validator's own setting.
        """
        classes = self.classes()
        if isinstance(value, SpecModel) and type(value) in classes.values():
            return value
        value = expand_name(value)
        if not isinstance(value, dict):
            raise PydanticKnownError("dict_type")
        if "name" not in value and self.default_name:
            value = {"name": self.default_name, **value}
        if "name" not in value:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": "'name'"})
        name = value["name"]
        if not isinstance(name, str) or name not in classes:
            names = ", ".join(map(repr, classes))
            tag = str(name).encode(errors="backslashreplace").decode()  # pydantic takes no half of a surrogate pair
            context = {"discriminator": "'name'", "tag": tag, "expected_tags": names}
            raise PydanticKnownError("union_tag_invalid", context)
        strict = (info.context or {}).get("strict")
        return classes[name].__pydantic_validator__.validate_python(value, strict=strict, context=info.context)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe the choice: the short form, only a name, or a mapping with the name."""
        mappings, alone = [], []
        for name, parameters in self.classes().items():
            reference = handler(parameters.__pydantic_core_schema__)
            if name == self.default_name:
                mappings.append(reference)
            else:
                mappings.append({"allOf": [reference], "required": ["name"]})
            if not any(info.is_required() for info in parameters.model_fields.values()):
                alone.append(name)
        return {"oneOf": [{"type": "string", "enum": alone}, *mappings]}


def choice_of(annotation: Any) -> Choice:
    """Return the choice that a type such as `Schedule` is annotated with."""
    return next(entry for entry in annotation.__metadata__ if isinstance(entry, Choice))


def choices(annotation: Any) -> dict[str, type[SpecModel]]:
    """Map each available name of a type such as `Schedule` to its parameter class."""
    return choice_of(annotation).classes()


def plugins_of(value: Any) -> dict[str, str]:
    """Return name and digest of the plugins that a validated value uses, at any depth."""
    if not _plugin_of:
        return {}
    digests: dict[str, str] = {}
    if isinstance(value, SpecModel):
        if plugin := _plugin_of.get(type(value)):
            digests[plugin.name] = plugin.digest
        for key in type(value).model_fields:
            digests |= plugins_of(getattr(value, key))
    elif isinstance(value, tuple):
        for item in value:
            digests |= plugins_of(item)
    return dict(sorted(digests.items()))


def plugin_implementation(part: SpecModel) -> Any:
    """Return the implementation of a plugin's part; None for a built-in part."""
    plugin = _plugin_of.get(type(part))
    return plugin.implementations[type(part)]() if plugin else None
